"""Sizes to which images are resized before their features are computed."""

import dataclasses

from runtime.option_ranges import AtLeastOne, CheckedOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterCropOptions(CheckedOptions):
  """Sizes of resized images and of their center crops.

  Attributes:
    short_side: short side of the resized images, in pixels.
    crop: side of the center crop, in pixels.
  """

  short_side: AtLeastOne = 256
  crop: AtLeastOne = 224

  def __post_init__(self):
    super().__post_init__()
    if self.crop > self.short_side:
      raise ValueError(
        f'crop: expected at most the short side of {self.short_side}, got '
        f'{self.crop}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeImageOptions(CheckedOptions):
  """Sizes of resized images, none of which is cropped.

  Attributes:
    short_side: short side of the resized images, in pixels.
    size_multiple: number of pixels to whose multiples the sides of images are
      rounded, so that images share programs.
  """

  short_side: AtLeastOne = 256
  size_multiple: AtLeastOne = 32
