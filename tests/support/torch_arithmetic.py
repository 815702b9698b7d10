"""Torch's layers in numpy, [B,C,H,W] in float64, and weights of torch's names.

Written from the formulas of torch's documentation, a convolution as a loop over
its taps; where torch is installed, a test compares them with torch itself.
"""

import numpy as np


def conv(x, weight, bias=None, stride=1, dilation=1):
  """Convolves, with dilation·(k-1)/2 zeros of padding on both sides."""
  k = weight.shape[-1]
  pad = dilation * (k - 1) // 2
  padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
  height, width = ((n - 1) // stride + 1 for n in x.shape[2:])
  result = np.zeros((len(x), len(weight), height, width))
  for i in range(k):
    for j in range(k):
      rows = slice(i * dilation, i * dilation + stride * (height - 1) + 1)
      columns = slice(j * dilation, j * dilation + stride * (width - 1) + 1)
      tap = padded[:, :, rows, columns][:, :, ::stride, ::stride]
      result += np.einsum('bihw,oi->bohw', tap, weight[:, :, i, j])
  return result if bias is None else result + bias[:, None, None]


def max_pool(x, ceil_mode):
  """Pools 3x3, stride 2, padding 1; windows start in the map or before it."""
  sizes = []
  for n in x.shape[2:]:
    steps = (n + 2 - 3) / 2
    size = int(np.ceil(steps) if ceil_mode else np.floor(steps)) + 1
    sizes.append(size - (2 * (size - 1) >= n + 1))
  result = np.empty((*x.shape[:2], *sizes))
  for i in range(sizes[0]):
    for j in range(sizes[1]):
      rows = slice(max(2 * i - 1, 0), 2 * i + 2)
      columns = slice(max(2 * j - 1, 0), 2 * j + 2)
      result[:, :, i, j] = x[:, :, rows, columns].max((2, 3))
  return result


def depthwise_conv(x, weight, dilation=1):
  """Convolves each channel with its kernel of [C, 1, k, k], as `conv`."""
  maps = [
    conv(x[:, i : i + 1], weight[i : i + 1], dilation=dilation)
    for i in range(len(weight))
  ]
  return np.concatenate(maps, 1)


def resize(x, size, align_corners=True):
  """Resizes bilinearly.

  Cell i reads i·(h-1)/(H-1) with align_corners, (i+½)·h/H - ½ but at least 0
  without.
  """
  for axis, new in zip((2, 3), size, strict=True):
    old = x.shape[axis]
    if align_corners:
      at = np.arange(new) * (old - 1) / (new - 1)
    else:
      at = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
    low = np.floor(at + 1e-9).astype(int)
    share = (at - low).reshape((-1, 1) if axis == 2 else (-1,))
    high = np.minimum(low + 1, old - 1)
    x = (1 - share) * x.take(low, axis) + share * x.take(high, axis)
  return x


class Layers:
  """Applies the layers of a state dict by name.

  In training, `updated` collects running statistics: 0.9 of the old ones plus
  0.1 of the batch's, with the biased variance where torch's is unbiased. Norms
  whose names begin with one of `frozen` are not in training.
  """

  def __init__(self, state, train, frozen=()):
    self.state = {k: np.asarray(v, np.float64) for k, v in state.items()}
    self.train = train
    self.frozen = frozen
    self.updated = {}

  def conv(self, x, name, **steps):
    weight, bias = self.state[f'{name}.weight'], self.state.get(f'{name}.bias')
    return conv(x, weight, bias, **steps)

  def norm(self, x, name):
    weight, bias, mean, var = (
      self.state[f'{name}.{leaf}']
      for leaf in ('weight', 'bias', 'running_mean', 'running_var')
    )
    if self.train and not name.startswith(self.frozen):
      batch_mean, batch_var = x.mean((0, 2, 3)), x.var((0, 2, 3))
      self.updated[f'{name}.running_mean'] = 0.9 * mean + 0.1 * batch_mean
      self.updated[f'{name}.running_var'] = 0.9 * var + 0.1 * batch_var
      mean, var = batch_mean, batch_var
    scale = weight / np.sqrt(var + 1e-5)
    return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]

  def block(self, x, conv, norm, **steps):
    """Applies a convolution, a norm and a ReLU."""
    return np.maximum(self.norm(self.conv(x, conv, **steps), norm), 0)


def resnet_state(
  blocks=(1, 1, 2, 3), width=4, stem='deep', unit='bottleneck', classes=0
):
  """Draws a ResNet's state dict, no value of which is an initial 0 or 1."""
  rng = np.random.default_rng(0)
  state = {}

  def conv(name, size, channels, kernel):
    shape = (size, channels, kernel, kernel)
    state[f'{name}.weight'] = rng.normal(size=shape) / np.sqrt(
      channels * kernel**2
    )

  def norm(name, size):
    state[f'{name}.weight'] = 0.5 + 0.1 * rng.normal(size=size)
    state[f'{name}.bias'] = 0.3 * rng.normal(size=size)
    state[f'{name}.running_mean'] = 0.3 * rng.normal(size=size)
    state[f'{name}.running_var'] = rng.uniform(0.5, 1.5, size=size)
    state[f'{name}.num_batches_tracked'] = np.array(7)

  channels = 2 * width if stem == 'deep' else width
  if stem == 'deep':
    conv('conv1.0', width, 3, 3)
    norm('conv1.1', width)
    conv('conv1.3', width, width, 3)
    norm('conv1.4', width)
    conv('conv1.6', channels, width, 3)
  else:
    conv('conv1', channels, 3, {'plain': 7, 'small': 3}[stem])
  norm('bn1', channels)
  for b, num_units in enumerate(blocks):
    size = width * 2**b
    # Channels and kernel of each convolution.
    layers = [(size, 1), (size, 3), (4 * size, 1)]
    if unit == 'basic':
      layers = [(size, 3), (size, 3)]
    for u in range(num_units):
      name, before = f'layer{b + 1}.{u}', channels
      for i, (outputs, kernel) in enumerate(layers, 1):
        conv(f'{name}.conv{i}', outputs, channels, kernel)
        norm(f'{name}.bn{i}', outputs)
        channels = outputs
      # The first unit of a block strides or changes the channels.
      if u == 0 and (b > 0 or before != channels):
        conv(f'{name}.downsample.0', channels, before, 1)
        norm(f'{name}.downsample.1', channels)
  if classes:
    state['fc.weight'] = rng.normal(size=(classes, channels))
    state['fc.bias'] = rng.normal(size=classes)
  return {
    name: value if value.ndim == 0 else value.astype(np.float32)
    for name, value in state.items()
  }
