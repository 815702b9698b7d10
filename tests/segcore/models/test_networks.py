"""ResNet, hybrid transformer and U-Net against reference code in numpy.

It is written from the papers' lists of layers, in float64, and shares nothing
with the tested code: a convolution is a loop over its taps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models import features
from segcore.models.decoders import unet
from segcore.models.encoders import bit, hybrid_vit, resnet_gn


def _params(module, *args, seed=0):
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
    return jnp.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def _images(height, width, batch=2):
  rng = np.random.default_rng(height + width)
  return jnp.asarray(rng.uniform(-1, 1, (batch, height, width, 3)), jnp.float32)


def _count(shapes):
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


# ---- Reference code.


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


def _conv(x, kernel, stride=1):
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
  return _conv(x, standard, stride)


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


def _resnet(images, params, blocks, num_groups, conv_epsilon=1e-5):
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


def _hybrid_vit(images, params, module):
  maps = _resnet(images, params, module.blocks, module.num_groups)
  x = _conv(maps['block3'], params['embedding']['kernel'])
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


def _upsample2x(x):
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


def _unet(x, skips, params, num_groups, keep_first, embedding=None):
  maps = []
  for i, skip in enumerate(skips):
    p = params[f'block{i}']
    if i or not keep_first:
      x = _upsample2x(x)
    if skip is not None:
      x = np.concatenate([x, skip], -1)
    for j in (1, 2):
      x = _conv(x, p[f'conv{j}']['kernel'])
      x = _group_norm(x, p[f'norm{j}'], num_groups)
      if embedding is not None:
        dense = p[f'modulation{j}']['dense']
        both = embedding @ np.float64(dense['kernel']) + dense['bias']
        scale, offset = np.split(np.asarray(both)[:, None, None], 2, -1)
        x = (1 + scale) * x + offset
      x = _relu(x)
    maps.append(x)
  return maps


def _assert_maps(maps, expected, strides):
  assert {x.name: x.stride for x in maps.maps} == strides
  assert list(expected) == [x.name for x in maps.maps]
  for x in maps.maps:
    assert x.array.shape == expected[x.name].shape
    np.testing.assert_allclose(
      x.array, expected[x.name], atol=2e-4, err_msg=x.name
    )


# ---- ResNet.


@pytest.mark.parametrize('size', [(32, 32), (37, 50)])
def test_resnet_equals_the_reference(size):
  module = resnet_gn.ResNet((2, 1), width=8, num_groups=4, conv_epsilon=1e-2)
  images = _images(*size)
  params = _params(module, images)
  maps = jax.jit(module.apply)({'params': params}, images)
  expected = _resnet(images, params, (2, 1), 4, conv_epsilon=1e-2)
  _assert_maps(maps, expected, {'root': 2, 'block1': 4, 'block2': 8})


def test_standardized_convolution_ignores_an_offset_of_its_kernel():
  conv = resnet_gn.StdConv(4, kernel=3)
  x = _images(8, 8)
  params = _params(conv, x)
  shifted = jax.tree.map(lambda kernel: kernel + 1.5, params)
  np.testing.assert_allclose(
    conv.apply({'params': params}, x),
    conv.apply({'params': shifted}, x),
    atol=1e-4,
  )


@pytest.mark.parametrize('zero_init', [True, False])
def test_zero_init_makes_units_start_as_their_shortcut(zero_init):
  module = resnet_gn.ResNet((1,), width=4, num_groups=2, zero_init=zero_init)

  @jax.jit  # Computes these parameters only.
  def start():
    params = module.init(jax.random.key(0), _images(16, 16))['params']
    unit = params['block1']['unit1']
    return {name: unit[name]['scale'] for name in ('gn3', 'gn_proj')}

  scales = start()
  expected = 0.0 if zero_init else 1.0
  np.testing.assert_array_equal(scales['gn3'], np.full(16, expected))
  np.testing.assert_array_equal(scales['gn_proj'], np.ones(16))


def test_resnet_50_has_the_published_size_and_shapes():
  images = jnp.zeros((1, 64, 96, 3))
  maps, variables = jax.eval_shape(
    resnet_gn.ResNet((3, 4, 6, 3)).init_with_output, jax.random.key(0), images
  )
  assert _count(variables) == 23_508_032
  assert {s.name: (s.stride, *s.array.shape) for s in maps.maps} == {
    'root': (2, 1, 32, 48, 64),
    'block1': (4, 1, 16, 24, 256),
    'block2': (8, 1, 8, 12, 512),
    'block3': (16, 1, 4, 6, 1024),
    'block4': (32, 1, 2, 3, 2048),
  }


# ---- Hybrid transformer.

_SMALL = {
  'blocks': (1, 1, 1),
  'width': 8,
  'num_groups': 4,
  'hidden_size': 16,
  'num_layers': 2,
  'num_heads': 2,
  'mlp_dim': 24,
}


@pytest.mark.parametrize(
  ('size', 'grid', 'use_cls_token'),
  [
    ((64, 64), (4, 4), True),
    ((64, 96), (4, 4), True),
    ((96, 64), (3, 5), False),
  ],
)
def test_hybrid_vit_equals_the_reference(size, grid, use_cls_token):
  module = hybrid_vit.HybridViT(
    **_SMALL, grid=grid, use_cls_token=use_cls_token
  )
  images = _images(*size)
  params = _params(module, images)
  maps = jax.jit(module.apply)({'params': params}, images)
  _assert_maps(
    maps,
    _hybrid_vit(images, params, module),
    {'root': 2, 'block1': 4, 'block2': 8, 'block3': 16, 'tokens': 16},
  )
  assert maps.deepest.name == maps.at_stride(16).name == 'tokens'


def test_hybrid_vit_has_the_size_and_names_of_the_checkpoint():
  images = jnp.zeros((1, 64, 64, 3))
  params = jax.eval_shape(
    hybrid_vit.HybridViT().init, jax.random.key(0), images
  )
  params = params['params']
  assert _count(params) == 97_890_112
  block = 'Transformer/encoderblock_11'
  attention = f'{block}/MultiHeadDotProductAttention_0'
  for path, shape in {
    'conv_root/kernel': (7, 7, 3, 64),
    'gn_root/scale': (64,),
    'block3/unit9/conv2/kernel': (3, 3, 256, 256),
    'block2/unit1/conv_proj/kernel': (1, 1, 256, 512),
    'block2/unit1/gn_proj/bias': (512,),
    'embedding/kernel': (1, 1, 1024, 768),
    'embedding/bias': (768,),
    'cls': (1, 1, 768),
    'Transformer/posembed_input/pos_embedding': (1, 197, 768),
    f'{block}/LayerNorm_0/scale': (768,),
    f'{block}/LayerNorm_1/bias': (768,),
    f'{attention}/query/kernel': (768, 12, 64),
    f'{attention}/value/bias': (12, 64),
    f'{attention}/out/kernel': (12, 64, 768),
    f'{block}/MlpBlock_0/Dense_0/kernel': (768, 3072),
    f'{block}/MlpBlock_0/Dense_1/bias': (768,),
    'Transformer/encoder_norm/bias': (768,),
  }.items():
    leaf = params
    for key in path.split('/'):
      leaf = leaf[key]
    assert leaf.shape == shape, path


def test_image_sizes_that_do_not_fit_the_stride_are_refused():
  with pytest.raises(ValueError, match='multiples of 16, got 64x72: '):
    jax.eval_shape(
      hybrid_vit.HybridViT().init, jax.random.key(0), _images(64, 72)
    )


def test_dropout_is_on_in_training_only():
  module = hybrid_vit.Transformer((4, 4), 1, 2, 8, 0.5, jnp.float32, False)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 8)), jnp.float32)
  variables = {'params': _params(module, x, (4, 4), False)}

  @functools.partial(jax.jit, static_argnums=0)
  def run(train, seed):
    return module.apply(
      variables, x, (4, 4), train, rngs={'dropout': jax.random.key(seed)}
    )

  np.testing.assert_array_equal(run(False, 0), run(False, 1))
  assert not np.allclose(run(True, 0), run(True, 1))
  np.testing.assert_array_equal(run(True, 0), run(True, 0))


# ---- U-Net.


def _maps(*shapes, seed=0):
  """Draws feature maps of (stride, channels), for images of 32x48."""
  rng = np.random.default_rng(seed)
  return features.Features(
    tuple(
      features.FeatureMap(
        f'map{i}',
        stride,
        jnp.float32(rng.normal(size=(2, 32 // stride, 48 // stride, channels))),
      )
      for i, (stride, channels) in enumerate(shapes)
    )
  )


@pytest.mark.parametrize('keep_first', [True, False])
@pytest.mark.parametrize('conditional', [False, True])
def test_unet_equals_the_reference(keep_first, conditional):
  # Two maps at the deepest stride and two at stride 4: the last ones count.
  inputs = _maps((2, 3), (4, 2), (4, 5), (8, 4), (8, 6))
  widths = (16, 8, 4, 4) if keep_first else (16, 8, 4)
  module = unet.UNetDecoder(widths, num_groups=2, conditional=conditional)
  params = _params(module, inputs)
  condition = jnp.array([0.5, 1.0]) if conditional else None
  maps = jax.jit(module.apply)({'params': params}, inputs, condition)

  embedding = None
  if conditional:
    angles = np.outer(condition, 1000 * 1e4 ** -(np.arange(128) / 128))
    embedding = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    for name in ('dense1', 'dense2'):
      p = params['embedding'][name]
      embedding = embedding @ np.float64(p['kernel']) + np.asarray(p['bias'])
      embedding = embedding / (1 + np.exp(-embedding))
  by_name = {s.name: np.float64(s.array) for s in inputs.maps}
  skips = [by_name['map2'], by_name['map0'], None]
  skips = [None, *skips] if keep_first else skips
  expected = _unet(by_name['map4'], skips, params, 2, keep_first, embedding)

  strides = (8, 4, 2, 1) if keep_first else (4, 2, 1)
  # The sinusoids of a level up to 1000 are good to 1e-4 in float32.
  _assert_maps(
    maps,
    {f'up{i}': x for i, x in enumerate(expected)},
    {f'up{i}': stride for i, stride in enumerate(strides)},
  )


def test_conditional_decoder_assumes_clean_images_without_a_condition():
  maps = _maps((2, 3), (4, 4))
  module = unet.UNetDecoder((8, 4), num_groups=2, conditional=True)
  variables = {'params': _params(module, maps)}
  run = jax.jit(module.apply)
  clean = run(variables, maps, jnp.ones(2)).deepest.array
  np.testing.assert_array_equal(run(variables, maps).deepest.array, clean)
  noisy = run(variables, maps, jnp.full(2, 0.5)).deepest.array
  assert not np.allclose(noisy, clean)


def test_condition_of_an_unconditional_decoder_is_refused():
  with pytest.raises(ValueError, match='conditional=False'):
    jax.eval_shape(
      unet.UNetDecoder((8, 4)).init,
      jax.random.key(0),
      _maps((2, 3), (4, 4)),
      jnp.ones(2),
    )


@pytest.mark.parametrize(
  ('maps', 'fields', 'message'),
  [
    (
      ((2, 3), (8, 4)),
      {'widths': (8, 8, 8)},
      'a map at stride 4, got maps at strides 2, 8',
    ),
    (
      ((2, 3), (4, 3), (8, 4)),
      {'widths': (8, 8)},
      'widths: expected n or n .* got 2 for stride 8',
    ),
    (
      ((2, 3), (4, 3), (8, 4)),
      {'widths': (8, 8, 8, 8, 8)},
      'widths: expected n or n .* got 5 for stride 8',
    ),
    (
      ((1, 3), (8, 4)),
      {'widths': (8, 8, 8), 'skips': (2,)},
      'a map at stride 2, got maps at strides 1, 8',
    ),
    (
      ((2, 3), (4, 3), (8, 4)),
      {'widths': (8, 8, 8), 'layout': 'B'},
      'layout: expected A, since all 3 blocks upsample from stride 8, got B',
    ),
    (
      ((8, 4),),
      {'widths': (8, 8, 8), 'skips': False, 'norm': 'layer'},
      "norm: expected group or batch, got 'layer'",
    ),
  ],
)
def test_encoder_that_does_not_fit_is_refused(maps, fields, message):
  module = unet.UNetDecoder(num_groups=4, **fields)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), _maps(*maps))


def test_skip_of_another_size_is_refused():
  images = jnp.zeros((1, 40, 40, 3))
  encoder = resnet_gn.ResNet((1, 1, 1), width=4, num_groups=2)
  maps, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
  with pytest.raises(
    ValueError, match=r"'block2': expected 6x6 cells, got 5x5: .* of 16"
  ):
    jax.eval_shape(unet.UNetDecoder((8, 8, 8, 8)).init, jax.random.key(0), maps)


def test_skips_are_joined_as_configured():
  maps = _maps((2, 3), (4, 5), (8, 4))
  for skips, channels in {False: (8, 8, 8), (4,): (13, 8, 8)}.items():
    module = unet.UNetDecoder((8, 8, 8, 8), num_groups=4, skips=skips)
    params = jax.eval_shape(module.init, jax.random.key(0), maps)['params']
    in_channels = tuple(
      params[f'block{i}']['conv1']['kernel'].shape[2] for i in (1, 2, 3)
    )
    assert in_channels == channels


def test_layouts_differ_in_the_block_that_keeps_the_resolution():
  maps = _maps((2, 3), (4, 5), (8, 4))
  for layout, strides, convs in (
    ('A', [8, 4, 2, 1], 2),
    ('A1', [8, 4, 2, 1], 1),
    ('B', [4, 2, 1, 1], 2),
  ):
    module = unet.UNetDecoder((8, 6, 4, 2), layout=layout, num_groups=2)
    maps, variables = jax.eval_shape(
      module.init_with_output, jax.random.key(0), maps
    )
    assert [stage.stride for stage in maps.maps] == strides
    assert maps.at_stride(1).name == 'up3'
    blocks = [sorted(variables['params'][f'block{i}']) for i in range(4)]
    counts = [sum(name.startswith('conv') for name in b) for b in blocks]
    assert counts == [convs, 2, 2, 2]


def test_a_width_multiplier_multiplies_every_width():
  maps = _maps((2, 3), (4, 4))
  module = unet.UNetDecoder((8, 6, 4), width_multiplier=3, num_groups=2)
  maps, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), maps)
  assert [s.array.shape[-1] for s in maps.maps] == [24, 18, 12]


def test_a_batch_normed_decoder_keeps_running_statistics():
  maps = _maps((2, 3), (4, 4))
  module = unet.UNetDecoder((8, 4), norm='batch')
  params = _params(module, maps)
  stats = {
    f'block{i}': {
      f'norm{j}': {'mean': jnp.zeros(size), 'var': jnp.ones(size)}
      for j in (1, 2)
    }
    for i, size in enumerate((8, 4))
  }

  @jax.jit
  def step(params, stats):
    return module.apply(
      {'params': params, 'batch_stats': stats},
      maps,
      train=True,
      mutable=['batch_stats'],
    )[1]

  updated = step(params, stats)
  x = _upsample2x(np.float64(maps.by_name('map1').array))
  x = np.concatenate([x, maps.by_name('map0').array], -1)
  x = _conv(x, params['block0']['conv1']['kernel'])
  np.testing.assert_allclose(
    updated['batch_stats']['block0']['norm1']['mean'],
    0.01 * x.mean((0, 1, 2)),
    atol=1e-6,
  )


# ---- Laws that hold for all.


def test_features_name_what_is_missing():
  maps = _maps((2, 3), (4, 5))
  with pytest.raises(ValueError, match=r'no map at stride 8; .* strides 2, 4'):
    maps.at_stride(8)
  with pytest.raises(ValueError, match=r"no map named 'x'; .* map0, map1"):
    maps.by_name('x')
  shapes = jax.tree.map(lambda x: x.shape[-1], maps)
  assert shapes.at_stride(4).array == 5


def _assert_same_with_remat(module, *args):
  variables = {'params': _params(module, *args)}

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


def test_remat_of_a_resnet_changes_neither_values_nor_gradients():
  module = resnet_gn.ResNet((1,), width=4, num_groups=2)
  _assert_same_with_remat(module, _images(16, 16, batch=1))


def test_remat_of_a_bit_changes_neither_values_nor_gradients():
  module = bit.BiT((1,), width=4, num_groups=2)
  _assert_same_with_remat(module, _images(16, 16, batch=1))


def test_remat_of_a_transformer_changes_neither_values_nor_gradients():
  module = hybrid_vit.Transformer((4, 4), 1, 2, 8, 0.0, jnp.float32, False)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 8)), jnp.float32)
  _assert_same_with_remat(module, x, (4, 4), True)


def test_remat_of_a_unet_changes_neither_values_nor_gradients():
  module = unet.UNetDecoder((8, 4), num_groups=2)
  _assert_same_with_remat(module, _maps((2, 3), (4, 4)), None, True)
