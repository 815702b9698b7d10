"""Size and scale of crops, chosen from the sizes of images and objects.

  fitted = FittedInceptionCrop().fit(split_sizes, counts.objects)
  fitted.crop             # an InceptionCrop for these images
  fitted.source           # what it was chosen from, in words

Crops have the shape of the images and a size that a CPU can train on. They show
most of an image, unless its objects would become too small: then they show a
part of it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epy

from input_pipeline import transforms

with epy.lazy_imports():
  from input_pipeline.sources import object_sizes

# A crop shows from this share to all of the largest area that it may show.
_LEAST_AREA = 0.4
# Shape of crops, relative to that of the images.
_ASPECT = (3 / 4, 4 / 3)
# Of images that are longer, a part is shown.
_MAX_ASPECT = 2.0
# The share of objects that may be smaller than `min_object`.
_SMALL_OBJECTS = 0.25
# Crops never show less of an image.
_SMALLEST_AREA = 0.02


class FittedScale(NamedTuple):
  """A crop that was chosen for a data set.

  Attributes:
    crop: the crop.
    source: description, in words, of the data that it was chosen from.
  """

  crop: transforms.InceptionCrop
  source: str


@dataclasses.dataclass(frozen=True)
class FittedInceptionCrop:
  """An inception crop whose size and area are chosen from the data.

  Attributes:
    size: (height, width) of the output in pixels; (0, 0) to choose it.
    area: range of the share of the image that is kept; (0, 0) to choose it.
    num_pixels: approximate number of pixels of the output.
    size_multiple: divisor of height and width of the output.
    min_object: side of a square, in pixels of the output: three quarters of the
      objects are to be at least as large.
    max_area: largest share of the image that a chosen area shows, above 0 and
      up to 1; crops that are enlarged otherwise show more.
  """

  size: tuple[int, int] = (0, 0)
  area: tuple[float, float] = (0.0, 0.0)
  num_pixels: int = 96 * 144
  size_multiple: int = 16
  min_object: int = 8
  max_area: float = 1.0

  def __post_init__(self):
    # This constructor checks the fields that are given.
    transforms.InceptionCrop(
      self.size if any(self.size) else (1, 1),
      self.area if any(self.area) else (1.0, 1.0),
    )
    if not 0 < self.max_area <= 1:
      raise ValueError(
        f'max_area: expected above 0 and up to 1, got {self.max_area}'
      )

  @property
  def is_complete(self) -> bool:
    """Returns whether size and area are both given, so that none is fitted."""
    return any(self.size) and any(self.area)

  def without_data(self) -> transforms.InceptionCrop:
    """Returns the crop for images of unknown size: square, most of them."""
    return self.fit([]).crop

  def fit(
    self,
    sizes: Sequence[tuple[int, int]] | np.ndarray,
    objects: Sequence[int] | np.ndarray = (),
  ) -> FittedScale:
    """Chooses the crop for sizes of images and objects.

    Args:
      sizes: (height, width) of each image; without images they are assumed to
        be square and large.
      objects: histogram of the sizes of objects (see `object_sizes`); empty if
        it is unknown.
    """
    median = None
    if len(sizes):
      height, width = np.median(np.asarray(sizes), axis=0).tolist()
      median = height, width
    size = self.size if any(self.size) else self._choose_size(median)
    smallest = object_sizes.object_share_quantile(objects, _SMALL_OBJECTS)
    area = self.area
    if not any(area):
      area = self._choose_area(size, median, smallest)
    low, high = (ratio * size[1] / size[0] for ratio in _ASPECT)
    crop = transforms.InceptionCrop(size, area, (low, high), antialias=True)
    return FittedScale(crop, _describe(median, smallest))

  def _choose_size(self, median: tuple[float, float] | None) -> tuple[int, int]:
    """Returns a size of about `num_pixels`, in the shape of the images."""
    height, width = median or (1.0, 1.0)
    aspect = min(max(width / height, 1 / _MAX_ASPECT), _MAX_ASPECT)
    sides = (
      math.sqrt(self.num_pixels / aspect),
      math.sqrt(self.num_pixels * aspect),
    )
    multiple = self.size_multiple
    chosen = []
    for side, image_side in zip(sides, (height, width), strict=True):
      count = max(math.floor(side / multiple + 0.5), 1)
      if median:  # Not larger than the images.
        count = min(count, math.ceil(image_side / multiple))
      chosen.append(count * multiple)
    return chosen[0], chosen[1]

  def _choose_area(
    self,
    size: tuple[int, int],
    median: tuple[float, float] | None,
    smallest: float | None,
  ) -> tuple[float, float]:
    """Returns the range of shares of an image that crops show."""
    high = self.max_area
    if smallest:
      high = min(high, smallest * size[0] * size[1] / self.min_object**2)
    if median:  # Crops are not enlarged.
      high = max(high, size[0] * size[1] / (median[0] * median[1]))
    high = round(min(max(high, _SMALLEST_AREA), 1.0), 3)
    return round(_LEAST_AREA * high, 3), high


def short_side_at_crop_scale(crop: transforms.InceptionCrop) -> int:
  """Computes the short side of whole images at the scale of training crops.

  At this side an image has as many pixels, compared with a crop, as if the crop
  showed the mean of its range of areas.

  >>> short_side_at_crop_scale(transforms.InceptionCrop((96, 144), (0.4, 1.0)))
  115
  """
  mean_area = sum(crop.area) / 2
  return max(round(min(crop.size) / math.sqrt(mean_area)), 1)


def describe_crop(crop: transforms.InceptionCrop) -> str:
  """Describes size and area of a crop in words."""
  height, width = crop.size
  low, high = (f'{share:.3g}' for share in crop.area)
  return f'{height}x{width} pixels of {low} to {high} of an image'


def _describe(
  median: tuple[float, float] | None, smallest: float | None
) -> str:
  """Describes what a crop is chosen from."""
  if median is None:
    return 'without data'
  reason = f'images of {median[0]:.0f}x{median[1]:.0f} pixels (median)'
  if smallest is not None:
    reason += f', a quarter of the objects below {smallest:.2%} of their image'
  return reason
