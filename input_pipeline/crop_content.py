"""Rules about the classes that a crop shows; crops that break one are redrawn.

A rule is checked before each of at most `MAX_REDRAWS` redraws, and the last
crop is taken as it is (spec U2PL for domain adaptation §2.2, §2.3).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

MAX_REDRAWS = 10

# Key, of a record and of its example, of the `RequiredClass` of its crop.
REQUIRED = 'required_class'


class RequiredClass(NamedTuple):
  """A class that a crop must show.

  Attributes:
    class_id: id of the class.
    min_pixels: number of pixels; the crop must show more of the class.
  """

  class_id: int
  min_pixels: int

  def is_shown(self, label: Int[np.ndarray, 'H W']) -> bool:
    """Returns whether more than `min_pixels` pixels have the class."""
    return bool(np.count_nonzero(label == self.class_id) > self.min_pixels)


def has_mixed_classes(
  label: Int[np.ndarray, 'H W'], max_class_share: float
) -> bool:
  """Returns whether several classes occur, none of them too often.

  Args:
    label: class ids, negative where ignored.
    max_class_share: bound of the share of the most frequent class, among the
      pixels with a class; the share must be less.

  >>> has_mixed_classes(np.array([[0, 0, 0, 1], [-1, -1, -1, -1]]), 0.75)
  False
  """
  counts = np.bincount(label[label >= 0])
  if np.count_nonzero(counts) < 2:
    return False
  return bool(counts.max() / counts.sum() < max_class_share)


@dataclasses.dataclass(frozen=True)
class RequiredClassCrop:
  """A crop that is redrawn until it shows the class that its example requires.

  Without such a class (see `REQUIRED`) it is the crop itself.

  Attributes:
    crop: random crop, a function of (example, generator).
  """

  crop: Callable[[Mapping[str, Any], np.random.Generator], Mapping[str, Any]]

  def __call__(
    self, example: Mapping[str, Any], rng: np.random.Generator
  ) -> Mapping[str, Any]:
    """Crops at random, several times if it has to."""
    example = dict(example)
    required = example.pop(REQUIRED, None)
    cropped = self.crop(example, rng)
    for _ in range(MAX_REDRAWS if required else 0):
      if required.is_shown(cropped['label']):
        break
      cropped = self.crop(example, rng)
    return cropped
