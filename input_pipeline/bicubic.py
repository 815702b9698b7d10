"""Bicubic resizing of images by TensorFlow's rules, without antialiasing.

view = bicubic.resize_image_bicubic(image, (224, 224), 'half_pixel')

Four pixels along each axis are weighted by Keys' kernel, at positions that are
rounded to 1/1024 pixel, whatever the scale is. Source: `ResizeBicubic` in
tensorflow/core/kernels/image/resize_bicubic_op.cc.
"""

from typing import Literal

import numpy as np
from etils import epy
from jaxtyping import Float32, Int, Shaped, UInt8

with epy.lazy_imports():
  import cv2

# 'legacy': output pixel i lies at i · in / out, a is -0.75, and pixels at the
# border are repeated (tf.compat.v1.image.resize_bicubic, as in SimCLR).
# 'half_pixel': it lies at (i + ½) · in / out - ½, a is -0.5, and weights of
# pixels outside are left out (tf.image.resize, as in BYOL).
Grid = Literal['legacy', 'half_pixel']

# Positions in a pixel that TensorFlow's table of weights has.
_TABLE_SIZE = 1024
# Output rows that are computed at once.
_BLOCK = 32
# Pixels that are read, from the one before the position on.
_OFFSETS = np.arange(-1, 3)


def resize_image_bicubic(
  image: UInt8[np.ndarray, 'H W 3'], size: tuple[int, int], grid: Grid
) -> UInt8[np.ndarray, 'h w 3']:
  """Resizes an image bicubically, without antialiasing.

  Values are rounded to bytes and clipped: those of TensorFlow are floats, which
  overshoot at edges.

  Args:
    image: RGB image.
    size: (height, width) of the output in pixels.
    grid: positions of the output's pixels, kernel and border.
  """
  indices, weights = cubic_taps(image.shape[0], size[0], grid)
  columns = cubic_taps(image.shape[1], size[1], grid)
  image = np.ascontiguousarray(image)  # A crop is a view of its image.
  out = np.empty((*size, 3), np.uint8)
  # In blocks, which stay in a cache: large arrays take twice the time.
  for start in range(0, size[0], _BLOCK):
    part = slice(start, start + _BLOCK)
    block = _mix_rows(image, indices[part], weights[part])
    block = cv2.transpose(_mix_rows(cv2.transpose(block), *columns))
    np.rint(block, out=block)
    out[part] = np.clip(block, 0, 255, out=block)
  return out


def _mix_rows(
  pixels: Shaped[np.ndarray, 'H W 3'],
  indices: Int[np.ndarray, 'n 4'],
  weights: Float32[np.ndarray, 'n 4'],
) -> Float32[np.ndarray, 'n W 3']:
  """Computes sums of four rows each, by their weights."""
  read = pixels.reshape(len(pixels), -1)[indices]
  # A product for each row takes half the time of sums of scaled arrays.
  mixed = np.matmul(weights[:, None], read.astype(np.float32, copy=False))
  return mixed.reshape(len(indices), -1, 3)


def cubic_taps(
  old: int, new: int, grid: Grid
) -> tuple[Int[np.ndarray, 'n 4'], Float32[np.ndarray, 'n 4']]:
  """Computes the pixels that each output pixel reads, and their weights.

  Args:
    old: number of pixels of the input along an axis.
    new: number of pixels n of the output.
    grid: positions of the output's pixels, kernel and border.

  Returns:
    Indices in [0, old), and weights with a sum of 1.
  """
  # In float32, as in TensorFlow.
  shift = np.float32(0.5 if grid == 'half_pixel' else 0.0)
  scale = np.float32(old) / np.float32(new)
  positions = (np.arange(new, dtype=np.float32) + shift) * scale - shift
  first = np.floor(positions)
  fractions = np.rint((positions - first) * _TABLE_SIZE) / _TABLE_SIZE
  weights = _cubic_kernel(
    np.abs(fractions[:, None] - _OFFSETS), -0.5 if shift else -0.75
  )
  indices = first.astype(int)[:, None] + _OFFSETS
  inside = np.clip(indices, 0, old - 1)
  if grid == 'half_pixel':
    weights = np.where(inside == indices, weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
  return inside, weights.astype(np.float32)


def _cubic_kernel(distances: np.ndarray, a: float) -> np.ndarray:
  """Computes Keys' cubic convolution kernel at distances from 0 to 2."""
  near = ((a + 2) * distances - (a + 3)) * distances**2 + 1
  far = a * (((distances - 5) * distances + 8) * distances - 4)
  return np.where(distances <= 1, near, far)
