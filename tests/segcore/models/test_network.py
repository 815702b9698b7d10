"""Networks by name: their sizes, and which parts fit each other."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from runtime import errors
from segcore.models import features, network, network_options
from segcore.models import heads as heads_lib
from segcore.models.decoders import deeplabv3plus, dpt, unet
from segcore.models.encoders import bit, efficientnet, hybrid_vit, resnet_gn
from segcore.models.encoders import resnet as resnet_lib


def _count(shapes):
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


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
    network_options.NetworkOptions(dict(options), None), {}, 'here'
  ).encoder
  return jax.eval_shape(
    encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )


@pytest.mark.parametrize(('encoder', 'decoder', 'encoder_size', 'size'), _SIZES)
def test_networks_have_the_published_sizes(
  encoder, decoder, encoder_size, size
):
  module = network.build_network(
    network_options.NetworkOptions(encoder, decoder),
    {'head': _HEADS[decoder['name']]},
    'here',
  )
  # Each encoder is followed once: most of the time goes there.
  maps, variables = _encode(tuple(encoder.items()))
  assert _count(variables['params']) == encoder_size
  module = module.clone(encoder=_Given(maps))
  images = jnp.zeros((1, 64, 64, 3))
  params = jax.eval_shape(module.init, jax.random.key(0), images)['params']
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
    network_options.NetworkOptions(encoder, decoder),
    {'noise': heads_lib.ConvHead(3)},
    'here',
  )
  # Where the side is no multiple of the patch either, this is the reason.
  for side in (64, 60):
    with pytest.raises(errors.UserError, match=re.escape(message)):
      network.check_network_image_size(module, (side, side), 'size')


def test_names_of_encoders_and_decoders():
  assert network.ENCODERS['resnet'] is resnet_gn.ResNet
  assert network.ENCODERS['bit'] is bit.BiT
  assert network.ENCODERS['hybrid_vit'] is hybrid_vit.HybridViT
  assert network.ENCODERS['dilated_resnet'] is resnet_lib.DilatedResNet
  assert network.ENCODERS['efficientnet'] is efficientnet.EfficientNet
  assert network.DECODERS['unet'] is unet.UNetDecoder
  assert network.DECODERS['deeplabv3plus'] is deeplabv3plus.DeepLabV3Plus
  assert network.DECODERS['dpt'] is dpt.DPT
