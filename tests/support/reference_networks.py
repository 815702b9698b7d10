"""ResNet, hybrid transformer and U-Net in numpy, as a reference for tests.

Written from the papers' lists of layers, in float64, sharing nothing with the
tested code: a convolution is a loop over its taps.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import decoder_cases


def draw_params(module, *args, seed=0):
  """Draws parameters of a module, none of them 0 or 1 as initial ones are."""
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
  shapes = shapes['params']
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'scale':
      value = 1 + 0.3 * rng.normal(size=leaf.shape)
    elif name == 'kernel':
      fan_in = leaf.size / leaf.shape[-1]
      value = rng.normal(size=leaf.shape) / np.sqrt(fan_in) + 0.01
    else:
      value = 0.3 * rng.normal(size=leaf.shape)
    return jax.device_put(value.astype(leaf.dtype))

  return jax.tree_util.tree_map_with_path(draw, shapes)


def draw_images(height, width, batch=2):
  rng = np.random.default_rng(height + width)
  images = rng.uniform(-1, 1, (batch, height, width, 3))
  return jax.device_put(np.float32(images))


def count_parameters(shapes):
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _relu(x):
  return np.maximum(x, 0)


def _pad_same(x, kernel, stride, value):
  pads = [(0, 0)]
  for n in x.shape[1:3]:
    total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
    pads.append((total // 2, total - total // 2))
  return np.pad(x, [*pads, (0, 0)], constant_values=value)


def _taps(x, kernel, stride, value):
  """Yields the part of the padded map that each tap of a kernel reads."""
  height, width = (-(-n // stride) for n in x.shape[1:3])
  padded = _pad_same(x, kernel, stride, value)
  for i in range(kernel):
    for j in range(kernel):
      rows = slice(i, i + stride * (height - 1) + 1, stride)
      columns = slice(j, j + stride * (width - 1) + 1, stride)
      yield (i, j), padded[:, rows, columns]


def conv(x, kernel, stride=1):
  kernel = np.asarray(kernel, np.float64)
  return sum(
    np.einsum('bhwi,io->bhwo', tap, kernel[at])
    for at, tap in _taps(x, kernel.shape[0], stride, 0.0)
  )


def _std_conv(x, params, stride=1, epsilon=1e-5):
  kernel = np.asarray(params['kernel'], np.float64)
  standard = np.empty_like(kernel)
  for o in range(kernel.shape[-1]):
    one = kernel[..., o]
    standard[..., o] = (one - one.mean()) / (one.std() + epsilon)
  return conv(x, standard, stride)


def _group_norm(x, params, num_groups, epsilon=1e-6):
  result = np.empty_like(x)
  for b in range(len(x)):
    for g in np.split(np.arange(x.shape[-1]), num_groups):
      group = x[b][..., g]
      result[b][..., g] = (group - group.mean()) / np.sqrt(
        group.var() + epsilon
      )
  return result * np.asarray(params['scale']) + np.asarray(params['bias'])


def _max_pool(x):
  return np.max([tap for _, tap in _taps(x, 3, 2, -np.inf)], axis=0)


def resnet(images, params, blocks, num_groups, conv_epsilon=1e-5):
  def conv(x, params, stride=1):
    return _std_conv(x, params, stride, conv_epsilon)

  def norm(x, params):
    return _group_norm(x, params, num_groups)

  x = conv(np.asarray(images, np.float64), params['conv_root'], 2)
  x = _relu(norm(x, params['gn_root']))
  maps = {'root': x}
  x = _max_pool(x)
  for b, num_units in enumerate(blocks, 1):
    for u in range(1, num_units + 1):
      p = params[f'block{b}'][f'unit{u}']
      stride = 2 if u == 1 and b > 1 else 1
      shortcut = x
      if u == 1:
        shortcut = norm(conv(x, p['conv_proj'], stride), p['gn_proj'])
      x = _relu(norm(conv(x, p['conv1']), p['gn1']))
      x = _relu(norm(conv(x, p['conv2'], stride), p['gn2']))
      x = _relu(shortcut + norm(conv(x, p['conv3']), p['gn3']))
    maps[f'block{b}'] = x
  return maps


def _layer_norm(x, params):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  x = (x - mean) / np.sqrt(variance + 1e-6)
  return x * np.asarray(params['scale']) + np.asarray(params['bias'])


def _gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _attention(x, params):
  kernels = {k: np.asarray(v['kernel'], np.float64) for k, v in params.items()}
  biases = {k: np.asarray(v['bias'], np.float64) for k, v in params.items()}
  result = np.zeros_like(x) + biases['out']
  for b in range(len(x)):
    for head in range(kernels['query'].shape[1]):
      q, k, v = (
        x[b] @ kernels[name][:, head] + biases[name][head]
        for name in ('query', 'key', 'value')
      )
      scores = q @ k.T / np.sqrt(q.shape[-1])
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      weights /= weights.sum(-1, keepdims=True)
      result[b] += weights @ v @ kernels['out'][head]
  return result


def _positions(table, old, new, num_extra):
  """Resizes a table: cell i of n reads coordinate i·(old-1)/(n-1)."""
  table = np.asarray(table[0], np.float64)
  cells = table[num_extra:].reshape(*old, -1)
  rows = list(table[:num_extra])
  for i in range(new[0]):
    for j in range(new[1]):
      y, x = i * (old[0] - 1) / (new[0] - 1), j * (old[1] - 1) / (new[1] - 1)
      t, s = int(y), int(x)
      u, r = min(t + 1, old[0] - 1), min(s + 1, old[1] - 1)
      upper = (1 - (x - s)) * cells[t, s] + (x - s) * cells[t, r]
      lower = (1 - (x - s)) * cells[u, s] + (x - s) * cells[u, r]
      rows.append((1 - (y - t)) * upper + (y - t) * lower)
  return np.stack(rows)


def hybrid_vit(images, params, module):
  maps = resnet(images, params, module.blocks, module.num_groups)
  x = conv(maps['block3'], params['embedding']['kernel'])
  x = x + np.asarray(params['embedding']['bias'])
  batch, *grid, size = x.shape
  x = x.reshape(batch, -1, size)
  extra = int(module.use_cls_token)
  if extra:
    cls = np.asarray(params['cls'], np.float64)
    x = np.concatenate([np.repeat(cls, batch, 0), x], 1)
  params = params['Transformer']
  table = params['posembed_input']['pos_embedding']
  x = x + _positions(table, module.grid, grid, extra)
  for i in range(module.num_layers):
    p = params[f'encoderblock_{i}']
    y = _layer_norm(x, p['LayerNorm_0'])
    x = x + _attention(y, p['MultiHeadDotProductAttention_0'])
    y = _layer_norm(x, p['LayerNorm_1'])
    for j, act in enumerate((_gelu, lambda x: x)):
      dense = p['MlpBlock_0'][f'Dense_{j}']
      y = act(y @ np.float64(dense['kernel']) + np.asarray(dense['bias']))
    x = x + y
  x = _layer_norm(x, params['encoder_norm'])
  maps['tokens'] = x[:, extra:].reshape(batch, *grid, size)
  return maps


def upsample2x(x):
  """Upsamples by 2:  cell i reads coordinate (i + ½)/2 - ½, clamped."""
  for axis in (1, 2):
    n = x.shape[axis]
    at = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
    low = at.astype(int)
    high = np.minimum(low + 1, n - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    share = (at - low).reshape(shape)
    x = (1 - share) * x.take(low, axis) + share * x.take(high, axis)
  return x


def unet(x, skips, params, num_groups, keep_first, embedding=None):
  maps = []
  for i, skip in enumerate(skips):
    p = params[f'block{i}']
    if i or not keep_first:
      x = upsample2x(x)
    if skip is not None:
      x = np.concatenate([x, skip], -1)
    for j in (1, 2):
      x = conv(x, p[f'conv{j}']['kernel'])
      x = _group_norm(x, p[f'norm{j}'], num_groups)
      if embedding is not None:
        dense = p[f'modulation{j}']['dense']
        both = embedding @ np.float64(dense['kernel']) + dense['bias']
        scale, offset = np.split(np.asarray(both)[:, None, None], 2, -1)
        x = (1 + scale) * x + offset
      x = _relu(x)
    maps.append(x)
  return maps


def assert_maps_equal(maps, expected, strides):
  assert {x.name: x.stride for x in maps.maps} == strides
  assert list(expected) == [x.name for x in maps.maps]
  for x in maps.maps:
    assert x.array.shape == expected[x.name].shape
    np.testing.assert_allclose(
      x.array, expected[x.name], atol=2e-4, err_msg=x.name
    )


def draw_maps(*shapes, seed=0):
  """Draws feature maps of (stride, channels), for images of 32x48."""
  sizes = (
    (stride, 32 // stride, 48 // stride, size) for stride, size in shapes
  )
  return decoder_cases.draw_maps(*sizes, seed=seed)


def assert_same_with_remat(module, *args):
  variables = {'params': draw_params(module, *args)}

  def loss(module):
    def total(variables):
      leaves = jax.tree.leaves(module.apply(variables, *args))
      return sum(jnp.sum(jnp.square(leaf)) for leaf in leaves) / 1e3

    return jax.jit(jax.value_and_grad(total))(variables)

  remat = module.clone(remat=True)
  traced = jax.make_jaxpr(lambda v: remat.apply(v, *args))(variables)
  assert 'remat' in str(traced)
  for plain, again in zip(
    jax.tree.leaves(loss(module)),
    jax.tree.leaves(loss(remat)),
    strict=True,
  ):
    np.testing.assert_allclose(plain, again, rtol=1e-3, atol=1e-4)
