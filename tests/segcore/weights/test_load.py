import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax

from runtime import errors
from segcore.train import checkpoint
from segcore.weights import load


def tree(value=1.0, width=4):
  return {
    'params': {
      'encoder': {'conv': {'kernel': np.full((3, width), value)}},
      'decoder': {'conv': {'kernel': np.full((2,), 2 * value)}},
    },
    'batch_stats': {'encoder': {'bn': {'mean': np.full((width,), value)}}},
  }


def shapes(**fields):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree(**fields)
  )


def test_npz_and_safetensors_round_trip(tmp_path):
  load.write_weights_npz(tmp_path / 'w.npz', tree(5.0))
  flat = {
    'params/encoder/conv/kernel': jnp.full((3, 4), 5.0, jnp.bfloat16),
    'params/decoder/conv/kernel': jnp.full((2,), 10.0),
    'batch_stats/encoder/bn/mean': jnp.full((4,), 5.0),
  }
  safetensors.flax.save_file(flat, tmp_path / 'w.safetensors')
  for name in ('w.npz', 'w.safetensors'):
    variables = load.read_weight_variables(tmp_path / name)
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(np.asarray(a, np.float32), b),
      variables,
      tree(5.0),
    )


def test_stage_folder_is_read(tmp_path, monkeypatch):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(7, {**jax.tree.map(jnp.asarray, tree(3.0)), 'slots': ()})
    checkpoints.wait()
  monkeypatch.chdir(tmp_path.parent)
  relative = pathlib.Path(tmp_path.name)
  for path in (tmp_path, tmp_path / 'checkpoints', relative):
    variables = load.read_weight_variables(path)
    np.testing.assert_array_equal(
      variables['params']['encoder']['conv']['kernel'], np.full((3, 4), 3.0)
    )


def test_parts_are_selected_with_their_batch_statistics(capsys):
  selected = load.select_weight_parts(
    tree(2.0), shapes(), ('encoder',), 'w.npz'
  )
  assert set(selected['params']) == {'encoder'}
  np.testing.assert_array_equal(
    selected['batch_stats']['encoder']['bn']['mean'], np.full((4,), 2.0)
  )
  assert 'took encoder from w.npz; left out decoder' in capsys.readouterr().out


def test_mismatch_is_refused_with_a_diff():
  with pytest.raises(errors.UserError) as caught:
    load.select_weight_parts(tree(width=5), shapes(), ('encoder',), 'w.npz')
  assert str(caught.value) == (
    'params/encoder of w.npz does not fit the network:\n'
    '- conv/kernel: expected (3, 4), got (3, 5)'
  )
  wrong = tree()
  kernel = wrong['params']['encoder']['conv'].pop('kernel')
  wrong['params']['encoder']['conv']['weight'] = kernel
  with pytest.raises(errors.UserError) as caught:
    load.select_weight_parts(wrong, shapes(), ('encoder',), 'w.npz')
  assert '- conv/kernel: expected (3, 4), got nothing' in str(caught.value)
  assert '- conv/weight: expected nothing, got (3, 4)' in str(caught.value)


def test_missing_part_is_named():
  with pytest.raises(errors.UserError, match='w has no heads; it has encoder'):
    load.select_weight_parts(tree(), shapes(), ('heads',), 'w')


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('missing.npz', None, 'does not exist: expected the folder of a stage'),
    (
      'w.h5',
      b'x',
      'expected a .npz or .safetensors or .pth or .pt or .tar or .bin file',
    ),
    ('w.pth', b'x', 'is not a readable file of torch'),
    (
      'other.npz',
      {'stem/kernel': np.ones(3)},
      'expected names that begin with params/ .* got stem/',
    ),
    ('w.npz', b'x', 'not a readable .npz file'),
    ('w.safetensors', b'x', 'not a readable .safetensors file'),
  ],
)
def test_unreadable_files(tmp_path, name, content, message):
  if isinstance(content, dict):
    np.savez(tmp_path / name, **content)
  elif content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(errors.UserError, match=message):
    load.read_weight_variables(tmp_path / name)


def test_pickles_are_not_read(tmp_path):
  np.savez(tmp_path / 'w.npz', x=np.array([{'a': 1}], dtype=object))
  with pytest.raises(errors.UserError, match='not a readable'):
    load.read_weight_variables(tmp_path / 'w.npz')
