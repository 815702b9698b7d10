"""The decoders of DAFormer and SegFormer, and their classifier.

They are compared with torch's arithmetic, written down from the papers' layers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from segcore.models import features as features_lib
from segcore.models import heads, segmenter
from segcore.models.decoders import daformer, segformer
from segcore.models.encoders import mit, resnet, vit
from tests.support import decoder_cases, torch_arithmetic

# Of an image of 61x45; AFA's last two maps have one stride. The first map is
# finer than the decoders read.
_MAPS = (
  (2, 31, 23, 4),
  (4, 16, 12, 5),
  (8, 8, 6, 6),
  (16, 4, 3, 7),
  (16, 4, 3, 8),
)
_SIZE = (16, 12)


@pytest.fixture
def x64():
  """Computes in float64."""
  with jax.enable_x64():
    yield


def _projected(maps, layers):
  """Returns the projected maps, from stride 4 on."""
  return [
    torch_arithmetic.resize(
      layers.conv(decoder_cases.to_nchw(each.array), f'projection.map{i}'),
      _SIZE,
      align_corners=False,
    )
    for i, each in enumerate(maps.maps[1:], 1)
  ]


def _daformer(maps, layers):
  x = np.concatenate(_projected(maps, layers), 1)
  branches = [layers.block(x, 'conv1x1.conv', 'conv1x1.bn')]
  for i, dilation in enumerate((2, 3), 1):
    name = f'separable{i}'
    y = torch_arithmetic.depthwise_conv(
      x, layers.state[f'{name}.depthwise.weight'], dilation
    )
    y = np.maximum(layers.norm(y, f'{name}.bn'), 0)
    branches.append(
      layers.block(y, f'{name}.pointwise.conv', f'{name}.pointwise.bn')
    )
  return layers.block(np.concatenate(branches, 1), 'fuse.conv', 'fuse.bn')


def _segformer(maps, layers):
  x = np.concatenate(_projected(maps, layers)[::-1], 1)
  return layers.block(x, 'fuse.conv', 'fuse.bn')


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  ('build', 'reference'),
  [
    (functools.partial(daformer.DAFormer, 6, (2, 3)), _daformer),
    (functools.partial(segformer.SegFormer, 6), _segformer),
  ],
)
def test_decoders_equal_the_reference(x64, build, reference, train):
  maps = decoder_cases.draw_maps(*_MAPS)
  module = build(dtype=jnp.float64, remat=train)
  variables = decoder_cases.draw_variables(module, maps)

  def loss(params):
    outputs, updated = module.apply(
      {**variables, 'params': params},
      maps,
      None,
      train,
      mutable=['batch_stats'],
    )
    [fused] = outputs.maps
    return jnp.sum(jnp.sin(fused.array)), (fused, updated)

  function = jax.value_and_grad(loss, has_aux=True) if train else loss
  outputs, gradient = jax.jit(function)(variables['params'])
  # In training ((loss, (map, updated)), gradient), else (loss, (map, …)).
  fused, updated = outputs[1] if train else gradient
  layers = torch_arithmetic.Layers(
    decoder_cases.to_torch_state(variables), train
  )
  assert (fused.name, fused.stride) == ('fused', 4)
  np.testing.assert_allclose(
    decoder_cases.to_nchw(fused.array), reference(maps, layers), atol=1e-6
  )
  if train:
    decoder_cases.assert_statistics(updated['batch_stats'], layers, 1e-6)
    for leaf in jax.tree.leaves(gradient):
      assert np.all(np.isfinite(leaf)) and np.any(leaf != 0)


@pytest.mark.parametrize(
  ('decoder', 'count'),
  [
    # 3.71 M, and 0.53 M with AFA's 21 classes.
    (daformer.DAFormer(), 3_712_275),
    (segformer.SegFormer(), 531_221 - 2 * 257),
    # Of B2 to B5: 1024·768 + 4·768, 4·768² + 2·768, 19·769.
    (segformer.SegFormer(768), 789_504 + 2_360_832 + 14_611),
  ],
)
def test_published_sizes(decoder, count):
  maps = decoder_cases.draw_maps(
    *((4 * 2**s, 1, 1, n) for s, n in enumerate((64, 128, 320, 512)))
  )
  head = heads.PixelClassifier(19)

  def initialize(key):
    decoded, variables = decoder.init_with_output(key, maps)
    fused = decoded.at_stride(4).array
    return variables['params'], head.init(key, fused)['params']

  params = jax.eval_shape(initialize, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
  ('encoder', 'num_maps', 'stride'),
  [
    (resnet.DilatedResNet((1, 1, 1, 3), 8, 'plain'), 4, 4),
    (vit.ViT(num_layers=12, hidden_size=12, num_heads=2), 4, 16),
    (mit.MiT(strides=(4, 2, 2, 1), num_layers=(1, 1, 1, 1)), 4, 4),
  ],
)
def test_all_maps_of_other_encoders_are_read(encoder, num_maps, stride):
  head = heads.PixelClassifier(3, stride=stride)
  net = segmenter.Segmenter(encoder, segformer.SegFormer(8), {'logits': head})
  images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
  outputs, variables = jax.eval_shape(
    net.init_with_output, jax.random.key(0), images
  )
  assert len(variables['params']['decoder']['projection']) == num_maps
  assert outputs['logits'].shape[1] == 64 // stride


@pytest.mark.parametrize('decoder', [daformer.DAFormer, segformer.SegFormer])
def test_what_does_not_fit_is_refused(decoder):
  maps = decoder_cases.draw_maps((2, 4, 4, 3))
  with pytest.raises(ValueError, match='map at stride 4 or above, got'):
    decoder(8).init(jax.random.key(0), maps)
  with pytest.raises(ValueError, match='condition: .* expected None'):
    decoder(8).init(
      jax.random.key(0), features_lib.Features(maps.maps), jnp.ones(2)
    )


def test_initial_values():
  maps = decoder_cases.draw_maps((4, 2, 2, 48), (8, 1, 1, 32))
  module = daformer.DAFormer(64, (2,))
  params = jax.jit(module.init)(jax.random.key(0), maps)['params']
  flat = traverse_util.flatten_dict(params, sep='/')
  # He's normal with torch's fan-out; 128 channels are concatenated.
  for name, fan_out in (
    ('conv1x1/conv', 64),
    ('separable1/depthwise', 9 * 128),
    ('separable1/pointwise/conv', 64),
    ('fuse/conv', 9 * 64),
  ):
    kernel = np.asarray(flat.pop(f'{name}/kernel'))
    assert abs(kernel.std() * np.sqrt(fan_out / 2) - 1) < 0.06, name
    assert f'{name}/bias' not in flat
  # Torch's uniform values.
  for i, fan_in in enumerate((48, 32), 1):
    for leaf in ('kernel', 'bias'):
      values = np.asarray(flat.pop(f'projection/map{i}/{leaf}'))
      bound = fan_in**-0.5
      assert 0.9 * bound < np.abs(values).max() <= bound
  for path, leaf in flat.items():
    assert np.all(np.asarray(leaf) == path.endswith('scale')), path


def test_classifier_drops_channels_and_starts_small():
  x = jnp.ones((50, 3, 2, 256))
  head = heads.PixelClassifier(19)
  params = jax.jit(head.init)(jax.random.key(0), x[:1])
  conv = params['params']['conv']
  assert conv['kernel'].shape == (1, 1, 256, 19)
  assert abs(np.std(conv['kernel']) / 0.01 - 1) < 0.06
  assert np.all(np.asarray(conv['bias']) == 0)
  torchs = heads.PixelClassifier(19, init_deviation=None)
  conv = jax.jit(torchs.init)(jax.random.key(0), x[:1])['params']['conv']
  for leaf in ('kernel', 'bias'):
    assert 0.8 / 16 < np.abs(conv[leaf]).max() <= 1 / 16

  # A kernel of ones counts the channels that are kept, times 1 / 0.9.
  ones = jax.tree.map(jnp.ones_like, params)
  apply = jax.jit(head.apply, static_argnums=2)
  scores = apply(ones, x, True, rngs={'dropout': jax.random.key(1)})
  counts = (np.asarray(scores)[..., 0] - 1) * 0.9
  np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
  assert np.all(np.ptp(counts, axis=(1, 2)) < 1e-3)  # Whole channels.
  # 12,800 channels, of which 90 % are kept, with a deviation of 0.27 %.
  assert abs(counts[:, 0, 0].mean() / 256 - 0.9) < 0.011
  np.testing.assert_allclose(apply(ones, x, False), 257)
