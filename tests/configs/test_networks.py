"""Networks by name: each is what its name says."""

import re

import pytest

from configs import networks
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
