"""Options of the center crops of images of which embeddings are computed."""

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
