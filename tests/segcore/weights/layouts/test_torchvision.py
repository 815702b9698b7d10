"""Weights with torch's names: read whole, or refused with a diff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from runtime import errors
from segcore.models import heads, segmenter
from segcore.models.encoders import resnet
from segcore.weights import load
from segcore.weights.layouts import torchvision
from tests.support import torch_arithmetic


def _segmenter(stem, unit):
  encoder = resnet.DilatedResNet((1, 1, 2, 3), 4, stem, unit=unit)
  head = heads.ConvHead(3, reads='encoder', stride=None)
  return segmenter.Segmenter(encoder, None, {'logits': head})


def _write(path, state):
  if path.suffix == '.npz':
    np.savez(path, **state)
  else:
    safetensors.numpy.save_file(state, path)


def _load(path, stem='deep', unit='bottleneck'):
  module = _segmenter(stem, unit)
  return load.load_weight_parts(path, ('encoder',), module, (1, 64, 64, 3))


@pytest.mark.parametrize('stem', ['deep', 'plain'])
@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_files_are_read_whole(tmp_path, capsys, stem, suffix):
  state = torch_arithmetic.resnet_state(stem=stem, classes=10)
  _write(tmp_path / f'w{suffix}', state)
  variables = _load(tmp_path / f'w{suffix}', stem)
  assert "torch's weights: left out fc\n" in capsys.readouterr().out
  # Every array but the counters and the classifier, each in its place.
  leaves = jax.tree.leaves(variables)
  skipped = sum(
    name.startswith('fc.') or name.endswith('tracked') for name in state
  )
  assert len(leaves) == len(state) - skipped
  params = variables['params']['encoder']
  statistics = variables['batch_stats']['encoder']
  np.testing.assert_array_equal(
    params['block3']['unit2']['conv2']['kernel'][2, 0, 5, 7],
    state['layer3.1.conv2.weight'][7, 5, 2, 0],
  )
  projection = 'layer2.0.downsample'
  for value, name in (
    (params['bn_root']['scale'], 'bn1.weight'),
    (params['block4']['unit3']['bn3']['bias'], 'layer4.2.bn3.bias'),
    (statistics['bn_root']['var'], 'bn1.running_var'),
    (
      statistics['block2']['unit1']['bn_proj']['mean'],
      f'{projection}.1.running_mean',
    ),
  ):
    np.testing.assert_array_equal(value, state[name])
  root = 'conv1.6.weight' if stem == 'deep' else 'conv1.weight'
  np.testing.assert_array_equal(
    params['conv_root']['kernel'], state[root].transpose(2, 3, 1, 0)
  )


@pytest.mark.parametrize('stem', ['plain', 'small'])
def test_basic_units_are_read_whole(tmp_path, stem):
  state = torch_arithmetic.resnet_state(stem=stem, unit='basic')
  _write(tmp_path / 'w.npz', state)
  variables = _load(tmp_path / 'w.npz', stem, 'basic')
  skipped = sum(name.endswith('tracked') for name in state)
  assert len(jax.tree.leaves(variables)) == len(state) - skipped
  params = variables['params']['encoder']
  assert set(params['block1']['unit1']) == {'conv1', 'bn1', 'conv2', 'bn2'}
  for value, name in (
    (params['conv_root']['kernel'], 'conv1.weight'),
    (params['block1']['unit1']['conv1']['kernel'], 'layer1.0.conv1.weight'),
    (params['block4']['unit3']['conv2']['kernel'], 'layer4.2.conv2.weight'),
    (
      params['block2']['unit1']['conv_proj']['kernel'],
      'layer2.0.downsample.0.weight',
    ),
  ):
    np.testing.assert_array_equal(value, state[name].transpose(2, 3, 1, 0))
  statistics = variables['batch_stats']['encoder']['block2']['unit1']
  np.testing.assert_array_equal(
    statistics['bn_proj']['mean'], state['layer2.0.downsample.1.running_mean']
  )
  with pytest.raises(
    errors.UserError, match='- block1/unit1/bn3/bias: expected .* got nothing'
  ):
    _load(tmp_path / 'w.npz', stem)


@pytest.mark.parametrize(
  'prefix', ['module.', 'encoder.', 'backbone.', 'module.encoder.']
)
def test_prefixes_of_wrappers_are_removed(capsys, prefix):
  state = torch_arithmetic.resnet_state()
  expected = torchvision.translate_torchvision_weights(state)
  wrapped = {f'{prefix}{name}': value for name, value in state.items()}
  if prefix != 'module.':
    outside = prefix.replace('encoder.', '').replace('backbone.', '')
    wrapped[f'{outside}decoder.conv.weight'] = np.ones((1, 1, 1, 1))
    wrapped[f'{outside}classifier.bias'] = np.ones(3)
  variables = torchvision.translate_torchvision_weights(wrapped)
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  line = '' if prefix == 'module.' else 'left out classifier, decoder\n'
  assert capsys.readouterr().out.endswith(line)


def test_half_precision_is_widened():
  state = torch_arithmetic.resnet_state()
  halved = {
    name: np.asarray(jnp.asarray(value, jnp.bfloat16))
    for name, value in state.items()
  }
  variables = torchvision.translate_torchvision_weights(halved)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
    np.dtype(np.float32)
  }


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda state: state.pop('layer3.1.bn2.bias'),
      '- block3/unit2/bn2/bias: expected (16,), got nothing',
    ),
    (
      lambda state: state.update({'layer1.0.se.fc.weight': np.ones((2, 3))}),
      '- block1/unit1/se.fc/scale: expected nothing, got (2, 3)',
    ),
    (
      lambda state: state.update({'conv1.6.weight': np.ones((9, 4, 3, 3))}),
      '- conv_root/kernel: expected (3, 3, 4, 8), got (3, 3, 4, 9)',
    ),
    (
      lambda state: state.update({'extra.gamma': np.ones(3)}),
      '- extra/gamma: expected nothing, got (3,)',
    ),
  ],
)
def test_mismatch_is_refused(tmp_path, change, message):
  state = torch_arithmetic.resnet_state()
  change(state)
  _write(tmp_path / 'w.npz', state)
  with pytest.raises(errors.UserError) as caught:
    _load(tmp_path / 'w.npz')
  assert message in str(caught.value)


def test_missing_statistics_are_refused(tmp_path):
  state = torch_arithmetic.resnet_state()
  del state['layer4.0.bn1.running_var']
  _write(tmp_path / 'w.npz', state)
  with pytest.raises(
    errors.UserError, match=r'batch_stats/encoder of .*\n- block4/unit1/bn1/var'
  ):
    _load(tmp_path / 'w.npz')


@pytest.mark.parametrize(
  'names',
  [
    ('params/encoder/conv_root/kernel',),
    ('encoder.layers.0.weight', 'patch_embed.proj.weight'),
    ('Transformer/encoder_norm/bias',),
    (),
  ],
)
def test_other_names_are_not_translated(names):
  assert (
    torchvision.translate_torchvision_weights({n: np.ones(2) for n in names})
    is None
  )
