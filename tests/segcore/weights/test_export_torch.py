"""Encoders with torchvision's names: the inverse of reading them."""

import json
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from runtime import errors
from segcore.models.encoders import resnet
from segcore.weights import __main__ as command
from segcore.weights import export_torch, load, weight_files
from segcore.weights.layouts import torchvision
from tests.support import torch_arithmetic


@pytest.mark.parametrize('unit', ['basic', 'bottleneck'])
def test_names_and_axes_are_those_of_torchvision(unit):
  state = torch_arithmetic.resnet_state(stem='plain', unit=unit)
  variables = torchvision.translate_torchvision_weights(state)
  actual = export_torch.make_torchvision_state_dict(variables)
  norms = [n for n in state if n.endswith('running_var')]
  counters = {n.replace('running_var', 'num_batches_tracked') for n in norms}
  expected = {n for n in state if not n.startswith('fc.')} | counters
  assert set(actual) == expected
  for name, value in actual.items():
    if name in counters:
      assert (value.shape, value.dtype, value) == ((), np.int64, 0)
    else:
      np.testing.assert_array_equal(value, state[name])
      assert value.dtype == np.float32 and value.flags.c_contiguous


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_the_command_writes_what_is_read_again(tmp_path, suffix, capsys):
  state = torch_arithmetic.resnet_state(stem='plain', unit='basic', classes=7)
  source, target = tmp_path / 'in.npz', tmp_path / f'out{suffix}'
  np.savez(source, **state)
  arguments = [str(source), f'--torchvision={target}']
  assert command.describe_weight_files(arguments) == 0
  printed = capsys.readouterr().out
  assert f'{target}: ' in printed and 'expects RGB in [0, 1]' in printed
  flat = weight_files.read_weight_file(target)
  assert not any(name.startswith('fc') for name in flat)
  again = load.read_weight_variables(target)['params']['encoder']
  np.testing.assert_array_equal(
    again['block2']['unit1']['conv_proj']['kernel'],
    state['layer2.0.downsample.0.weight'].transpose(2, 3, 1, 0),
  )


def test_files_say_what_the_network_expects(tmp_path):
  np.savez(
    tmp_path / 'in.npz',
    **torch_arithmetic.resnet_state(stem='plain', unit='basic'),
  )
  for name in ('out.npz', 'out.safetensors'):
    export_torch.write_encoder(
      tmp_path / 'in.npz', tmp_path / name, 'torchvision'
    )
  with zipfile.ZipFile(tmp_path / 'out.npz') as archive:
    of_npz = json.loads(archive.comment)
  with safetensors.safe_open(tmp_path / 'out.safetensors', 'np') as file:
    assert file.metadata() == {'format': 'pt', **of_npz}
  # The network here standardizes by the same numbers.
  black = resnet.standardize_images(jnp.full((1, 1, 1, 3), -1.0))[0, 0, 0]
  mean, std = (np.array(json.loads(f'[{of_npz[k]}]')) for k in ('mean', 'std'))
  np.testing.assert_allclose(black, -mean / std, rtol=1e-6)


@pytest.mark.parametrize('unit', ['basic', 'bottleneck'])
def test_detectron2_gets_its_own_names(tmp_path, unit):
  state = torch_arithmetic.resnet_state(stem='plain', unit=unit)
  np.savez(tmp_path / 'in.npz', **state)
  target = tmp_path / 'out.pkl'
  arguments = [str(tmp_path / 'in.npz'), f'--detectron2={target}']
  assert command.describe_weight_files(arguments) == 0
  content = pickle.loads(target.read_bytes())
  assert content['matching_heuristics'] and content['__author__']
  model = content['model']
  assert len(model) == sum('tracked' not in name for name in state)
  for name, other in (
    ('stem.conv1.weight', 'conv1.weight'),
    ('stem.conv1.norm.running_var', 'bn1.running_var'),
    ('res2.0.conv2.norm.weight', 'layer1.0.bn2.weight'),
    ('res3.0.shortcut.weight', 'layer2.0.downsample.0.weight'),
    ('res3.0.shortcut.norm.bias', 'layer2.0.downsample.1.bias'),
    ('res5.2.conv1.weight', 'layer4.2.conv1.weight'),
  ):
    np.testing.assert_array_equal(model[name], np.float32(state[other]))
    assert model[name].dtype == np.float32 and model[name].flags.writeable
  # Numpy before 1.26 has no module of this name.
  assert b'numpy._core' not in target.read_bytes()


@pytest.mark.parametrize(
  ('target', 'message'),
  [
    (
      'missing/out.npz',
      'expected a file that can be written, got No such file',
    ),
    ('missing/out.safetensors', 'expected a file that can be written, got No'),
    ('out.pth', 'expected a file .safetensors or .npz'),
    ('', '--torchvision'),
  ],
)
def test_a_file_that_cannot_be_written_is_named(
  tmp_path, monkeypatch, capsys, target, message
):
  monkeypatch.chdir(tmp_path)
  np.savez(
    'in.npz', **torch_arithmetic.resnet_state(stem='plain', unit='basic')
  )
  assert (
    command.describe_weight_files(['in.npz', f'--torchvision={target}']) == 2
  )
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  ('stem', 'message'),
  [
    ('deep', 'conv_stem1/kernel: expected the encoder dilated_resnet'),
    ('small', 'conv_root/kernel: expected the first convolution of 7x7'),
  ],
)
def test_other_stems_are_refused(stem, message):
  state = torch_arithmetic.resnet_state(stem=stem)
  variables = torchvision.translate_torchvision_weights(state)
  with pytest.raises(errors.UserError, match=message):
    export_torch.make_torchvision_state_dict(variables)


def test_other_files_and_other_networks_are_refused(tmp_path, capsys):
  with pytest.raises(errors.UserError, match=r'got none'):
    export_torch.make_torchvision_state_dict({'params': {'decoder': {}}})
  with pytest.raises(errors.UserError, match=r'expected a file \.safetensors'):
    export_torch.write_encoder(tmp_path, tmp_path / 'a.pth', 'torchvision')
