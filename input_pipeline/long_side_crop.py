"""Crops of images whose long side has a random length.

Source: Ahn & Kwak 2018 (AffinityNet), whose released code SEAM, SC-CAM and
AdvCAM share.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from input_pipeline import crop_boxes, resampling, transforms


@dataclasses.dataclass(frozen=True)
class LongSideCrop:
  """Resizes the long side to a random length, then crops at a random place.

  Images are resized bicubically. Where an image is smaller than the crop, it is
  placed at random in the mean color, which has no class.

  Attributes:
    size: (height, width) of the output in pixels.
    long_side: least and largest length of the long side in pixels; integers in
      between are equally likely.
  """

  size: tuple[int, int]
  long_side: tuple[int, int]
  ignores_padding: ClassVar[bool] = True

  def __post_init__(self):
    transforms.check_image_size('size', self.size)
    low, high = self.long_side
    if not 1 <= low <= high:
      raise ValueError(
        f'long_side: expected 1 <= low <= high, got {self.long_side}'
      )

  def __call__(
    self, example: transforms.Example, rng: np.random.Generator
  ) -> transforms.Example:
    """Resizes to a random length and crops at a random place."""
    image = example['image']
    length = int(rng.integers(self.long_side[0], self.long_side[1] + 1))
    size = tuple(
      max(round(side * length / max(image.shape[:2])), 1)
      for side in image.shape[:2]
    )
    resized = {
      **transforms.resize_example(example, size),
      'image': resampling.resize_image_antialiased(image, size, bicubic=True),
    }
    box = crop_boxes.sample_crop_box(rng, size, self.size)
    return transforms.crop_example(resized, box, transforms.FILLS['mean'])
