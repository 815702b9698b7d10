"""Weights of vision transformers: read whole from every source, or a diff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import errors
from segcore.weights import __main__ as command
from segcore.weights.layouts import vit as layout
from tests.segcore.weights.layouts import encoders
from tests.support import torch_files, vit_states

_DINOV2 = {'registers': 4, 'layer_scale': True}


def _load(path, **fields):
  return encoders.load_encoder(path, encoders.small_vit(**fields), 12)


def _prefixed(prefix, state, **others):
  return {
    **{f'{prefix}{name}': x for name, x in state.items()},
    **{name: np.ones((2, 2), np.float32) for name in others.values()},
  }


def test_every_array_of_dino_is_in_its_place(tmp_path):
  state = vit_states.dino()
  np.savez(tmp_path / 'w.npz', **state)
  params = _load(tmp_path / 'w.npz')
  assert len(jax.tree.leaves(params)) == len(state) == 30
  np.testing.assert_array_equal(
    params['patch_embed']['kernel'][3, 1, 2, 7],
    state['patch_embed.proj.weight'][7, 2, 3, 1],
  )
  block = params['block1']
  for value, name in (
    (params['cls_token'], 'cls_token'),
    (params['pos_embed'], 'pos_embed'),
    (params['norm']['bias'], 'norm.bias'),
    (block['norm2']['scale'], 'blocks.1.norm2.weight'),
    (block['attn']['qkv']['kernel'].T, 'blocks.1.attn.qkv.weight'),
    (block['attn']['proj']['bias'], 'blocks.1.attn.proj.bias'),
    (block['mlp']['fc2']['kernel'].T, 'blocks.1.mlp.fc2.weight'),
  ):
    np.testing.assert_array_equal(value, state[name])


def test_published_files_have_the_number_of_arrays():
  # With the mask token of DINOv2, and its registers.
  for count, fields in (
    (150, {}),
    (175, {'layer_scale': True}),
    (176, _DINOV2),
  ):
    assert len(vit_states.dino(num_layers=12, **fields)) == count


@pytest.mark.parametrize(
  ('content', 'logged'),
  [
    # DINO's full checkpoint: the teacher is taken, without its head.
    (
      lambda state: {
        'student': _prefixed('module.backbone.', state),
        'teacher': _prefixed('backbone.', state, head='head.mlp.0.weight'),
      },
      ('took teacher; left out student', 'prefix backbone.; left out head'),
    ),
    # DINOv2's: blocks in chunks.
    (
      lambda state: {'teacher': vit_states.dinov2_training(state)},
      ('left out dino_head, ibot_head',),
    ),
    # timm's classifiers.
    (
      lambda state: _prefixed('', state, a='head.weight', b='fc_norm.weight'),
      ('left out fc_norm, head',),
    ),
    # MoCo v3.
    (
      lambda state: {
        'state_dict': {
          **_prefixed('module.base_encoder.', state, a='head.0.weight'),
          **_prefixed('module.momentum_encoder.', state),
        }
      },
      ('removed the prefix module.base_encoder.; left out',),
    ),
    # MAE.
    (
      lambda state: {
        'model': _prefixed(
          '', state, a='decoder_blocks.0.attn.qkv.weight', b='mask_token'
        )
      },
      ('left out decoder_blocks, mask_token',),
    ),
  ],
)
def test_files_of_torch_hold_the_same_encoder(
  tmp_path, capsys, content, logged
):
  state = vit_states.dino()
  expected = layout.translate_vit_weights(state)['params']['encoder']
  arrays = content(state)
  tensors = {
    name: torch_files.tensors(value) if isinstance(value, dict) else value
    for name, value in arrays.items()
  }
  if not any(isinstance(value, dict) for value in arrays.values()):
    tensors = torch_files.tensors(arrays)
  torch_files.save_zip(tmp_path / 'w.pth', tensors)
  encoders.assert_same(_load(tmp_path / 'w.pth'), expected)
  out = capsys.readouterr().out
  for text in logged:
    assert text in out


@pytest.mark.parametrize('registers', [0, 4])
@pytest.mark.parametrize('prefix', ['', 'dinov2.', 'backbone.'])
def test_hugging_face_dinov2_is_dinov2(tmp_path, registers, prefix):
  state = vit_states.dino(registers=registers, layer_scale=True)
  expected = layout.translate_vit_weights(state)['params']['encoder']
  renamed = vit_states.huggingface(state, prefix)
  renamed['classifier.weight'] = np.ones((2, 2))
  np.savez(tmp_path / 'w.npz', **renamed)
  params = _load(tmp_path / 'w.npz', layer_scale=True, num_registers=registers)
  encoders.assert_same(params, expected)
  fields = layout.translate_vit_weights(renamed)['fields']
  assert fields == {'position_rule': 'huggingface', 'norm_epsilon': 1e-6}


@pytest.mark.parametrize('prefix', ['', 'vit.'])
def test_hugging_face_vit_is_dino(tmp_path, prefix):
  state = vit_states.dino()
  expected = layout.translate_vit_weights(state)['params']['encoder']
  renamed = vit_states.huggingface(state, prefix, 'vit')
  renamed[f'{prefix}pooler.dense.weight'] = np.ones((2, 2))
  np.savez(tmp_path / 'w.npz', **renamed)
  encoders.assert_same(_load(tmp_path / 'w.npz'), expected)
  fields = layout.translate_vit_weights(renamed)['fields']
  assert fields == {'position_rule': 'huggingface', 'norm_epsilon': 1e-12}


def test_timm_with_registers_computes_the_same():
  state = vit_states.dino(**_DINOV2)
  module = encoders.small_vit(
    num_registers=4, layer_scale=True, position_rule='timm'
  )
  images = jax.random.uniform(jax.random.key(0), (1, 8, 20, 3))
  results = []
  for arrays in (state, vit_states.timm_with_registers(state)):
    variables = layout.translate_vit_weights(arrays)
    assert variables['fields'] == {'position_rule': 'timm'}
    assert variables['grid'] == (3, 3)
    params = jax.tree.map(jnp.asarray, variables['params']['encoder'])
    results.append(module.apply({'params': params}, images).deepest.array)
  np.testing.assert_allclose(*results, atol=1e-5)


def test_a_missing_key_of_hugging_face_is_listed(tmp_path):
  renamed = vit_states.huggingface(vit_states.dino())
  del renamed['encoder.layer.0.attention.attention.key.weight']
  np.savez(tmp_path / 'w.npz', **renamed)
  with pytest.raises(errors.UserError, match='- block0/attn/qkv/kernel: .*'):
    _load(tmp_path / 'w.npz')


@pytest.mark.parametrize(
  'names',
  [
    ('block1.0.attn.q.weight', 'patch_embed1.proj.weight'),
    ('layers.0.blocks.0.attn.qkv.weight',),
    ('layer1.0.conv1.weight',),
    (),
  ],
)
def test_other_names_are_not_translated(names):
  arrays = {name: np.ones((2, 2)) for name in names}
  assert layout.translate_vit_weights(arrays) is None


@pytest.mark.parametrize(
  ('make', 'expected'),
  [
    (lambda state: state, 'vit(mlp_dim=48, patch_size=4, grid=(3, 3))'),
    (
      lambda state: vit_states.huggingface(state, '', 'vit'),
      'vit(mlp_dim=48, patch_size=4, grid=(3, 3), '
      "position_rule='huggingface', norm_epsilon=1e-12)",
    ),
  ],
)
def test_files_are_described(tmp_path, capsys, make, expected):
  state = vit_states.dino(size=384, num_layers=12)
  state = {
    name: x[:48] if name.endswith('fc1.weight') else x
    for name, x in state.items()
  }
  for name in list(state):
    if '.mlp.fc1.bias' in name:
      state[name] = state[name][:48]
    if '.mlp.fc2.weight' in name:
      state[name] = state[name][:, :48]
  np.savez(tmp_path / 'w.npz', **make(state))
  assert command.describe_weight_files([f'{tmp_path}/w.npz']) == 0
  out = capsys.readouterr().out
  assert f'encoder: {expected}\n' in out
  assert f'use: encoder={tmp_path}/w.npz' in out
