"""MiT in numpy, as a reference for tests.

Transcribed from the published layers in float64, one image and one head at a
time. Weights have the names of SegFormer's files.
"""

import numpy as np
from scipy import special

from tests.transcriptions import convolution

MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])


def _depthwise(x, weight, bias):
  """Convolves each channel of [H, W, C] with its 3x3 of [C, 1, 3, 3]."""
  padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
  result = np.empty_like(x)
  for i in range(x.shape[0]):
    for j in range(x.shape[1]):
      window = padded[i : i + 3, j : j + 3]
      result[i, j] = np.einsum('ijc,cij->c', window, weight[:, 0]) + bias
  return result


def _weights(state, name):
  return state[f'{name}.weight'], state[f'{name}.bias']


def _linear(x, state, name):
  weight, bias = _weights(state, name)
  return x @ weight.T + bias


def _norm(x, state, name, epsilon):
  weight, bias = _weights(state, name)
  mean = x.mean(axis=-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + epsilon) * weight + bias


def attention(x, state, name, heads, reduction):
  """Computes the attention of tokens of [h, w, C], and its raw scores."""
  size = x.shape[-1]
  width = size // heads
  query = _linear(x.reshape(-1, size), state, f'{name}.q')
  if reduction > 1:
    x = convolution.convolve(x, *_weights(state, f'{name}.sr'), reduction, 0)
    x = _norm(x, state, f'{name}.norm', 1e-5)
  both = _linear(x.reshape(-1, size), state, f'{name}.kv')
  keys, values = both[:, :size], both[:, size:]
  outputs, scores = [], []
  for h in range(heads):
    part = slice(h * width, (h + 1) * width)
    scores.append(query[:, part] @ keys[:, part].T)
    weights = np.exp(scores[-1] / np.sqrt(width))
    weights /= weights.sum(axis=1, keepdims=True)
    outputs.append(weights @ values[:, part])
  mixed = np.concatenate(outputs, axis=1)
  return _linear(mixed, state, f'{name}.proj'), np.stack(scores)


def mlp(x, state, name):
  """Computes the perceptron of tokens of [h, w, C]."""
  x = _linear(x, state, f'{name}.fc1')
  x = _depthwise(x, *_weights(state, f'{name}.dwconv.dwconv'))
  x = x * 0.5 * (1 + special.erf(x / np.sqrt(2)))
  return _linear(x, state, f'{name}.fc2')


def branches(state, name, heads, reduction):
  """Returns both residual branches of a block, functions of its map."""

  def attend(x):
    y = _norm(x, state, f'{name}.norm1', 1e-6)
    y, _ = attention(y, state, f'{name}.attn', heads, reduction)
    return y.reshape(x.shape)

  def perceive(x):
    y = _norm(x, state, f'{name}.norm2', 1e-6)
    return mlp(y, state, f'{name}.mlp')

  return attend, perceive


def encode(image, state, *, heads, layers, strides, reductions):
  """Computes the maps of all stages, and the raw scores of the last block.

  Args:
    image: [H, W, 3] of 0 to 255.
    state: array by name.
    heads: attention heads of each stage.
    layers: blocks of each stage.
    strides: stride of the patches of each stage.
    reductions: reduction of the keys and values in each stage.

  Returns:
    The maps [h, w, C], and scores [heads, tokens, reduced tokens].
  """
  state = {name: np.asarray(x, np.float64) for name, x in state.items()}
  x, maps, scores = (image - MEAN) / STD, [], None
  for s, num_blocks in enumerate(layers, 1):
    x = convolution.convolve(
      x,
      *_weights(state, f'patch_embed{s}.proj'),
      strides[s - 1],
      3 if s == 1 else 1,
    )
    x = _norm(x, state, f'patch_embed{s}.norm', 1e-5)
    for i in range(num_blocks):
      name = f'block{s}.{i}'
      arguments = heads[s - 1], reductions[s - 1]
      y = _norm(x, state, f'{name}.norm1', 1e-6)
      _, scores = attention(y, state, f'{name}.attn', *arguments)
      for branch in branches(state, name, *arguments):
        x = x + branch(x)
    x = _norm(x, state, f'norm{s}', 1e-6)
    maps.append(x)
  return maps, scores
