"""Random places, sizes and scales of crops.

box = crop_boxes.sample_crop_box(rng, image=(375, 500), size=(321, 321))
"""

import math
from typing import NamedTuple

import numpy as np


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
    target = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    h, w = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
    if 0 < h <= height and 0 < w <= width:
      top = int(rng.integers(0, height - h + 1))
      left = int(rng.integers(0, width - w + 1))
      return Box(top, left, h, w)
  ratio = min(max(width / height, aspect[0]), aspect[1])
  h = min(height, max(round(width / ratio), 1))
  w = min(width, max(round(height * ratio), 1))
  return Box((height - h) // 2, (width - w) // 2, h, w)
