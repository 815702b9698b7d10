"""Random places, sizes and scales of crops, and the crops themselves.

box = crop_boxes.sample_crop_box(rng, image=(375, 500), size=(321, 321))
crop = crop_boxes.crop_to_box(image, box, fill=(127, 127, 127))
"""

import math
from typing import NamedTuple

import numpy as np
from etils import epy
from jaxtyping import Shaped

with epy.lazy_imports():
  import cv2

# Least share of an image that a box of TensorFlow's rule shows, whatever the
# range of its area is: the default of `min_object_covered`, which SimCLR has.
_MIN_COVERAGE = 0.1
# Boxes that this rule samples before it takes the whole image, as in SimCLR.
_MAX_ATTEMPTS = 100


class Box(NamedTuple):
  """A rectangle in pixels, which may extend outside of the image."""

  top: int
  left: int
  height: int
  width: int


def sample_crop_box(
  rng: np.random.Generator, image: tuple[int, int], size: tuple[int, int]
) -> Box:
  """Samples the place of a crop, uniformly inside of the image.

  Along an axis where the image is smaller than the crop, the image is placed
  uniformly inside of the crop.

  Args:
    rng: random generator.
    image: (height, width) of the image in pixels.
    size: (height, width) of the crop in pixels.
  """
  top, left = (
    int(rng.integers(min(n - m, 0), max(n - m, 0) + 1))
    for n, m in zip(image, size, strict=True)
  )
  return Box(top, left, *size)


def sample_centered_crop_box(
  rng: np.random.Generator, image: tuple[int, int], size: tuple[int, int]
) -> Box:
  """Samples the place of a crop, uniformly inside of the image.

  Along an axis where the image is smaller than the crop, the image is centered
  in the crop; of an odd number of padding pixels, the smaller half comes first.

  Args:
    rng: random generator.
    image: (height, width) of the image in pixels.
    size: (height, width) of the crop in pixels.
  """
  top, left = (
    -((m - n) // 2) if n < m else int(rng.integers(0, n - m + 1))
    for n, m in zip(image, size, strict=True)
  )
  return Box(top, left, *size)


def sample_image_scale(
  rng: np.random.Generator, scales: tuple[float, ...], balanced: bool
) -> float:
  """Samples a scale factor.

  Args:
    rng: random generator.
    scales: least and largest factor; or more than two, of which one is taken.
    balanced: whether the factor is below 1 in half of the cases, and uniform
      below and above 1 (spec U2PL §5); else it is uniform in the whole range.
  """
  if len(scales) > 2:
    return float(scales[rng.integers(len(scales))])
  low, high = scales
  if balanced:
    low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
  return float(rng.uniform(low, high))


def sample_inception_box(
  rng: np.random.Generator,
  image: tuple[int, int],
  area: tuple[float, float],
  aspect: tuple[float, float],
  attempts: int = 10,
) -> Box:
  """Samples a box of random area and log-uniform aspect ratio.

  If no sampled box fits into the image, the result is the largest centered box
  whose aspect ratio is in the range.

  Args:
    rng: random generator.
    image: (height, width) of the image in pixels.
    area: range of the area of the box, as a fraction of the image's area.
    aspect: range of width / height of the box.
    attempts: number of boxes that are sampled before the centered one is used.
  """
  height, width = image
  for _ in range(attempts):
    h, w = _sample_box_sides(rng, image, area, aspect)
    if 0 < h <= height and 0 < w <= width:
      return sample_crop_box(rng, image, (h, w))
  ratio = min(max(width / height, aspect[0]), aspect[1])
  h = min(height, max(round(width / ratio), 1))
  w = min(width, max(round(height * ratio), 1))
  return Box((height - h) // 2, (width - w) // 2, h, w)


def _sample_box_sides(
  rng: np.random.Generator,
  image: tuple[int, int],
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> tuple[int, int]:
  """Samples the height and the width of a box, which may exceed the image."""
  target = math.prod(image) * rng.uniform(*area)
  ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
  return round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))


def sample_clipped_box(
  rng: np.random.Generator,
  image: tuple[int, int],
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> Box:
  """Samples a box of random area and log-uniform aspect ratio, as in BYOL.

  It is sampled once: a side that exceeds the image is clipped, and area and
  aspect ratio are then out of their ranges.

  Args:
    rng: random generator.
    image: (height, width) of the image in pixels.
    area: range of the area of the box, as a fraction of the image's area.
    aspect: range of width / height of the box.
  """
  sides = _sample_box_sides(rng, image, area, aspect)
  height, width = (
    min(max(side, 1), whole) for side, whole in zip(sides, image, strict=True)
  )
  return sample_crop_box(rng, image, (height, width))


def sample_tensorflow_box(
  rng: np.random.Generator,
  image: tuple[int, int],
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> Box:
  """Samples a box as TensorFlow's `sample_distorted_bounding_box`.

  The aspect ratio is uniform, and then the height among those that give an area
  in the range. If none of 100 boxes fits and shows a tenth of the image, the
  result is the whole image.

  Args:
    rng: random generator.
    image: (height, width) of the image in pixels.
    area: range of the area of the box, as a fraction of the image's area.
    aspect: range of width / height of the box.
  """
  height, width = image
  for _ in range(_MAX_ATTEMPTS):
    ratio = rng.uniform(*aspect)
    least, largest = (height * width * share for share in area)
    low, high = (round(math.sqrt(a / ratio)) for a in (least, largest))
    if round(high * ratio) > width:
      high = math.floor((width + 0.5) / ratio)
      high -= round(high * ratio) > width
    high = min(high, height)
    h = int(rng.integers(min(low, high), high + 1))
    # Rounded sides may be a pixel short of the area, or beyond it.
    h += h * round(h * ratio) < least
    h -= h * round(h * ratio) > largest
    w = round(h * ratio)
    is_inside = 0 < h <= height and 0 < w <= width
    least = max(least, _MIN_COVERAGE * height * width)
    if is_inside and least <= h * w <= largest:
      # The last place is left out, except for a side of the whole image.
      top, left = (
        int(rng.integers(0, max(whole - side, 1)))
        for whole, side in ((height, h), (width, w))
      )
      return Box(top, left, h, w)
  return Box(0, 0, height, width)


def visible_part(box: Box, image: tuple[int, int]) -> tuple[slice, slice]:
  """Returns the rows and columns of an image that a box shows.

  Args:
    box: rectangle in pixels, which may extend outside of the image.
    image: (height, width) of the image in pixels.

  >>> visible_part(Box(-2, 3, 5, 4), (9, 6))
  (slice(0, 3, None), slice(3, 6, None))
  """
  rows, _ = _overlap(box.top, box.height, image[0])
  columns, _ = _overlap(box.left, box.width, image[1])
  return rows, columns


def crop_to_box(
  array: Shaped[np.ndarray, 'H W *channels'],
  box: Box,
  fill: bool | int | tuple[int, int, int],
) -> Shaped[np.ndarray, 'h w *channels']:
  """Crops an image or a map of its pixels; a view of it where possible.

  Args:
    array: image of three channels, or map of ids or flags.
    box: rectangle in pixels.
    fill: value of the pixels outside of the array.
  """
  rows, above_below = _overlap(box.top, box.height, array.shape[0])
  columns, left_right = _overlap(box.left, box.width, array.shape[1])
  inside = array[rows, columns]
  if inside.shape[:2] == (box.height, box.width):
    return inside
  if array.ndim == 3 and inside.size:  # OpenCV takes no empty images.
    # NumPy takes as long for repeating a color as OpenCV for decoding.
    return cv2.copyMakeBorder(
      inside, *above_below, *left_right, cv2.BORDER_CONSTANT, value=fill
    )
  out = np.empty((box.height, box.width, *array.shape[2:]), array.dtype)
  out[:] = fill
  out[
    above_below[0] : above_below[0] + inside.shape[0],
    left_right[0] : left_right[0] + inside.shape[1],
  ] = inside
  return out


def _overlap(
  start: int, length: int, size: int
) -> tuple[slice, tuple[int, int]]:
  """Intersects [start, start + length) with [0, size).

  Returns:
    The intersection, and the missing lengths before and after it.
  """
  first = min(max(start, 0), size)
  last = min(max(start + length, 0), size)
  before = min(max(-start, 0), length)
  return slice(first, last), (before, length - before - (last - first))
