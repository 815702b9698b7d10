"""Encoder, decoder and heads together: names, maps and refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models import features, segmenter
from segcore.models import heads as heads_lib
from segcore.models.decoders import unet
from segcore.models.encoders import efficientnet, hybrid_vit, resnet_gn
from segcore.models.encoders import resnet as resnet_lib

_IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 32, 48, 3))
_IMAGES = jax.device_put(np.float32(_IMAGES))


def _small(heads=None, **fields):
  return segmenter.Segmenter(
    resnet_gn.ResNet((1, 1), width=4, num_groups=2),
    unet.UNetDecoder((8, 8, 4, 4), num_groups=2, **fields),
    heads
    or {
      'logits': heads_lib.ConvHead(5),
      'noise': heads_lib.ConvHead(3, kernel=1),
      'classes': heads_lib.PoolHead(7),
    },
  )


def _shapes(module, images=_IMAGES, **kwargs):
  return jax.eval_shape(
    lambda: module.init(jax.random.key(0), images, **kwargs)
  )


@pytest.fixture(scope='module')
def small():
  module = _small()
  rng = np.random.default_rng(1)
  return module, jax.tree.map(
    lambda leaf: np.float32(rng.normal(size=leaf.shape) * 0.3),
    _shapes(module),
  )


def test_heads_may_read_the_nearest_stride():
  """A U-Net ends at stride 4; of two strides as near, the finer one is read."""
  encoder = resnet_gn.ResNet((1, 1, 1), width=8, num_groups=4)
  decoder = unet.UNetDecoder((8, 8), num_groups=4, output_stride=4)
  images = jnp.zeros((1, 32, 32, 3))
  for stride, cells in ((1, 8), (2, 8), (4, 8), (8, 4), (6, 4), (16, 4)):
    head = heads_lib.ConvHead(5, stride=stride, nearest=True)
    outputs, _ = jax.eval_shape(
      segmenter.Segmenter(encoder, decoder, {'x': head}).init_with_output,
      jax.random.key(0),
      images,
    )
    assert outputs['x'].shape == (1, cells, cells, 5)


def test_sides_are_multiples_of_what_encoder_and_decoder_need():
  decoders = {'unet': unet.UNetDecoder(), 'none': None}
  resnet = resnet_lib.DilatedResNet(stem='plain', output_stride=32)
  for encoder, name, multiple in (
    (resnet, 'none', 1),
    (resnet, 'unet', 32),
    (efficientnet.EfficientNet(), 'unet', 32),
    (hybrid_vit.HybridViT(), 'unet', 16),
  ):
    module = segmenter.Segmenter(encoder, decoders[name], {})
    assert module.size_multiple == multiple


def test_parameters_are_under_the_names_of_the_submodules(small):
  _, variables = small
  params = variables['params']
  assert set(params) == {'encoder', 'decoder', 'heads'}
  assert set(params['heads']) == {'logits', 'noise', 'classes'}
  assert set(params['encoder']) == {'conv_root', 'gn_root', 'block1', 'block2'}
  assert set(params['decoder']) == {'block0', 'block1', 'block2', 'block3'}


def test_heads_compute_from_the_maps_they_name(small):
  module, variables = small
  outputs = jax.jit(module.apply)(variables, _IMAGES)
  maps = jax.jit(lambda v, x: module.apply(v, x, method='features'))(
    variables, _IMAGES
  )
  assert [s.stride for s in maps['decoder'].maps] == [8, 4, 2, 1]

  heads = jax.tree.map(np.asarray, variables['params']['heads'])
  full = np.asarray(maps['decoder'].at_stride(1).array)
  conv = heads['noise']['conv']
  np.testing.assert_allclose(
    outputs['noise'], full @ conv['kernel'][0, 0] + conv['bias'], atol=1e-5
  )
  pooled = np.mean(maps['encoder'].deepest.array, (1, 2))
  dense = heads['classes']['dense']
  np.testing.assert_allclose(
    outputs['classes'], pooled @ dense['kernel'] + dense['bias'], atol=1e-5
  )
  assert outputs['logits'].shape == (2, 32, 48, 5)


def test_only_requested_heads_are_computed(small):
  module, variables = small
  all_outputs = jax.jit(module.apply)(variables, _IMAGES)
  # Parameters that are missing cannot have been used.
  params = variables['params']
  without_decoder = {
    'encoder': params['encoder'],
    'heads': {'classes': params['heads']['classes']},
  }
  outputs = jax.jit(lambda v: module.apply(v, _IMAGES, heads=('classes',)))(
    {'params': without_decoder}
  )
  assert list(outputs) == ['classes']
  np.testing.assert_allclose(
    outputs['classes'], all_outputs['classes'], atol=1e-5
  )
  one_head = {**params, 'heads': {'noise': params['heads']['noise']}}
  outputs = jax.eval_shape(
    lambda: module.apply({'params': one_head}, _IMAGES, heads=('noise',))
  )
  assert list(outputs) == ['noise']
  assert jax.jit(lambda v: module.apply(v, _IMAGES, heads=()))(variables) == {}


def test_heads_apply_to_given_maps(small):
  module, variables = small
  x = jnp.ones((3, 1, 1, 32))
  outputs = module.apply(
    variables, x, method=lambda module, x: module.heads({'classes': x})
  )
  dense = variables['params']['heads']['classes']['dense']
  expected = np.sum(dense['kernel'], 0) + dense['bias']
  np.testing.assert_allclose(
    outputs['classes'], np.tile(expected, (3, 1)), atol=1e-5
  )


def test_network_without_a_decoder():
  module = segmenter.Segmenter(
    resnet_gn.ResNet((1,), width=4, num_groups=2),
    None,
    {
      'aux': heads_lib.ConvHead(5, reads='encoder', stride=None),
      'root': heads_lib.ConvHead(5, reads='encoder', stride=2),
      'named': heads_lib.ConvHead(5, reads='encoder', map_name='root'),
    },
  )
  params = _shapes(module)['params']
  assert set(params) == {'encoder', 'heads'}
  outputs = jax.eval_shape(
    lambda: module.init_with_output(jax.random.key(0), _IMAGES)[0]
  )
  assert outputs['aux'].shape == (2, 8, 12, 5)
  assert outputs['root'].shape == (2, 16, 24, 5)
  assert outputs['named'].shape == (2, 16, 24, 5)


@pytest.mark.parametrize(
  ('head', 'message'),
  [
    (
      heads_lib.ConvHead(5, reads='encoder', stride=16),
      "head 'x' of the encoder: no map at stride 16; .* strides 2, 4, 8",
    ),
    (
      heads_lib.ConvHead(5, stride=16),
      "head 'x' of the decoder: no map at stride 16; .* strides 1, 2, 4, 8",
    ),
    (
      heads_lib.PoolHead(5, map_name='block3'),
      "head 'x' of the encoder: no map named 'block3'; .* root, block1, block2",
    ),
    (
      heads_lib.ConvHead(5, reads='teacher'),
      "head 'x': expected reads to be encoder, decoder or attention, got 'teac",
    ),
  ],
)
def test_head_without_its_map_is_refused(head, message):
  with pytest.raises(ValueError, match=message):
    _shapes(_small({'x': head}))


def test_unknown_head_is_refused():
  with pytest.raises(ValueError, match="no head named 'rep'; there are logits"):
    _shapes(_small(), heads=('rep',))


def test_head_without_its_decoder_is_refused():
  module = segmenter.Segmenter(
    resnet_gn.ResNet((1,)), None, {'logits': heads_lib.ConvHead(5)}
  )
  with pytest.raises(ValueError, match="'logits' reads the decoder, but there"):
    _shapes(module)


def test_unused_condition_is_refused():
  condition = jnp.ones(2)
  with pytest.raises(ValueError, match='conditional=False'):
    _shapes(_small(), condition=condition)
  with pytest.raises(ValueError, match='expected None where no decoder runs'):
    _shapes(_small(), condition=condition, heads=('classes',))
  conditional = _small(conditional=True)
  outputs = _shapes(conditional, condition=condition)
  assert 'embedding' in outputs['params']['decoder']
  assert conditional.conditional and not _small().conditional


def test_initial_outputs_of_heads_have_the_scale():
  x = np.random.default_rng(0).normal(size=(4, 16, 16, 32))
  x = jax.device_put(np.float32(x))
  for scale in (0.0, 0.1, 1.0):
    head = heads_lib.ConvHead(64, init_scale=scale)
    outputs, _ = jax.jit(head.init_with_output)(jax.random.key(1), x)
    inner = np.asarray(outputs)[:, 1:-1, 1:-1]  # No tap is on padding.
    np.testing.assert_allclose(np.std(inner), scale, rtol=0.1)
  head = heads_lib.PoolHead(3, init_scale=0.0)
  outputs, _ = jax.jit(head.init_with_output)(jax.random.key(1), x)
  np.testing.assert_array_equal(outputs, np.zeros((4, 3)))


def test_bfloat16_is_for_activations_only():
  bf16 = jnp.bfloat16
  module = segmenter.Segmenter(
    hybrid_vit.HybridViT(
      (1, 1, 1), 8, 4, hidden_size=16, num_heads=2, mlp_dim=16, num_layers=1,
      grid=(4, 4), dtype=bf16,
    ),
    unet.UNetDecoder((8,) * 5, num_groups=4, dtype=bf16, conditional=True),
    {
      'logits': heads_lib.ConvHead(5, dtype=bf16),
      'classes': heads_lib.PoolHead(3),
    },
  )  # fmt: skip
  images = jnp.zeros((1, 64, 64, 3))
  outputs, variables = jax.eval_shape(
    module.init_with_output, jax.random.key(0), images
  )
  types = jax.tree.map(lambda leaf: leaf.dtype, (outputs, variables))
  assert set(jax.tree.leaves(types)) == {np.dtype('float32')}
  maps = jax.eval_shape(
    lambda v: module.apply(v, images, method='features'), variables
  )
  types = jax.tree.map(lambda leaf: leaf.dtype, maps)
  assert set(jax.tree.leaves(types)) == {np.dtype(bf16)}


def test_bfloat16_stays_near_float32(small):
  module, variables = small
  halved = segmenter.Segmenter(
    module.encoder.clone(dtype=jnp.bfloat16),
    module.decoder.clone(dtype=jnp.bfloat16),
    {'noise': heads_lib.ConvHead(3, kernel=1, dtype=jnp.bfloat16)},
  )
  outputs = jax.jit(halved.apply)(variables, _IMAGES)['noise']
  expected = jax.jit(module.apply)(variables, _IMAGES)['noise']
  error = jnp.sqrt(jnp.mean(jnp.square(outputs - expected)))
  assert error < 0.03 * jnp.std(expected)


def test_submodules_are_in_training_mode_by_name():
  modes = {}

  class Encoder(nn.Module):
    def __call__(self, images, train):
      modes['encoder'] = train
      return features.Features((features.FeatureMap('only', 1, images),))

  class Decoder(nn.Module):
    def __call__(self, maps, condition, train):
      modes['decoder'] = train
      return maps

  class Head(nn.Module):
    reads = 'decoder'
    stride = 1
    map_name = None

    def __call__(self, x, train):
      modes['heads'] = train
      return x

  module = segmenter.Segmenter(Encoder(), Decoder(), {'same': Head()})
  for train, expected in {
    False: set(),
    True: {'encoder', 'decoder', 'heads'},
    ('decoder', 'heads'): {'decoder', 'heads'},
  }.items():
    module.apply({}, _IMAGES, train=train)
    assert {part for part, on in modes.items() if on} == expected
  with pytest.raises(
    ValueError, match="expected names among encoder, .* got 'head'"
  ):
    module.apply({}, _IMAGES, train=('head',))


def test_batch_statistics_are_a_collection_of_flax():
  module = _small(norm='batch')
  shapes = _shapes(module)
  assert set(shapes['batch_stats']) == {'decoder'}
  _, updated = jax.eval_shape(
    lambda v: module.apply(v, _IMAGES, train=True, mutable=['batch_stats']),
    shapes,
  )
  assert jax.tree.structure(updated['batch_stats']) == jax.tree.structure(
    shapes['batch_stats']
  )


def test_batch_statistics_of_heads_that_do_not_run_are_kept():
  module = segmenter.Segmenter(
    resnet_gn.ResNet((1,), width=4, num_groups=2),
    None,
    {
      name: heads_lib.ConvBlocksHead(3, width=4, reads='encoder')
      for name in ('logits', 'rep')
    },
  )
  before = _shapes(module)
  _, updated = jax.eval_shape(
    lambda v: module.apply(
      v,
      _IMAGES,
      heads=('logits',),
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    ),
    before,
  )
  assert jax.tree.structure(updated['batch_stats']) == jax.tree.structure(
    before['batch_stats']
  )
  assert set(updated['batch_stats']['heads']) == {'logits', 'rep'}


def test_segmenters_of_equal_fields_are_equal_and_hashable():
  assert hash(_small()) == hash(_small())
  assert _small() == _small()
