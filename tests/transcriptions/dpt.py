"""The decoder of UniMatch V2's dense prediction transformer in numpy.

Transcribed from its list of layers, in float64, one image and one cell at a
time. Weights have torch's axes: [D_out, D, 3, 3] of convolutions, [D, D_out, s,
s] of transposed ones.
"""

import numpy as np

from tests.transcriptions import convolution


def _relu(x):
  return np.maximum(x, 0)


def _transposed_conv(x, weight, bias):
  """Adds each cell, times the kernel, to the cells from stride·(i, j) on."""
  side = weight.shape[-1]
  height, width = x.shape[:2]
  result = np.zeros((side * height, side * width, weight.shape[1])) + bias
  for i in range(height):
    for j in range(width):
      for a in range(side):
        for b in range(side):
          result[side * i + a, side * j + b] += x[i, j] @ weight[:, :, a, b]
  return result


def _resize(x, size):
  """Resizes bilinearly; the corner cells of both grids coincide."""
  result = np.empty((*size, x.shape[-1]))
  for i in range(size[0]):
    for j in range(size[1]):
      y = i * (x.shape[0] - 1) / (size[0] - 1) if size[0] > 1 else 0
      z = j * (x.shape[1] - 1) / (size[1] - 1) if size[1] > 1 else 0
      top, left = int(y), int(z)
      bottom = min(top + 1, x.shape[0] - 1)
      right = min(left + 1, x.shape[1] - 1)
      dy, dz = y - top, z - left
      result[i, j] = (1 - dy) * (
        (1 - dz) * x[top, left] + dz * x[top, right]
      ) + dy * ((1 - dz) * x[bottom, left] + dz * x[bottom, right])
  return result


def _residual_unit(x, unit):
  y = convolution.convolve(_relu(x), *unit['conv1'])
  return convolution.convolve(_relu(y), *unit['conv2']) + x


def decode(maps, weights):
  """Computes the results of the fusion blocks and of the last 3x3 with ReLU.

  Args:
    maps: four arrays [h, w, D], after blocks 2, 5, 8 and 11.
    weights: (weight, bias) of each layer by the names of `dpt.DPT`.

  Returns:
    List of the results of the blocks, from deep to shallow, of which the last
    one has passed through the 3x3.
  """
  levels = []
  for i, x in enumerate(maps):
    x = convolution.convolve(x, *weights[f'project{i}'])
    if i in (0, 1):
      x = _transposed_conv(x, *weights[f'resize{i}'])
    if i == 3:
      x = convolution.convolve(x, *weights[f'resize{i}'], stride=2)
    levels.append(convolution.convolve(x, *weights[f'adapt{i}']))
  results, x = [], levels[3]
  for i in (3, 2, 1, 0):
    block = weights[f'fusion{4 - i}']
    if i < 3:
      x = x + _residual_unit(levels[i], block['skip_unit'])
    x = _residual_unit(x, block['unit'])
    height, width = x.shape[:2]
    size = levels[i - 1].shape[:2] if i else (2 * height, 2 * width)
    x = convolution.convolve(_resize(x, size), *block['conv'])
    results.append(x)
  results[-1] = _relu(convolution.convolve(x, *weights['conv']))
  return results
