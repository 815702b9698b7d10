"""Torch's weights of EfficientNet: read whole, or refused with a diff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import errors
from segcore.models import segmenter
from segcore.models.encoders import efficientnet
from segcore.weights import describe, load
from segcore.weights.layouts import efficientnet as layout
from tests.support import torch_files

_NAMES = {
  'conv_stem': '_conv_stem',
  'bn_stem': '_bn0',
  'conv_head': '_conv_head',
  'bn_head': '_bn1',
  'dense': '_fc',
}
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


def _segmenter():
  return segmenter.Segmenter(
    efficientnet.EfficientNet(),
    None,
    {'classifier': efficientnet.ImageClassifier(7)},
  )


def _state():
  """Draws a state dict with torch's names, and the shapes of the network."""
  shapes = jax.eval_shape(
    _segmenter().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )
  rng = np.random.default_rng(0)
  state = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    *modules, name = [key.key for key in path]
    torch = []
    for module in modules[1:]:
      if module.startswith('block'):
        torch.append(f'_blocks.{int(module[5:]) - 1}')
      elif module not in ('encoder', 'heads', 'classifier'):
        torch.append(_NAMES.get(module, f'_{module}'))
    value = rng.normal(size=leaf.shape).astype(np.float32)
    if name == 'kernel':
      value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
    state['.'.join((*torch, _LEAVES[name]))] = np.ascontiguousarray(value)
    if name == 'mean':
      state['.'.join((*torch, 'num_batches_tracked'))] = np.array(7)
  return state


@pytest.fixture(scope='module')
def state():
  return _state()


def _load(path, parts=('encoder', 'heads/classifier')):
  return load.load_weight_parts(path, parts, _segmenter(), (1, 32, 32, 3))


def test_a_file_is_read_whole(tmp_path, state):
  torch_files.save_legacy(tmp_path / 'w.pth', torch_files.tensors(state))
  variables = _load(tmp_path / 'w.pth')
  counters = sum(name.endswith('tracked') for name in state)
  assert len(jax.tree.leaves(variables)) == len(state) - counters
  params, statistics = variables['params'], variables['batch_stats']
  for value, name in (
    (params['encoder']['conv_stem']['kernel'], '_conv_stem.weight'),
    (
      params['encoder']['block16']['depthwise_conv']['kernel'],
      '_blocks.15._depthwise_conv.weight',
    ),
    (
      params['encoder']['block2']['expand_conv']['kernel'],
      '_blocks.1._expand_conv.weight',
    ),
  ):
    np.testing.assert_array_equal(value, state[name].transpose(2, 3, 1, 0))
  head = params['heads']['classifier']
  for value, name in (
    (params['encoder']['bn_stem']['scale'], '_bn0.weight'),
    (params['encoder']['block3']['bn0']['bias'], '_blocks.2._bn0.bias'),
    (
      statistics['encoder']['block1']['bn2']['var'],
      '_blocks.0._bn2.running_var',
    ),
    (statistics['heads']['classifier']['bn_head']['mean'], '_bn1.running_mean'),
    (head['dense']['kernel'].T, '_fc.weight'),
  ):
    np.testing.assert_array_equal(value, state[name])


def test_the_encoder_alone_is_taken(tmp_path, state, capsys):
  np.savez(tmp_path / 'w.npz', **state)
  variables = _load(tmp_path / 'w.npz', ('encoder',))
  assert set(variables['params']) == {'encoder'}
  assert 'left out heads' in capsys.readouterr().out


def test_a_file_is_described(tmp_path, state):
  np.savez(tmp_path / 'w.npz', **state)
  lines = describe.describe_weights(tmp_path / 'w.npz')
  assert 'encoder: EfficientNet-Lite0: efficientnet()' in lines
  assert lines[-1] == (
    f'use: network=efficientnet_lite0+unet,encoder={tmp_path}/w.npz'
  )


def test_differences_are_listed(tmp_path, state):
  changed = {**state, '_blocks.4._se_reduce.weight': np.ones((2, 3, 1, 1))}
  del changed['_blocks.3._bn1.bias']
  np.savez(tmp_path / 'w.npz', **changed)
  with pytest.raises(errors.UserError) as raised:
    _load(tmp_path / 'w.npz')
  assert str(raised.value).splitlines()[1:] == [
    '- block4/bn1/bias: expected (144,), got nothing',
    '- block5/se_reduce/kernel: expected nothing, got (1, 1, 3, 2)',
  ]


def test_other_names_are_of_other_layouts():
  weights = {'layer1.0.conv1.weight': np.ones((1, 1, 1, 1))}
  assert layout.translate_efficientnet_weights(weights) is None
