"""A plain vision transformer in numpy, as a reference for tests.

Transcribed from the equations of the papers, in float64, one image and one head
at a time. Weights have the names of DINO's and DINOv2's files.
"""

import numpy as np
from scipy import special

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def _linear(x, state, name):
  bias = state.get(f'{name}.bias', 0.0)
  return x @ state[f'{name}.weight'].T + bias


def _layer_norm(x, state, name, epsilon):
  mean = x.mean(axis=-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
  normalized = (x - mean) / np.sqrt(variance + epsilon)
  return normalized * state[f'{name}.weight'] + state[f'{name}.bias']


def _attention(x, state, name, heads):
  size = x.shape[-1]
  width = size // heads
  qkv = _linear(x, state, f'{name}.qkv')
  outputs = []
  for h in range(heads):
    query, key, value = (
      qkv[:, part * size + h * width : part * size + (h + 1) * width]
      for part in range(3)
    )
    scores = np.exp(query @ key.T / np.sqrt(width))
    outputs.append(scores / scores.sum(axis=1, keepdims=True) @ value)
  return _linear(np.concatenate(outputs, axis=1), state, f'{name}.proj')


def _mlp(x, state, name):
  x = _linear(x, state, f'{name}.fc1')
  x = x * 0.5 * (1 + special.erf(x / np.sqrt(2)))
  return _linear(x, state, f'{name}.fc2')


def _patches(image, weight, bias):
  """Multiplies each patch with the kernels [D, 3, p, p]; [h, w, D]."""
  side = weight.shape[-1]
  height, width = image.shape[0] // side, image.shape[1] // side
  result = np.empty((height, width, len(weight)))
  for i in range(height):
    for j in range(width):
      patch = image[i * side : (i + 1) * side, j * side : (j + 1) * side]
      for d, kernel in enumerate(weight):
        result[i, j, d] = (kernel.transpose(1, 2, 0) * patch).sum() + bias[d]
  return result


def features(image, state, *, heads, epsilon=1e-6, resize=None):
  """Computes the normalized patch tokens after each block.

  Args:
    image: [H, W, 3] in [0, 1].
    state: array by name.
    heads: number of attention heads.
    epsilon: constant added to the variance of norms.
    resize: function of a table [g, g, D] and a size to a table of that size.

  Returns:
    Array [blocks, h, w, D].
  """
  state = {name: np.asarray(x, np.float64) for name, x in state.items()}
  cells = _patches(
    (image - MEAN) / STD,
    state['patch_embed.proj.weight'],
    state['patch_embed.proj.bias'],
  )
  height, width, size = cells.shape
  table = state['pos_embed'][0]
  side = int(np.sqrt(len(table) - 1))
  positions = table[1:].reshape(side, side, size)
  if resize is not None:
    positions = resize(positions, (height, width))
  registers = state.get('register_tokens', np.zeros((1, 0, size)))[0]
  x = np.concatenate(
    [
      state['cls_token'][0] + table[:1],
      registers,
      (cells + positions).reshape(-1, size),
    ]
  )
  results = []
  num_blocks = len({name.split('.')[1] for name in state if '.norm1.' in name})
  for i in range(num_blocks):
    name = f'blocks.{i}'
    y = _layer_norm(x, state, f'{name}.norm1', epsilon)
    y = _attention(y, state, f'{name}.attn', heads)
    x = x + state.get(f'{name}.ls1.gamma', 1.0) * y
    y = _layer_norm(x, state, f'{name}.norm2', epsilon)
    x = x + state.get(f'{name}.ls2.gamma', 1.0) * _mlp(y, state, f'{name}.mlp')
    cells = _layer_norm(x, state, 'norm', epsilon)[1 + len(registers) :]
    results.append(cells.reshape(height, width, size))
  return np.stack(results)
