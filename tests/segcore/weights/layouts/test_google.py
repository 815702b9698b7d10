"""Files with the names of Google's public weights, in all their variants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from runtime import errors, json_files
from segcore.models.encoders import bit, hybrid_vit, resnet_gn
from segcore.train import checkpoint
from segcore.weights import load as load_lib
from segcore.weights.layouts import google
from tests.support import fake_checkpoints
from tests.transcriptions import ddep_layers


@functools.cache
def expected_of(encoder):
  """Returns the shapes of a network with this encoder."""
  shapes = jax.eval_shape(
    encoder.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  return {'params': {'encoder': shapes['params']}}


def select(variables, encoder, parts=('encoder',), origin='w'):
  """Returns the encoder's parameters by their names, fitted to an encoder."""
  grid = getattr(encoder, 'grid', None)
  selected = load_lib.select_weight_parts(
    variables, expected_of(encoder), parts, origin, grid
  )
  assert set(selected['params']) == {'encoder'}
  return traverse_util.flatten_dict(selected['params']['encoder'], sep='/')


def load(path, encoder, parts=('encoder',)):
  """Returns the same, of a file."""
  return select(load_lib.read_weight_variables(path), encoder, parts, str(path))


def save(path, weights):
  np.savez(path, **weights)
  return path


def test_hybrid_is_read_under_our_names(tmp_path):
  weights = fake_checkpoints.hybrid()
  params = load(save(tmp_path / 'w.npz', weights), fake_checkpoints.HYBRID)
  block = 'Transformer/encoderblock_1'
  for ours, theirs in {
    'conv_root/kernel': 'conv_root/kernel',
    'gn_root/bias': 'gn_root/bias',
    'block2/unit1/conv_proj/kernel': 'block2/unit1/conv_proj/kernel',
    'block1/unit2/gn3/scale': 'block1/unit2/gn3/scale',
    'embedding/bias': 'embedding/bias',
    'cls': 'cls',
    f'{block}/LayerNorm_0/scale': f'{block}/LayerNorm_0/scale',
    f'{block}/LayerNorm_1/scale': f'{block}/LayerNorm_2/scale',
    f'{block}/MultiHeadDotProductAttention_0/key/kernel': (
      f'{block}/MultiHeadDotProductAttention_1/key/kernel'
    ),
    f'{block}/MlpBlock_0/Dense_1/kernel': f'{block}/MlpBlock_3/Dense_1/kernel',
    'Transformer/posembed_input/pos_embedding': (
      'Transformer/posembed_input/pos_embedding'
    ),
  }.items():
    expected = weights[theirs]
    if 'gn' in ours:
      expected = expected.ravel()
    np.testing.assert_array_equal(params[ours], expected)
  kept = [name for name in weights if not name.startswith(('head', 'pre_log'))]
  assert len(params) == len(kept)


@pytest.mark.parametrize(
  'variant',
  [
    {'numbering': 'new'},
    {'group_norm_rank': 1},
    {'prefix': 'params/', 'numbering': 'new'},
    {'prefix': 'opt/target/'},
    {'positions_at': 'top', 'numbering': 'new', 'prefix': 'params/'},
    {'pre_logits': False},
    {'classes': None},
  ],
)
def test_variants_of_a_hybrid_file_are_read_alike(variant):
  other = fake_checkpoints.hybrid(**variant)
  if 'prefix' in variant:  # Other arrays of a training's checkpoint.
    other |= {'opt/state/step': np.ones(3), 'extra/seen': np.ones(2)}
  expected, params = (
    traverse_util.flatten_dict(
      google.translate_google_weights(weights)['params'], sep='/'
    )
    for weights in (fake_checkpoints.hybrid(), other)
  )
  for name, x in params.items():
    np.testing.assert_array_equal(x, expected[name])
  kinds = {'head' if 'classes' in variant else 'pre_logits'}
  absent = set(expected) - set(params)
  assert {name.split('/')[0] for name in absent} <= kinds


def test_stacked_blocks_are_taken_apart(tmp_path):
  stacked = fake_checkpoints.hybrid(stacked=True, numbering='new')
  params = load(save(tmp_path / 'w.npz', stacked), fake_checkpoints.HYBRID)
  name = 'MlpBlock_0/Dense_0/kernel'
  for i in (0, 1):
    np.testing.assert_array_equal(
      params[f'Transformer/encoderblock_{i}/{name}'],
      stacked[f'Transformer/encoderblock/{name}'][i],
    )


def test_bfloat16_is_widened(tmp_path):
  weights = fake_checkpoints.hybrid()
  weights['cls'] = weights['cls'].astype(jnp.bfloat16)
  params = load(save(tmp_path / 'w.npz', weights), fake_checkpoints.HYBRID)
  assert params['cls'].dtype == np.float32
  np.testing.assert_array_equal(params['cls'], np.float32(weights['cls']))


def test_bit_is_read_under_our_names(tmp_path, capsys):
  weights = fake_checkpoints.bit_m()
  path = save(tmp_path / 'w.npz', weights)
  params = load(path, fake_checkpoints.BIT)
  unit = 'resnet/block2/unit01'
  for ours, theirs in {
    'conv_root/kernel': 'resnet/root_block/standardized_conv2d/kernel',
    'block1/unit2/conv_b/kernel': (
      'resnet/block1/unit02/b/standardized_conv2d/kernel'
    ),
    'block2/unit1/conv_proj/kernel': (
      f'{unit}/a/proj/standardized_conv2d/kernel'
    ),
    'block2/unit1/conv_a/kernel': f'{unit}/a/standardized_conv2d/kernel',
    'block2/unit1/gn_a/scale': f'{unit}/a/group_norm/gamma',
    'block2/unit1/gn_c/bias': f'{unit}/c/group_norm/beta',
    'gn_last/scale': 'resnet/group_norm/gamma',
  }.items():
    np.testing.assert_array_equal(params[ours], weights[theirs])
  assert len(params) == len(weights) - 2
  out = capsys.readouterr().out
  assert 'read public weights of the family BiT' in out
  assert f'took encoder from {path}; left out head\n' in out


def test_unit_10_is_not_unit_1(tmp_path):
  weights = fake_checkpoints.bit_m(mids=(8, 16), blocks=(1, 10))
  encoder = fake_checkpoints.BIT.clone(blocks=(1, 10))
  params = load(save(tmp_path / 'w.npz', weights), encoder)
  np.testing.assert_array_equal(
    params['block2/unit10/conv_a/kernel'],
    weights['resnet/block2/unit10/a/standardized_conv2d/kernel'],
  )


def test_left_out_parts_are_logged(tmp_path, capsys):
  path = save(tmp_path / 'w.npz', fake_checkpoints.hybrid())
  load(path, fake_checkpoints.HYBRID)
  out = capsys.readouterr().out
  assert f'took encoder from {path}; left out pre_logits, head\n' in out


def test_network_without_a_transformer_takes_the_resnet(tmp_path, capsys):
  weights = fake_checkpoints.hybrid_of_four_blocks()
  path = save(tmp_path / 'w.npz', weights)
  params = load(path, fake_checkpoints.RESNET)
  np.testing.assert_array_equal(
    params['block4/unit1/conv2/kernel'], weights['block4/unit1/conv2/kernel']
  )
  assert not any(name.startswith(('Transformer', 'cls')) for name in params)
  assert (
    f'took encoder from {path}; left out head; left out embedding, cls, '
    'Transformer of the encoder'
  ) in capsys.readouterr().out


def test_mismatch_is_refused_with_a_diff(tmp_path):
  weights = fake_checkpoints.hybrid()
  del weights['gn_root/bias']
  weights['block1/unit1/conv1/kernel'] = np.ones((1, 1, 8, 9), np.float32)
  weights['Transformer/extra/scale'] = np.ones(3, np.float32)
  with pytest.raises(errors.UserError) as caught:
    load(save(tmp_path / 'w.npz', weights), fake_checkpoints.HYBRID)
  for line in (
    '- gn_root/bias: expected (8,), got nothing',
    '- block1/unit1/conv1/kernel: expected (1, 1, 8, 8), got (1, 1, 8, 9)',
    '- Transformer/extra/scale: expected nothing, got (3,)',
  ):
    assert line in str(caught.value)


def test_file_of_another_network_is_refused(tmp_path):
  path = save(tmp_path / 'w.npz', fake_checkpoints.bit_m())
  with pytest.raises(errors.UserError, match='does not fit the network'):
    load(path, fake_checkpoints.HYBRID)
  with pytest.raises(errors.UserError, match='has no decoder; it has encoder'):
    load(path, fake_checkpoints.BIT, ('encoder', 'decoder'))


def test_files_of_full_size_fit_the_networks():
  for weights, encoder in (
    (fake_checkpoints.hybrid(full=True), hybrid_vit.HybridViT(grid=(32, 32))),
    (
      fake_checkpoints.hybrid(
        full=True,
        mids=(64, 128, 256, 512),
        blocks=(3, 4, 6, 3),
        hidden=1024,
        heads=16,
        layers=1,
      ),
      resnet_gn.ResNet((3, 4, 6, 3)),
    ),
    (fake_checkpoints.bit_m(full=True), bit.BiT()),
  ):
    params = select(google.translate_google_weights(weights), encoder)
    expected = expected_of(encoder)['params']['encoder']
    for name, leaf in traverse_util.flatten_dict(expected, sep='/').items():
      assert params[name].shape == leaf.shape, name


# ---- Position tables.

_TABLE = 'Transformer/posembed_input/pos_embedding'


@pytest.mark.parametrize('use_cls_token', [True, False])
@pytest.mark.parametrize('grid', [(6, 6), (3, 7), (2, 8)])
def test_position_table_is_resized_to_the_networks_grid(
  tmp_path, capsys, grid, use_cls_token
):
  weights = fake_checkpoints.hybrid()
  encoder = fake_checkpoints.HYBRID.clone(
    grid=grid, use_cls_token=use_cls_token
  )
  params = load(save(tmp_path / 'w.npz', weights), encoder)
  # (2, 8) has as many cells as the 4x4 of the file, but another shape.
  expected = ddep_layers.resize_positions(weights[_TABLE], grid)
  np.testing.assert_allclose(
    params[_TABLE], expected[:, int(not use_cls_token) :], atol=1e-6
  )
  out = capsys.readouterr().out
  resized = f'resized the position table from 4x4 to {grid[0]}x{grid[1]}'
  assert resized in out
  left_out = 'left out the class token and its position'
  assert (left_out in out) == (not use_cls_token)
  assert ('cls' in params) == use_cls_token


def test_position_table_of_the_networks_grid_is_kept(tmp_path, capsys):
  weights = fake_checkpoints.hybrid()
  params = load(save(tmp_path / 'w.npz', weights), fake_checkpoints.HYBRID)
  np.testing.assert_array_equal(params[_TABLE], weights[_TABLE])
  assert 'resized' not in capsys.readouterr().out


def own_variables(grid, known=False):
  """Returns variables of a run of this project with this grid."""
  rng = np.random.default_rng(0)
  shapes = expected_of(fake_checkpoints.HYBRID.clone(grid=grid))
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )
  return {**variables, 'grid': grid} if known else variables


def table_of(variables):
  return traverse_util.flatten_dict(variables, sep='/')[
    f'params/encoder/{_TABLE}'
  ]


@pytest.mark.parametrize(
  ('old', 'known', 'new'),
  [
    ((3, 3), False, (5, 4)),
    # As many cells as the network's grid, which need not be a square.
    ((4, 9), False, (4, 9)),
    # A grid that is known is not assumed to be a square.
    ((4, 9), True, (6, 6)),
    ((3, 5), True, (4, 4)),
  ],
)
def test_position_tables_of_own_runs_are_resized_by_the_same_rule(
  old, known, new
):
  variables = own_variables(old, known)
  expected = ddep_layers.resize_positions(
    table_of(variables), new, old_grid=old
  )
  params = select(variables, fake_checkpoints.HYBRID.clone(grid=new))
  np.testing.assert_allclose(params[_TABLE], expected, atol=1e-6)


def test_unknown_grid_that_is_no_square_is_refused():
  with pytest.raises(errors.UserError) as caught:
    select(own_variables((3, 5)), fake_checkpoints.HYBRID)
  assert str(caught.value).startswith(
    'the position table of w: expected a square number of cells, since its '
    'height and width are unknown, got 15: '
  )


def test_grid_is_read_from_the_settings_of_a_stage(tmp_path):
  for grid in ({}, {'grid': (3, 5)}):
    network = {'encoder': {'name': 'hybrid_vit', **grid}}
    json_files.write_json(
      tmp_path / 'settings.json', {'settings': {'network': network}}
    )
    variables = {'params': {'encoder': {'x': jnp.ones(2)}}, 'batch_stats': {}}
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(1 + len(grid), variables)
      checkpoints.wait()
    for path in (tmp_path, tmp_path / 'checkpoints'):
      assert load_lib.read_weight_variables(path).get('grid') == grid.get(
        'grid'
      )
