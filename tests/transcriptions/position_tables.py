"""Resizing of position tables in loops over cells, as a reference for tests.

Transcribed from the formulas of torch's bicubic interpolation, plain and
antialiased, and from how DINO, timm and transformers call it. float64.
"""

import math

import numpy as np


def _coefficients(t):
  """Weights of the four cells around a point, t in [0, 1) after the second."""
  a = -0.75

  def convolution1(x):  # Of cells at a distance up to 1.
    return ((a + 2) * x - (a + 3)) * x * x + 1

  def convolution2(x):  # Of cells at a distance from 1 to 2.
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

  return (
    convolution2(t + 1),
    convolution1(t),
    convolution1(1 - t),
    convolution2(2 - t),
  )


def bicubic(grid, size, scales):
  """Interpolates [h, w, D]; output cell i reads (i + 1/2)·scale - 1/2."""
  height, width = grid.shape[:2]
  result = np.zeros((*size, grid.shape[2]))
  for i in range(size[0]):
    y = scales[0] * (i + 0.5) - 0.5
    for j in range(size[1]):
      x = scales[1] * (j + 0.5) - 0.5
      for m, v in enumerate(_coefficients(y - math.floor(y))):
        row = min(max(math.floor(y) - 1 + m, 0), height - 1)
        for n, u in enumerate(_coefficients(x - math.floor(x))):
          column = min(max(math.floor(x) - 1 + n, 0), width - 1)
          result[i, j] += v * u * grid[row, column]
  return result


def _keys(x):
  a, x = -0.5, abs(x)
  if x < 1:
    return ((a + 2) * x - (a + 3)) * x * x + 1
  if x < 2:
    return (((x - 5) * x + 8) * x - 4) * a
  return 0.0


def _antialiased_axis(grid, size):
  """Resizes the first axis, with a kernel that widens where it shrinks."""
  old = len(grid)
  scale = old / size
  support = 2 * max(scale, 1.0)
  result = np.zeros((size, *grid.shape[1:]))
  for i in range(size):
    center = scale * (i + 0.5)
    first = max(int(center - support + 0.5), 0)
    last = min(int(center + support + 0.5), old)
    weights = [
      _keys((k - center + 0.5) / max(scale, 1.0)) for k in range(first, last)
    ]
    for k, weight in zip(range(first, last), weights, strict=True):
      result[i] += weight / sum(weights) * grid[k]
  return result


def dino(grid, size):
  """DINO's and DINOv2's: scale factors of (h + 0.1)/g, not antialiased."""
  if grid.shape[:2] == size:
    return grid
  factors = [
    (new + 0.1) / old for new, old in zip(size, grid.shape, strict=False)
  ]
  return bicubic(grid, size, [1 / factor for factor in factors])


def timm(grid, size):
  """timm's, and DINOv2's with registers: to a size, antialiased."""
  rows = _antialiased_axis(grid, size[0])
  return _antialiased_axis(rows.swapaxes(0, 1), size[1]).swapaxes(0, 1)


def huggingface(grid, size):
  """Transformers': to a size, not antialiased."""
  return bicubic(
    grid, size, [old / new for new, old in zip(size, grid.shape, strict=False)]
  )
