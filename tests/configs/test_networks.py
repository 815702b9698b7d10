"""Networks by name: each is what its name says."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from configs import networks
from runtime import errors
from runtime import options as options_lib
from segcore.models import heads, network_options
from segcore.models import network as network_lib
from segcore.models.encoders import mit, vit


def test_fields_of_vits_are_those_of_the_published_sizes():
  for size, fields in vit.SIZES.items():
    for patch_size in (16, 8, 14):
      name = f'vit_{size[0]}{patch_size}'
      if name in networks.ENCODERS:
        encoder = networks.ENCODERS[name]
        assert encoder.items() >= fields.items()
        assert encoder['patch_size'] == patch_size
        # DINOv2 was trained on images of 518 pixels, DINO of 224.
        side = 518 if patch_size == 14 else 224
        assert encoder['grid'] == (side // patch_size,) * 2
  registers = networks.ENCODERS['vit_s14_reg']
  assert registers == networks.ENCODERS['vit_s14'] | {
    'num_registers': 4,
    'position_rule': 'timm',
  }


def test_fields_of_mits_are_those_of_the_published_sizes():
  for name, fields in mit.SIZES.items():
    assert networks.ENCODERS[f'mit_{name}'] == {'name': 'mit', **fields}


def test_names_of_encoders():
  vits = ['s16', 'b16', 's8', 'b8', 's14', 'b14', 'l14']
  vits += ['s14_reg', 'b14_reg', 'l14_reg']
  assert {*networks.ENCODERS} == {
    'efficientnet',
    *(f'efficientnet_lite{i}' for i in range(5)),
    *(f'resnet{depth}' for depth in (18, 34, 50, 101)),
    *(f'resnet{depth}_deep' for depth in (18, 34, 50, 101)),
    *(f'vit_{name}' for name in vits),
    *(f'mit_b{i}' for i in range(6)),
  }


def test_small_networks_are_those_without_a_name():
  for name in networks.SMALL:
    assert networks.named(f'small+{name}') == networks.small(name)
    assert networks.named(f'small+{name}', width=2) == networks.small(name, 2)
  small = networks.named('small+deeplabv3plus')
  assert small == networks.small_deeplabv3plus()


def test_frozen_parts_are_those_with_public_weights():
  frozen = {
    name: networks.named(f'{name}+unet', frozen=True).encoder
    for name in ('efficientnet', 'resnet50', 'vit_s14', 'small')
  }
  assert frozen['efficientnet'].frozen_blocks == 5
  assert frozen['vit_s14'].frozen
  for name in ('resnet50', 'small'):
    assert frozen[name] == networks.named(f'{name}+unet').encoder


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    (
      'efficientnt+unet',
      'network=efficientnt+unet: expected ENCODER+DECODER, as efficientnet+unet'
      "; the encoder 'efficientnt' is unknown; did you mean 'efficientnet'? "
      'Expected one of small, efficientnet, efficientnet_lite0,',
    ),
    ('vit_s14+dtp', "the decoder 'dtp' is unknown; did you mean 'dpt'? "),
    ('resnet50', "the decoder '' is unknown, expected one of unet, deeplab"),
    ('small+dpt', "the decoder 'dpt' is unknown, expected one of unet, trans"),
    ('resnet50+unet+dpt', "the decoder 'unet+dpt' is unknown; did you mean "),
  ],
)
def test_unknown_names_are_refused_with_the_nearest(name, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    networks.named(name)


def _build(name, head, **options):
  block = networks.named(name, **options)
  # Widths and depths do not decide whether decoder and encoder fit.
  if block.encoder.name == 'vit' and block.decoder.name == 'dpt':
    block.encoder.update(hidden_size=64, num_heads=1, mlp_dim=64)
  network = options_lib.build_options(
    network_options.NetworkOptions, block, 'config.network'
  )
  return network_lib.build_network(network, {'logits': head}, 'config.network')


def test_fields_of_all_networks_exist():
  for encoder in networks.ENCODERS:
    for decoder in networks.DECODERS:
      other = {'frozen': True, 'full_resolution': decoder == 'unet'}
      for options in ({}, other):
        net = _build(f'{encoder}+{decoder}', heads.ConvHead(2), **options)
        assert isinstance(net.decoder, network_lib.DECODERS[decoder])


def test_a_unet_goes_on_to_full_resolution():
  net = _build('efficientnet+unet', heads.ConvHead(2), full_resolution=True)
  images = jnp.zeros((1, 64, 64, 3))
  logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
  assert logits['logits'].shape == (1, 64, 64, 2)


@pytest.mark.parametrize(
  ('text', 'skips'),
  [
    ('all', True),
    ('none', False),
    ('coarse', (16, 8)),
    ('8', (8,)),
    ('16-4', (16, 4)),
  ],
)
def test_skips_are_those_of_the_option(text, skips):
  blocks = [
    networks.named('efficientnet+unet', skips=text),
    networks.small('unet', skips=text),
    networks.unet('transunet', skips=text),
  ]
  assert [block.decoder.get('skips', True) for block in blocks] == [skips] * 3
  # The strides of a MiT's maps end at 4, whatever is left to the default.
  whole = networks.named('mit_b0+unet', skips=text, full_resolution=True)
  assert whole.decoder.skips == ((16, 8, 4) if skips is True else skips)


def test_skips_are_refused_where_they_change_nothing():
  for text in ('', '16-', '16,8', '32', '16-6', 'fine'):
    with pytest.raises(ValueError, match=f'skips={text}: expected all, none,'):
      networks.named('efficientnet+unet', skips=text)
  for fields in ({'skips': '8'}, {'full_resolution': True}):
    for name in ('resnet50+deeplabv3plus', 'small+deeplabv3plus'):
      with pytest.raises(
        ValueError, match=r'expected network=.*\+unet, as they'
      ):
        networks.named(name, **fields)


def test_a_unet_on_a_mit_has_no_skip_at_stride_2():
  net = _build('mit_b0+unet', heads.ConvHead(2), full_resolution=True)
  assert net.size_multiple == 32
  images = jnp.zeros((1, 64, 32, 3))
  logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
  assert logits['logits'].shape == (1, 64, 32, 2)


def test_a_unet_on_a_deep_stem_is_refused():
  net = _build('resnet18_deep+unet', heads.ConvHead(2, nearest=True))
  with pytest.raises(errors.UserError, match="must have stem='plain'"):
    network_lib.check_network_image_size(net, (64, 64), 'size')


# SegFormer's decoder reads the same maps as DAFormer's.
@pytest.mark.parametrize(
  'decoder', [name for name in networks.DECODERS if name != 'daformer']
)
@pytest.mark.parametrize(
  'encoder',
  ['efficientnet', 'resnet18', 'mit_b0', 'vit_s14_reg', 'vit_b8', 'vit_s16'],
)
def test_networks_are_built_or_refused(encoder, decoder):
  name = f'{encoder}+{decoder}'
  net = _build(name, heads.ConvHead(2, nearest=True))
  fits = decoder == 'segformer' or ('vit' in encoder) == (decoder == 'dpt')
  size = 2 * math.lcm(net.size_multiple, 16)
  if not fits:
    with pytest.raises(
      errors.UserError, match=rf'decoder {decoder}: expected .*; use decoder '
    ):
      network_lib.check_network_image_size(net, (size, size), 'size')
    return
  images = jnp.zeros((1, size, 2 * size, 3))
  logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
  stride = {'vit_s14_reg': 14, 'vit_b8': 8, 'vit_s16': 16}.get(encoder, 4)
  if decoder == 'dpt':  # A ViT's patches are upsampled by 8.
    stride /= 8
  cells = int(size / stride)
  assert logits['logits'].shape == (1, cells, 2 * cells, 2)
