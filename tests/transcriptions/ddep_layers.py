"""Layers of DDeP's networks in plain numpy, as a reference for tests.

Transcribed from the specification (cited as §) and from nothing else. float64
throughout, NHWC, kernels HWIO. Nothing is random: dropout is off.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import special

Weights = Mapping[str, np.ndarray]


def same_padding(n: int, kernel: int, stride: int) -> tuple[int, int]:
  """Computes TF's 'SAME' padding (low, high) of an axis of n cells (§1.1)."""
  total = max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
  return total // 2, total - total // 2


def _padded(x, kernel, stride, padding, value):
  """Pads H and W, as TF's 'same' or by an int on every side."""
  if padding == 'same':
    rows = same_padding(x.shape[1], kernel[0], stride)
    columns = same_padding(x.shape[2], kernel[1], stride)
  else:
    rows = columns = (padding, padding)
  return np.pad(x, ((0, 0), rows, columns, (0, 0)), constant_values=value)


def conv2d(
  x: np.ndarray,
  kernel: np.ndarray,
  bias: np.ndarray | None = None,
  *,
  stride: int = 1,
  padding: str | int = 'same',
) -> np.ndarray:
  """Cross-correlates (B, H, W, I) with (h, w, I, O), as a matrix product."""
  height, width, inputs, outputs = kernel.shape
  x = _padded(x, (height, width), stride, padding, 0.0)
  windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), (1, 2))
  windows = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
  flat = kernel.reshape(height * width * inputs, outputs)
  result = np.stack(
    [image.reshape(-1, flat.shape[0]) @ flat for image in windows]
  ).reshape(*windows.shape[:3], outputs)
  return result if bias is None else result + bias


def max_pool(
  x: np.ndarray,
  size: int = 3,
  stride: int = 2,
  *,
  padding: str | int = 'same',
  value: float = -np.inf,
) -> np.ndarray:
  """Computes the maximum of each window, with `value` as padding."""
  x = _padded(x, (size, size), stride, padding, value)
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
  return windows[:, ::stride, ::stride].max((-2, -1))


def standardize(
  kernel: np.ndarray, eps: float = 1e-5, eps_on: str = 'std'
) -> np.ndarray:
  """Standardizes each output channel by its mean and biased std (§1.1).

  Args:
    kernel: (H, W, I, O).
    eps: 1e-5 on the std (ViT, §1.1), 1e-10 on the variance (BiT, §3.2).
    eps_on: 'std' divides by std + eps, 'var' by sqrt(var + eps).
  """
  mean = kernel.mean((0, 1, 2))
  var = ((kernel - mean) ** 2).mean((0, 1, 2))
  divisor = {
    'std': lambda: np.sqrt(var) + eps,
    'var': lambda: np.sqrt(var + eps),
  }[eps_on]()
  return (kernel - mean) / divisor


def group_norm(
  x: np.ndarray,
  scale: np.ndarray,
  bias: np.ndarray,
  groups: int = 32,
  eps: float = 1e-6,
) -> np.ndarray:
  """Normalizes over H, W and the channels of a group (§1.1)."""
  batch, height, width, channels = x.shape
  if channels % groups:
    raise ValueError(
      f'expected a multiple of {groups} channels, got {channels}'
    )
  x = x.reshape(batch, height, width, groups, channels // groups)
  mean = x.mean((1, 2, 4), keepdims=True)
  var = ((x - mean) ** 2).mean((1, 2, 4), keepdims=True)
  x = ((x - mean) / np.sqrt(var + eps)).reshape(batch, height, width, channels)
  return x * scale.ravel() + bias.ravel()


def layer_norm(
  x: np.ndarray, scale: np.ndarray, bias: np.ndarray, eps: float = 1e-6
) -> np.ndarray:
  """Normalizes over the last axis (§1.3)."""
  mean = x.mean(-1, keepdims=True)
  var = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + eps) * scale + bias


def relu(x: np.ndarray) -> np.ndarray:
  """Computes max(x, 0) of each element."""
  return np.maximum(x, 0.0)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
  """Computes the tanh approximation of GELU, Flax's default (§1.3)."""
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x: np.ndarray) -> np.ndarray:
  """Computes the exact GELU of timm and TransUNet (§1.6)."""
  return 0.5 * x * (1 + special.erf(x / np.sqrt(2)))


def softmax(x: np.ndarray) -> np.ndarray:
  """Computes the softmax over the last axis."""
  powers = np.exp(x - x.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def attention(x: np.ndarray, weights: Weights) -> np.ndarray:
  """Computes self-attention of (B, T, D); weights 'query/kernel' … (§1.3)."""
  query, key, value = (
    (
      np.tensordot(x, weights[f'{name}/kernel'], 1) + weights[f'{name}/bias']
    ).transpose(0, 2, 1, 3)  # B, heads, T, head size
    for name in ('query', 'key', 'value')
  )
  scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
  mixed = (softmax(scores) @ value).transpose(0, 2, 1, 3)
  return np.tensordot(mixed, weights['out/kernel'], 2) + weights['out/bias']


def _interpolation(old: int, new: int, aligned: bool) -> np.ndarray:
  """Returns the matrix (new, old) of linear interpolation, edges repeated."""
  index = np.arange(new)
  if aligned:
    at = index * ((old - 1) / (new - 1) if new > 1 else 0.0)
  else:
    at = np.clip((index + 0.5) * (old / new) - 0.5, 0, old - 1)
  low = np.minimum(np.floor(at).astype(int), max(old - 2, 0))
  matrix = np.zeros((new, old))
  matrix[index, low] += 1 - (at - low)
  matrix[index, np.minimum(low + 1, old - 1)] += at - low
  return matrix


def resize(
  images: np.ndarray, size: tuple[int, int], aligned: bool = False
) -> np.ndarray:
  """Resizes (B, H, W, C) bilinearly, without antialiasing (§1.3, §1.4).

  Args:
    images: the maps.
    size: new height and width.
    aligned: whether corners are aligned; else centers are half pixels, as in
      `jax.image.resize`'s upsampling.
  """
  rows = _interpolation(images.shape[1], size[0], aligned)
  columns = _interpolation(images.shape[2], size[1], aligned)
  images = np.tensordot(images, rows, (1, 1))  # B, W, C, new H
  images = np.tensordot(images, columns, (1, 1))  # B, C, new H, new W
  return images.transpose(0, 2, 3, 1)


def resize_positions(
  table: np.ndarray,
  grid: tuple[int, int],
  *,
  old_grid: tuple[int, int] | None = None,
  class_token: bool = True,
) -> np.ndarray:
  """Resizes a position table (1, [1 +] gh gw, D) to another grid (§1.3).

  Args:
    table: row-major; the first row is the class token's, if there is one.
    grid: new height and width, in tokens.
    old_grid: stored height and width; None for a square.
    class_token: whether the first row is a class token's, which is kept.
  """
  table = np.asarray(table, np.float64)
  first, rest = np.split(table, [int(class_token)], 1)
  side = math.isqrt(rest.shape[1])
  old_grid = old_grid or (side, side)
  rest = rest.reshape(1, *old_grid, -1)
  rest = resize(rest, grid, aligned=True)
  return np.concatenate([first, rest.reshape(1, grid[0] * grid[1], -1)], 1)
