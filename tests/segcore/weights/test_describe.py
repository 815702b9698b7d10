"""Files are described: encoder, fields, what is missing, how to use it."""

import re

import jax
import numpy as np
import pytest

from configs import networks
from segcore.models import network
from segcore.weights import __main__ as command
from segcore.weights import describe as describe_lib
from segcore.weights import load
from tests.support import fake_checkpoints, torch_arithmetic, torch_files


def describe(path, capsys):
  assert command.describe_weight_files([str(path)]) == 0
  return capsys.readouterr().out


def test_a_resnet_of_torch(tmp_path, capsys):
  state = torch_arithmetic.resnet_state(stem='deep', classes=10)
  renamed = {f'module.{name}': x for name, x in state.items()}
  content = {'state_dict': torch_files.tensors(renamed), 'epoch': 3}
  torch_files.save_zip(tmp_path / 'w.pth', content)
  out = describe(tmp_path / 'w.pth', capsys)
  assert 'took state_dict; left out epoch' in out
  assert 'removed the prefix module.; left out fc' in out
  assert 'holds: encoder\n' in out
  assert 'encoder: dilated_resnet(blocks=(1, 1, 2, 3), width=4)\n' in out
  assert 'lacks: decoder, heads, which start at random\n' in out
  assert (
    f'use: encoder={tmp_path}/w.pth, for a network with '
    '"--config.network.encoder.name=\'dilated_resnet\'" '
    '"--config.network.encoder.blocks=(1, 1, 2, 3)" '
    '"--config.network.encoder.width=4"\n'
  ) in out


def test_a_published_resnet_is_named(tmp_path, capsys):
  state = torch_arithmetic.resnet_state(
    blocks=(2, 2, 2, 2), width=64, stem='plain', unit='basic'
  )
  np.savez(tmp_path / 'w.npz', **state)
  out = describe(tmp_path / 'w.npz', capsys)
  assert (
    "encoder: ResNet-18: dilated_resnet(blocks=(2, 2, 2, 2), stem='plain', "
    "unit='basic')\n"
  ) in out


@pytest.mark.parametrize(
  ('make', 'expected'),
  [
    (
      fake_checkpoints.hybrid,
      'encoder: hybrid_vit(blocks=(2, 1, 1), width=8, ',
    ),
    (fake_checkpoints.bit_m, 'encoder: bit(blocks=(2, 1, 1, 1), width=8)'),
  ],
)
def test_files_of_google(tmp_path, capsys, make, expected):
  np.savez(tmp_path / 'w.npz', **make())
  out = describe(tmp_path / 'w.npz', capsys)
  assert expected in out
  assert 'use: encoder=' in out


def test_what_does_not_fit_is_listed(tmp_path, capsys):
  state = torch_arithmetic.resnet_state(stem='plain')
  del state['layer3.1.bn2.bias']
  np.savez(tmp_path / 'w.npz', **state)
  out = describe(tmp_path / 'w.npz', capsys)
  assert '- block3/unit2/bn2/bias: expected (16,), got nothing' in out
  assert 'use:' not in out


def test_a_file_of_this_project_and_unknown_ones(tmp_path, capsys):
  params = {'encoder': {'other': {'kernel': np.ones((2, 3), np.float32)}}}
  params['heads'] = {'logits': {'bias': np.zeros(3, np.float32)}}
  load.write_weights_npz(tmp_path / 'w.npz', {'params': params})
  out = describe(tmp_path / 'w.npz', capsys)
  assert 'holds: encoder, heads\n' in out
  assert 'encoder: none that is known' in out
  (tmp_path / 'x.pth').write_bytes(b'<html>')
  assert (
    command.describe_weight_files([f'{tmp_path}/x.pth', f'{tmp_path}/y']) == 2
  )
  err = capsys.readouterr().err
  assert err.count('error: ') == 2
  assert 'Traceback' not in err


def shapes_of_encoder(fields):
  """Returns the shapes of an encoder's parameters, as a file has them."""
  fields = {**fields}
  module = network.ENCODERS[fields.pop('name')](**fields)
  grid = getattr(module, 'grid', None)
  side = module.size_multiple * grid[0] if grid else 64
  images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.PRNGKey(0), images)
  given = {'position_rule': 'timm'} if fields.get('num_registers') else {}
  return {
    **{name: {'encoder': tree} for name, tree in shapes.items()},
    **({'grid': grid} if grid else {}),
    'fields': given,
  }


# MiT-B3 to B5 differ from B2 in numbers of blocks, which take long to trace.
_LONG = ('mit_b3', 'mit_b4', 'mit_b5')


# One or two of each family; the others are slow.
_FAST = (
  *('resnet18', 'resnet50_deep', 'efficientnet_lite0'),
  *('vit_b16', 'vit_s14_reg', 'mit_b0'),
)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[] if name in _FAST else [pytest.mark.slow])
    for name in networks.ENCODERS
    if name not in _LONG
  ],
)
def test_every_named_network_is_named(name):
  if name == 'efficientnet':
    pytest.skip('another name of efficientnet_lite0')
  variables = shapes_of_encoder(networks.ENCODERS[name])
  decoders = {
    'vit': 'dpt',
    'mit': 'segformer',
    'resnet': 'deeplabv3plus',
    'efficientnet': 'unet',
  }
  decoder = decoders[re.match('[a-z]+', name)[0]]
  lines = describe_lib.describe_variables(variables, 'w.pth')
  assert lines[-1] == f'use: network={name}+{decoder},encoder=w.pth'


def test_fields_that_a_network_does_not_name_are_given():
  fields = networks.ENCODERS['vit_s16'] | {'grid': (24, 24)}
  variables = shapes_of_encoder(fields)
  variables['fields'] = {'imagenet_statistics': False}
  lines = describe_lib.describe_variables(variables, 'w.pth')
  assert lines[-1] == (
    'use: network=vit_s16+dpt,encoder=w.pth '
    '"--config.network.encoder.grid=(24, 24)" '
    '"--config.network.encoder.imagenet_statistics=False"'
  )
