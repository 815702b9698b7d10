"""Two random crops of each image, for methods that mix an image with itself.

transform = SecondCrops(decode, Compose((crop, flip)))
example = transform(record, rng)  # 'image', 'second_image', …
"""

import dataclasses
from typing import Any

import numpy as np

from input_pipeline import batch as batch_lib
from input_pipeline import transforms

_MAPS = ('image', 'valid')


@dataclasses.dataclass(frozen=True)
class SecondCrops:
  """Augments each decoded image twice, with draws of their own.

  Attributes:
    decode: transform from a record to an example.
    augment: random transform of an example.
  """

  decode: transforms.Transform
  augment: transforms.Transform

  def __call__(
    self, record: transforms.Example, rng: np.random.Generator
  ) -> transforms.Example:
    """Returns the first example, with `image` and `valid` of the second."""
    decoded = self.decode(record, rng)
    first, second = (self.augment(decoded, rng) for _ in range(2))
    maps = {
      batch_lib.SECOND + name: second[name] for name in _MAPS if name in second
    }
    return {**first, **maps}


def second_crop(batch: batch_lib.Batch) -> dict[str, Any]:
  """Returns the maps of the second crop, by the names of the first one's."""
  return {
    name: batch[batch_lib.SECOND + name]
    for name in _MAPS
    if batch_lib.SECOND + name in batch
  }
