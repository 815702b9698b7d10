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


@pytest.mark.parametrize(
  ('prefixes', 'beside', 'left_out'),
  [
    # SwAV's and PASS's: heads and prototypes beside the network.
    (
      ['module.'],
      ['projection_head.0', 'projection_head_shallow.0', 'prototypes'],
      'projection_head, projection_head_shallow, prototypes',
    ),
    # MoCo v2's, and v3's: heads are called fc, momentum encoders are others.
    (
      ['module.encoder_q.', 'module.encoder_k.'],
      ['encoder_q.fc.0', 'queue'],
      'encoder_k, fc, queue',
    ),
    (
      ['module.base_encoder.', 'module.momentum_encoder.'],
      ['base_encoder.fc.0', 'predictor.0'],
      'fc, momentum_encoder, predictor',
    ),
    # SimSiam's.
    (['module.encoder.'], ['encoder.fc.0', 'predictor.0'], 'fc, predictor'),
    # The teacher of a full checkpoint of DINO.
    (['module.backbone.'], ['head.mlp.0'], 'head'),
  ],
)
def test_files_of_pretrainings_hold_the_encoder(
  capsys, prefixes, beside, left_out
):
  state = torch_arithmetic.resnet_state(stem='plain')
  expected = torchvision.translate_torchvision_weights(state)
  wrapped = {f'module.{name}.weight': np.ones((2, 2)) for name in beside}
  for prefix in prefixes:
    wrapped |= {f'{prefix}{name}': value for name, value in state.items()}
  variables = torchvision.translate_torchvision_weights(wrapped)
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  line = f'removed the prefix {prefixes[0]}; left out {left_out}\n'
  assert line in capsys.readouterr().out


def test_the_classifier_of_deeplabv2_is_left_out(capsys):
  state = {'layer1.0.conv1.weight': np.ones((2, 3, 1, 1), np.float32)}
  expected = torchvision.translate_torchvision_weights(state)
  capsys.readouterr()
  name = 'layer5.conv2d_list.0'
  state |= {
    f'{name}.weight': np.ones((21, 2, 3, 3)),
    f'{name}.bias': np.ones(21),
  }
  variables = torchvision.translate_torchvision_weights(state)
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  assert 'left out layer5' in capsys.readouterr().out


def _published(blocks, unit, stem):
  """Returns zeros with the names and shapes of a published ResNet."""
  shapes = {'fc.weight': (1000, 512 if unit == 'basic' else 2048)}
  shapes['fc.bias'] = (1000,)

  def add(conv, norm, *shape):
    shapes[f'{conv}.weight'] = shape
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{norm}.{leaf}'] = shape[:1]
    shapes[f'{norm}.num_batches_tracked'] = ()

  channels = 64
  if stem == 'deep':
    add('conv1.0', 'conv1.1', 64, 3, 3, 3)
    add('conv1.3', 'conv1.4', 64, 64, 3, 3)
    add('conv1.6', 'bn1', 128, 64, 3, 3)
    channels = 128
  else:
    add('conv1', 'bn1', 64, 3, 7, 7)
  for b, (units, width) in enumerate(
    zip(blocks, (64, 128, 256, 512), strict=True)
  ):
    for u in range(units):
      name = f'layer{b + 1}.{u}'
      outputs = width if unit == 'basic' else 4 * width
      if u == 0 and channels != outputs:
        add(
          f'{name}.downsample.0',
          f'{name}.downsample.1',
          *(outputs, channels, 1, 1),
        )
      if unit == 'basic':
        add(f'{name}.conv1', f'{name}.bn1', width, channels, 3, 3)
        add(f'{name}.conv2', f'{name}.bn2', width, width, 3, 3)
      else:
        add(f'{name}.conv1', f'{name}.bn1', width, channels, 1, 1)
        add(f'{name}.conv2', f'{name}.bn2', width, width, 3, 3)
        add(f'{name}.conv3', f'{name}.bn3', outputs, width, 1, 1)
      channels = outputs
  # A single zero in memory.
  return {
    name: np.broadcast_to(np.float32(0), shape)
    for name, shape in shapes.items()
  }


@pytest.mark.parametrize(
  ('blocks', 'unit', 'stem', 'count'),
  [
    # Torchvision's without the classifier. With the deep stem, three kernels
    # replace one, norms are 192 channels wider, and two convolutions of
    # layer1.0 read 64 more channels.
    ((2, 2, 2, 2), 'basic', 'plain', 11_176_512),
    ((3, 4, 6, 3), 'basic', 'plain', 21_284_672),
    ((3, 4, 6, 3), 'bottleneck', 'plain', 23_508_032),
    ((3, 4, 23, 3), 'bottleneck', 'plain', 42_500_160),
    (
      (3, 4, 23, 3),
      'bottleneck',
      'deep',
      42_500_160 - 9_408 + 1_728 + 36_864 + 73_728 + 384 + 20_480,
    ),
  ],
)
def test_published_resnets_match_whole(blocks, unit, stem, count):
  state = _published(blocks, unit, stem)
  variables = torchvision.translate_torchvision_weights(state)
  module = resnet.DilatedResNet(blocks, stem=stem, unit=unit)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  expected = jax.eval_shape(module.init, jax.random.key(0), images)
  expected = {name: {'encoder': tree} for name, tree in expected.items()}
  taken = load.select_weight_parts(variables, expected, ('encoder',), 'w')
  assert sum(x.size for x in jax.tree.leaves(taken['params'])) == count


def test_a_resnet_with_averaging_shortcuts_is_refused():
  state = torch_arithmetic.resnet_state()
  for name in list(state):
    if '.downsample.1.' in name:
      state[name.replace('.downsample.1.', '.downsample.2.')] = state.pop(name)
  for name in list(state):
    if '.downsample.0.' in name:
      state[name.replace('.downsample.0.', '.downsample.1.')] = state.pop(name)
  with pytest.raises(errors.UserError, match='ResNet-D.* average first'):
    torchvision.translate_torchvision_weights(state)


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
