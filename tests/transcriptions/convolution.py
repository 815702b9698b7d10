"""A convolution in numpy, cell by cell, for transcriptions of networks."""

import numpy as np


def convolve(x, weight, bias, stride=1, padding=None):
  """Convolves [h, w, D] with kernels of torch, [D_out, D, k, k].

  Args:
    x: map.
    weight: kernels.
    bias: bias, [D_out].
    stride: stride of rows and columns.
    padding: zeros on each side; None for half of the kernel.
  """
  side = weight.shape[-1]
  pad = side // 2 if padding is None else padding
  padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
  height, width = ((n + 2 * pad - side) // stride + 1 for n in x.shape[:2])
  result = np.empty((height, width, len(weight)))
  for i in range(height):
    for j in range(width):
      top, left = i * stride, j * stride
      window = padded[top : top + side, left : left + side]
      result[i, j] = np.einsum('abi,oiab->o', window, weight) + bias
  return result
