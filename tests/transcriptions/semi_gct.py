"""Numpy transcription of GCT (float64), for the tests.

Written from the specification of the baselines, §4. Labels are integers,
negative = ignored. Maps are [B,H,W].

§4.1  split_norm(x, scale, bias)            batch norm and instance norm
      detector(params, inputs)              [B,H,W], in training mode
§4.2  odd(n), blur(maps, size), widest(maps)
      target(labels, probs), handled(maps)
      consistency(probs, handled, xi)       both targets, and both bad
§4.3  ramp(step, steps)
"""

import math

import numpy as np
from scipy import ndimage

from tests.transcriptions import u2pl

# Channels as a multiple of the width, and stride.
LAYERS = [(1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1)]


def conv4(x, kernel, bias, stride):
  """Computes a 4x4 convolution with padding 1."""
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  rows, columns = ((n - 4) // stride + 1 for n in x.shape[1:3])
  result = np.zeros((len(x), rows, columns, kernel.shape[-1])) + bias
  for i in range(4):
    for j in range(4):
      part = x[:, i::stride, j::stride][:, :rows, :columns]
      result += part @ kernel[i, j]
  return result


def split_norm(x, scale, bias):
  """Normalizes the first half over the batch, the second one in each image."""
  half = x.shape[-1] // 2
  first, second = x[..., :half], x[..., half:]
  mean, var = first.mean((0, 1, 2)), first.var((0, 1, 2))
  first = (first - mean) / np.sqrt(var + 1e-5) * scale + bias
  mean, var = (f(axis=(1, 2), keepdims=True) for f in (second.mean, second.var))
  return np.concatenate([first, (second - mean) / np.sqrt(var + 1e-5)], -1)


def detector(params, images, probs):
  """Computes the flaw map of the prediction for images in [-1, 1]."""
  pixels = (images + 1) * 127.5 / 255
  standard = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  x = np.concatenate([standard, probs], -1)
  layers = LAYERS[: sum(name.startswith('conv') for name in params)]
  for i, (_, stride) in enumerate(layers, 1):
    own = params[f'conv{i}']
    x = conv4(x, own['kernel'], own['bias'], stride)
    own = params[f'norm{i}']['bn']
    x = split_norm(x, own['scale'], own['bias'])
    x = np.where(x > 0, x, 0.2 * x)
  own = params['scores']
  return conv4(x, own['kernel'], own['bias'], 2)


def odd(n):
  """Rounds down, and up to the next odd number."""
  return int(n) + (int(n) % 2 == 0)


def blur(maps, size):
  """Filters by the Gaussian of a unit impulse, after reflection padding."""
  sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
  kernel = np.zeros((size, size))
  kernel[size // 2, size // 2] = 1
  kernel = ndimage.gaussian_filter(kernel, sigma)
  pad = size // 2
  framed = np.pad(maps, ((0, 0), (pad, pad), (pad, pad)), mode='reflect')
  result = np.zeros(maps.shape)
  for i in range(size):
    for j in range(size):
      part = framed[:, i : i + maps.shape[1], j : j + maps.shape[2]]
      result += kernel[i, j] * part
  return result


def widest(maps):
  """Takes the largest of 3x3 after reflection padding."""
  framed = np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode='reflect')
  parts = [
    framed[:, i : i + maps.shape[1], j : j + maps.shape[2]]
    for i in range(3)
    for j in range(3)
  ]
  return np.max(parts, axis=0)


def target(labels, probs):
  """Computes the target of the flaw detector."""
  height = labels.shape[1]
  flaws = np.zeros(labels.shape)
  for pixel in np.ndindex(labels.shape):
    one_hot = np.zeros(probs.shape[-1])
    if labels[pixel] >= 0:
      one_hot[labels[pixel]] = 1
    flaws[pixel] = 0.5 * np.abs(one_hot - probs[pixel]).sum()
  flaws = blur(widest(blur(flaws, odd(height / 8))), odd(height / 4))
  return np.stack([(x - x.min()) / (x.max() - x.min() + 1e-9) for x in flaws])


def handled(maps):
  """Handles a predicted flaw map."""
  result = blur(np.maximum(maps, 0), odd(maps.shape[1] / 16))
  for image in result:
    low, high = image.min(), image.max()
    if high <= 0.1:
      image[:] = 0
    image[:] = (image - low) / (high - low + 1e-9)
  return result


def consistency(probs, flaws, xi=0.6):
  """Computes the targets of both networks, and where both are bad."""
  left, right = probs
  left_target, right_target = left.copy(), right.copy()
  both_bad = np.zeros(flaws[0].shape, bool)
  for pixel in np.ndindex(both_bad.shape):
    ours, theirs = flaws[0][pixel], flaws[1][pixel]
    both_bad[pixel] = ours > xi and theirs > xi
    ours, theirs = (1 if f > xi else f for f in (ours, theirs))
    left_target[pixel] = left[pixel] if theirs >= ours else right[pixel]
    right_target[pixel] = right[pixel] if ours >= theirs else left[pixel]
  return (left_target, right_target), both_bad


def ramp(step, steps):
  """Computes exp(-5 (1 - t/T)^2)."""
  return math.exp(-5 * (1 - min(step / steps, 1)) ** 2)


def upsampled(scores, size):
  """Resizes the detector's scores with aligned corners, to [B,H,W]."""
  return u2pl.bilinear(scores, size)[..., 0]
