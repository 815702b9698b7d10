"""Boxes of random crops: places and sizes, apart from any pixels."""

import math
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
  """A rectangle in pixels, which may extend outside of the image."""

  top: int
  left: int
  height: int
  width: int


def sample_crop(
  rng: np.random.Generator, image: tuple[int, int], size: tuple[int, int]
) -> Box:
  """Samples the place of a box of `size`, uniformly inside of the image.

  Along an axis where the image is smaller than the box, the image is placed
  uniformly inside of the box.
  """
  top, left = (
    int(rng.integers(min(n - m, 0), max(n - m, 0) + 1))
    for n, m in zip(image, size, strict=True)
  )
  return Box(top, left, *size)


def sample_centered_crop(
  rng: np.random.Generator, image: tuple[int, int], size: tuple[int, int]
) -> Box:
  """Samples the place of a box of `size`, uniformly inside of the image.

  Along an axis where the image is smaller than the box, the image is centered
  in it; of an odd number of padding pixels, the smaller half comes first.
  """
  top, left = (
    -((m - n) // 2) if n < m else int(rng.integers(0, n - m + 1))
    for n, m in zip(image, size, strict=True)
  )
  return Box(top, left, *size)


def sample_inception_box(
  rng: np.random.Generator,
  image: tuple[int, int],
  area: tuple[float, float],
  aspect: tuple[float, float],
  attempts: int = 10,
) -> Box:
  """Samples a box of random area and log-uniform aspect ratio.

  If no attempt fits into the image, it is the largest centered box whose aspect
  ratio is in the range.

  Args:
    rng: random generator.
    image: (height, width) in pixels.
    area: range of the fraction of the image's area.
    aspect: range of width / height.
    attempts: number of boxes that are tried.
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
