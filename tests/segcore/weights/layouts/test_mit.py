"""Weights of MiT: read whole from every source, or a diff."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from runtime import errors
from segcore.models.encoders import mit
from segcore.weights import __main__ as command
from segcore.weights import load
from segcore.weights.layouts import mit as layout
from tests.segcore.weights.layouts import encoders
from tests.support import mit_states, torch_files


def _load(path, **fields):
  return encoders.load_encoder(path, mit.MiT(**fields), 32)


def _state(**fields):
  return mit_states.official(**mit_states.SMALL, **fields)


def _prefixed(prefix, state):
  return {f'{prefix}{name}': x for name, x in state.items()}


def test_the_authors_file_of_b0_is_read_whole(tmp_path, capsys):
  """With its names, its shapes, and its classifier of 1000 classes."""
  state = mit_states.official(**mit_states.B0, classes=1000)
  assert len(state) == 178
  torch_files.save_zip(tmp_path / 'mit_b0.pth', torch_files.tensors(state))
  params = _load(tmp_path / 'mit_b0.pth', **mit.SIZES['b0'])
  assert 'left out head' in capsys.readouterr().out
  assert len(jax.tree.leaves(params)) == 176
  np.testing.assert_array_equal(
    params['stage1']['patch_embed']['kernel'][3, 1, 2, 7],
    state['patch_embed1.proj.weight'][7, 2, 3, 1],
  )
  stage, block = params['stage3'], params['stage3']['block1']
  for value, name in (
    (stage['patch_norm']['scale'], 'patch_embed3.norm.weight'),
    (stage['norm']['bias'], 'norm3.bias'),
    (block['norm2']['scale'], 'block3.1.norm2.weight'),
    (block['attn']['q']['kernel'].T, 'block3.1.attn.q.weight'),
    (block['attn']['kv']['kernel'].T, 'block3.1.attn.kv.weight'),
    (block['attn']['norm']['bias'], 'block3.1.attn.norm.bias'),
    (block['mlp']['fc2']['kernel'].T, 'block3.1.mlp.fc2.weight'),
    (block['mlp']['dwconv']['bias'], 'block3.1.mlp.dwconv.dwconv.bias'),
  ):
    np.testing.assert_array_equal(value, state[name])
  dwconv = state['block3.1.mlp.dwconv.dwconv.weight']
  np.testing.assert_array_equal(
    block['mlp']['dwconv']['kernel'][:, :, 0, 5], dwconv[5, 0]
  )

  assert command.describe_weight_files([f'{tmp_path}/mit_b0.pth']) == 0
  out = capsys.readouterr().out
  assert 'left out head' in out
  assert 'encoder: MiT-B0: mit(hidden_sizes=(32, 64, 160, 256))\n' in out
  assert f'use: network=mit_b0+segformer,encoder={tmp_path}/mit_b0.pth\n' in out


@pytest.mark.parametrize(
  ('rename', 'logged'),
  [
    (lambda state: state, 'left out head'),
    # A segmenter of mmsegmentation, and DAFormer's with student and teacher.
    (
      lambda state: {
        **_prefixed('backbone.', state),
        'decode_head.linear_fuse.conv.weight': np.ones((2, 2), np.float32),
      },
      'removed the prefix backbone.; left out decode_head, head',
    ),
    (
      lambda state: {
        **_prefixed('model.backbone.', state),
        **_prefixed('ema_model.backbone.', state),
        'model.decode_head.conv_seg.bias': np.ones(2, np.float32),
      },
      'removed the prefix model.backbone.; left out decode_head, ema_model',
    ),
    # AFA's network, on several devices.
    (
      lambda state: {
        **_prefixed('module.encoder.', state),
        'module.attn_proj.weight': np.ones((2, 2), np.float32),
      },
      'removed the prefix module.encoder.; left out attn_proj, head',
    ),
    # Hugging Face's classifier and segmenter, and its bare encoder.
    (mit_states.huggingface, 'removed the prefix segformer.encoder.'),
    (
      lambda state: mit_states.huggingface(state, 'encoder.'),
      'removed the prefix encoder.',
    ),
  ],
)
def test_all_sources_hold_the_same_encoder(tmp_path, capsys, rename, logged):
  state = _state(classes=2)
  path = tmp_path / 'w.safetensors'
  safetensors.numpy.save_file(
    {name: np.ascontiguousarray(x) for name, x in rename(state).items()}, path
  )
  params = load.read_weight_variables(path)['params']['encoder']
  assert logged in capsys.readouterr().out
  del state['head.weight'], state['head.bias']
  encoders.assert_same(
    params, layout.translate_mit_weights(state)['params']['encoder']
  )
  assert len(jax.tree.leaves(params)) == len(state)


def test_a_missing_key_of_hugging_face_is_listed(tmp_path):
  renamed = mit_states.huggingface(_state())
  del renamed['segformer.encoder.block.0.0.attention.self.key.weight']
  np.savez(tmp_path / 'w.npz', **renamed)
  with pytest.raises(errors.UserError, match='- stage1/block0/attn/kv/kernel'):
    _load(tmp_path / 'w.npz', **encoders.SMALL_MIT)


def test_fields_are_read_from_shapes(tmp_path, capsys):
  state = mit_states.official((8, 16, 24, 16), (1, 2, 1, 1), (4, 4, 1, 1))
  np.savez(tmp_path / 'w.npz', **state)
  assert command.describe_weight_files([f'{tmp_path}/w.npz']) == 0
  assert (
    'encoder: mit(hidden_sizes=(8, 16, 24, 16), num_layers=(1, 2, 1, 1), '
    'num_heads=(1, 2, 3, 2), reductions=(4, 4, 1, 1))\n'
  ) in capsys.readouterr().out


@pytest.mark.parametrize(
  'names',
  [
    ('blocks.0.attn.qkv.weight', 'patch_embed.proj.weight'),
    ('encoder.layer.0.attention.attention.query.weight',),
    ('layer1.0.conv1.weight',),
    (),
  ],
)
def test_other_names_are_not_translated(names):
  arrays = {name: np.ones((2, 2)) for name in names}
  assert layout.translate_mit_weights(arrays) is None
