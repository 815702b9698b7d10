"""Encoder, decoder and heads together: names, sizes and refusals."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import errors
from segcore.models import features, network, segmenter
from segcore.models import heads as heads_lib
from segcore.models.decoders import deeplabv3plus, dpt, unet
from segcore.models.encoders import bit, efficientnet, hybrid_vit, resnet_gn
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


def _count(shapes):
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


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


_RESNET_50 = {'name': 'resnet', 'blocks': (3, 4, 6, 3)}
_HYBRID, _BIT = {'name': 'hybrid_vit'}, {'name': 'bit'}
_RESNET_101, _DEEPLAB = {'name': 'dilated_resnet'}, {'name': 'deeplabv3plus'}
_TORCH_RESNET_50 = {
  'name': 'dilated_resnet',
  'blocks': (3, 4, 6, 3),
  'stem': 'plain',
  'output_stride': 32,
}
_LITE0 = {'name': 'efficientnet'}
_MIT_B1 = {'name': 'mit'}
# Two blocks 512 → 256 → 256 with bias and norm, and 21 scores.
_SCORES = 9 * 512 * 256 + 9 * 256**2 + 2 * 3 * 256 + 257 * 21

# Encoder, decoder, and numbers of parameters: of the encoder, of decoder and
# head (see `_HEADS`).
_SIZES = (
  (_HYBRID, {'name': 'unet'}, 97_890_112, 28_947_907),
  (_HYBRID, {'name': 'unet', 'width_multiplier': 2}, 97_890_112, 95_570_819),
  (_HYBRID, {'name': 'unet', 'width_multiplier': 3}, 97_890_112, 199_868_739),
  (_HYBRID, {'name': 'unet', 'layout': 'A1'}, 97_890_112, 19_508_675),
  (
    _HYBRID,
    {'name': 'unet', 'layout': 'A1', 'width_multiplier': 2},
    97_890_112,
    57_817_987,
  ),
  (
    _HYBRID,
    {'name': 'unet', 'layout': 'A1', 'width_multiplier': 3},
    97_890_112,
    114_927_939,
  ),
  # 9·1280·1024 + 9·1024² and two norms at 1/8, and so on for all blocks.
  (_HYBRID, {'name': 'unet', 'layout': 'B'}, 97_890_112, 31_970_755),
  (_BIT, {'name': 'unet'}, 23_500_352, 50_181_571),
  ({**_BIT, 'skip_norm': True}, {'name': 'unet'}, 23_500_352, 50_181_571),
  (_RESNET_50, {'name': 'unet'}, 23_508_032, 50_181_571),
  (_TORCH_RESNET_50, {'name': 'unet'}, 23_508_032, 50_181_571),
  # Five branches of 29·D·256 kernels read the deepest map, of D channels.
  (_RESNET_101, _DEEPLAB, 42_623_936, 18_222_848 + _SCORES),
  (_RESNET_50, _DEEPLAB, 23_508_032, 18_222_848 + _SCORES),
  (_BIT, _DEEPLAB, 23_500_352, 18_222_848 + _SCORES),
  (_HYBRID, _DEEPLAB, 97_890_112, 18_222_848 - 29 * 1280 * 256 + _SCORES),
  # 4,652,008 without its classifier. Its maps have 320 channels where those of
  # a ResNet have 2048, and 112, 40, 24 and 16 at the skips where a ResNet has
  # 1024, 512, 256 and 64.
  (
    _LITE0,
    {'name': 'unet'},
    2_958_848,
    50_181_571 - 9 * ((1728 + 912) * 1024 + 472 * 512 + 232 * 256 + 48 * 128),
  ),
  (
    _LITE0,
    _DEEPLAB,
    2_958_848,
    18_222_848 - 29 * 1728 * 256 - 232 * 256 + _SCORES,
  ),
  # Maps of 512, 320, 128 and 64 channels, and none at stride 2.
  (
    _MIT_B1,
    {'name': 'unet', 'skips': (16, 8, 4)},
    13_151_424,
    50_181_571 - 9 * ((1536 + 704) * 1024 + 384 * 512 + 192 * 256 + 64 * 128),
  ),
  (
    _MIT_B1,
    _DEEPLAB,
    13_151_424,
    18_222_848 - 29 * 1536 * 256 - 192 * 256 + _SCORES,
  ),
  # Of 19 classes; 3.71 M are published.
  (_MIT_B1, {'name': 'daformer'}, 13_151_424, 3_712_275),
  (_MIT_B1, {'name': 'segformer'}, 13_151_424, 531_221 - 2 * 257),
  # For the decoder see `test_dpt`; the 3x3 of the noise reads 64 channels.
  (
    {'name': 'vit', 'patch_size': 8, 'grid': (28, 28)},
    {'name': 'dpt'},
    21_670_272,
    2_663_840 + 577 * 3,
  ),
)
# Of noise at full resolution, or of classes at stride 4.
_HEADS = {
  'unet': heads_lib.ConvHead(3),
  'dpt': heads_lib.ConvHead(3),
  'deeplabv3plus': heads_lib.ConvBlocksHead(21),
  'daformer': heads_lib.PixelClassifier(19),
  'segformer': heads_lib.PixelClassifier(19),
}


class _Given(nn.Module):
  """An encoder whose maps have given shapes."""

  shapes: features.Features

  def __call__(self, images, train):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.shapes)


@functools.cache
def _encode(options):
  """Returns the shapes of the maps and parameters of an encoder."""
  encoder = network.build_network(
    network.NetworkOptions(dict(options), None), {}, 'here'
  ).encoder
  return jax.eval_shape(
    encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )


@pytest.mark.parametrize(('encoder', 'decoder', 'encoder_size', 'size'), _SIZES)
def test_networks_have_the_published_sizes(
  encoder, decoder, encoder_size, size
):
  module = network.build_network(
    network.NetworkOptions(encoder, decoder),
    {'head': _HEADS[decoder['name']]},
    'here',
  )
  # Each encoder is followed once: most of the time goes there.
  maps, variables = _encode(tuple(encoder.items()))
  assert _count(variables['params']) == encoder_size
  module = module.clone(encoder=_Given(maps))
  params = _shapes(module, jnp.zeros((1, 64, 64, 3)))['params']
  assert set(params) == {'decoder', 'heads'}
  assert _count(params) == size


def test_every_encoder_and_decoder_is_among_the_sizes():
  counted = {
    (encoder['name'], decoder['name']) for encoder, decoder, *_ in _SIZES
  }
  assert counted == {
    (encoder, decoder)
    for encoder in network.ENCODERS
    for decoder in ('unet', 'deeplabv3plus', 'dpt')
    # All maps of a ViT have one stride, and only its.
    if (encoder == 'vit') == (decoder == 'dpt')
  } | {('mit', 'daformer'), ('mit', 'segformer')}  # These fit any encoder.


_VIT = {'name': 'vit', 'num_layers': 1}
_SMALL_BIT = {'name': 'bit', 'blocks': (1, 1, 1)}


@pytest.mark.parametrize(
  ('encoder', 'decoder', 'message'),
  [
    (
      {**_VIT, 'patch_size': 14},
      {'name': 'unet'},
      'decoder unet: expected maps at strides 2, 4, 8, 16, 32, got stride 14 '
      'alone (encoder vit); use decoder dpt',
    ),
    (
      _VIT,
      {'name': 'unet', 'widths': (8, 8), 'output_stride': 4},
      'decoder unet: expected maps at strides 4, 8, 16, got stride 16 alone '
      '(encoder vit); use decoder dpt',
    ),
    (
      _VIT,
      _DEEPLAB,
      'decoder deeplabv3plus: expected maps at stride 4 and at a larger one, '
      'got stride 16 alone (encoder vit); use decoder dpt',
    ),
    (
      _VIT,
      {'name': 'dpt'},
      'decoder dpt: expected 4 maps of one stride, as those of a plain ViT, '
      'got 1 at stride 16 alone (encoder vit); choose four blocks, the last '
      'among them, in depths of the encoder',
    ),
    (
      _SMALL_BIT,
      {'name': 'dpt'},
      'decoder dpt: expected 4 maps of one stride, as those of a plain ViT, '
      'got strides 2, 4, 8, 16 (encoder bit); use decoder unet or '
      'deeplabv3plus',
    ),
    (
      _SMALL_BIT,
      {'name': 'unet', 'widths': (32, 32, 32), 'output_stride': 4},
      "head 'noise' of the decoder: no map at stride 1; there are maps at "
      'strides 4, 8, 16 (encoder bit); a decoder unet ends at stride 1 with '
      'output_stride=1',
    ),
  ],
)
def test_networks_whose_parts_do_not_fit_are_refused(encoder, decoder, message):
  module = network.build_network(
    network.NetworkOptions(encoder, decoder),
    {'noise': heads_lib.ConvHead(3)},
    'here',
  )
  # Where the side is no multiple of the patch either, this is the reason.
  for side in (64, 60):
    with pytest.raises(errors.UserError, match=re.escape(message)):
      network.check_network_image_size(module, (side, side), 'size')


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
      "head 'x': expected reads to be encoder or decoder, got 'teacher'",
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


def test_names_of_encoders_and_decoders():
  assert network.ENCODERS['resnet'] is resnet_gn.ResNet
  assert network.ENCODERS['bit'] is bit.BiT
  assert network.ENCODERS['hybrid_vit'] is hybrid_vit.HybridViT
  assert network.ENCODERS['dilated_resnet'] is resnet_lib.DilatedResNet
  assert network.ENCODERS['efficientnet'] is efficientnet.EfficientNet
  assert network.DECODERS['unet'] is unet.UNetDecoder
  assert network.DECODERS['deeplabv3plus'] is deeplabv3plus.DeepLabV3Plus
  assert network.DECODERS['dpt'] is dpt.DPT
