"""Encoders with torchvision's names: the inverse of reading them."""

import numpy as np
import pytest

from runtime import errors
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
  assert f'{target}: ' in capsys.readouterr().out
  flat = weight_files.read_weight_file(target)
  assert not any(name.startswith('fc') for name in flat)
  again = load.read_weight_variables(target)['params']['encoder']
  np.testing.assert_array_equal(
    again['block2']['unit1']['conv_proj']['kernel'],
    state['layer2.0.downsample.0.weight'].transpose(2, 3, 1, 0),
  )


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
    export_torch.write_torchvision_encoder(tmp_path, tmp_path / 'a.pth')
