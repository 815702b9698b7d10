"""The images from which views are computed on the devices."""

import dataclasses
from typing import ClassVar

import numpy as np

from input_pipeline import transforms
from segcore.eval import short_side


@dataclasses.dataclass(frozen=True)
class BaseImage:
  """Resizes the short side and takes a square center crop, without chance.

  Attributes:
    side: side of the image, in pixels.
  """

  side: int
  ignores_padding: ClassVar[bool] = False

  @property
  def size(self) -> tuple[int, int]:
    """Returns height and width."""
    return (self.side, self.side)

  def __call__(
    self, example: transforms.Example, rng: np.random.Generator | None = None
  ) -> transforms.Example:
    """Replaces the image of an example."""
    del rng
    image = short_side.resize_and_center_crop(
      example['image'], self.side, self.side
    )
    return {**example, 'image': image}
