import errno
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from runtime import errors
from segcore.distributed import sharding
from segcore.train import checkpoint
from segcore.weights import checkpoint_reader


def state(value):
  return {
    'params': {'encoder': {'kernel': jnp.full((4, 8), value)}, 'heads': {}},
    'batch_stats': {},
    'step': jnp.asarray(int(value), jnp.int32),
    'slots': (jnp.arange(3.0) * value,),
  }


def abstract():
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state(0.0),
  )


def damage(folder):
  """Cuts every array file of a checkpoint short."""
  files = [f for f in (folder / 'state').rglob('*') if f.is_file()]
  for file in files:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.fixture
def saved(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, state(float(step)))
    checkpoints.wait()
  return tmp_path


def test_latest_two_are_kept_and_the_newest_restored(saved):
  names = {p.name for p in (saved / 'checkpoints').iterdir()}
  assert names == {'2', '3'}
  with checkpoint.Checkpoints(saved) as checkpoints:
    step, found = checkpoints.restore(abstract())
  assert step == 3
  np.testing.assert_array_equal(found['slots'][0], [0.0, 3.0, 6.0])
  np.testing.assert_array_equal(
    found['params']['encoder']['kernel'], np.full((4, 8), 3.0)
  )


def test_nothing_saved_is_none(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(abstract()) is None
    assert checkpoints.best_value(before=10) is None


def test_a_damaged_checkpoint_falls_back_and_says_so(saved, caplog):
  damage(saved / 'checkpoints' / '3')
  with checkpoint.Checkpoints(saved) as checkpoints:
    step, found = checkpoints.restore(abstract())
    assert step == 2
    assert int(found['step']) == 2
    # The same step can be saved again.
    checkpoints.save(3, state(3.0))
    checkpoints.wait()
  assert 'checkpoint 3' in caplog.text
  assert 'is damaged' in caplog.text
  assert (saved / 'damaged-3').is_dir()
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore(abstract())[0] == 3


def test_all_damaged_is_an_error_each_time_and_loses_nothing(saved):
  for step in (2, 3):
    damage(saved / 'checkpoints' / str(step))
  for _ in range(2):
    with (
      checkpoint.Checkpoints(saved) as checkpoints,
      pytest.raises(errors.UserError, match=r'all checkpoints .* damaged'),
    ):
      checkpoints.restore(abstract())
    assert {p.name for p in (saved / 'checkpoints').iterdir()} == {'2', '3'}


def test_a_damaged_best_state_is_replaced(tmp_path, caplog):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save_best(10, state(10.0), 0.9)
  for file in (tmp_path / 'best' / '10' / 'meta').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.best_value(before=20) is None
    checkpoints.save_best(20, state(20.0), 0.5)
    assert checkpoints.best_value(before=30) == 0.5
  assert 'the best state in' in caplog.text


def test_checkpoints_leave_the_request_to_stop_to_the_loop(
  tmp_path, monkeypatch
):
  """Asked with Orbax's own count, jax would never tell the loop."""

  def asked(step):
    raise AssertionError(f'Orbax asked at {step}')

  monkeypatch.setattr(
    checkpoint.multihost_utils, 'reached_preemption_sync_point', asked
  )
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state(1.0))
    checkpoints.save_best(1, state(1.0), 0.5)
    checkpoints.wait()
    assert checkpoints.restore(abstract())[0] == 1


def test_an_unfinished_save_is_not_seen(saved):
  folder = saved / 'checkpoints'
  shutil.copytree(folder / '3', folder / '4.orbax-checkpoint-tmp')
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore(abstract())[0] == 3


def test_best_is_apart_and_forgets_its_own_future(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save_best(10, state(10.0), 0.5)
    checkpoints.save(20, state(20.0))
    checkpoints.save_best(30, state(30.0), 0.7)
    assert checkpoints.best_value(before=31) == 0.7
    # Set back to 20: what is known of step 30 does not count yet …
    assert checkpoints.best_value(before=30) is None
    # … and is found once more.
    checkpoints.save_best(30, state(30.0), 0.7)
    checkpoints.wait()
  found = checkpoint_reader.read(tmp_path / 'best', ('params', 'step'))
  assert int(found['step']) == 30
  assert set(found) == {'params', 'step'}
  assert isinstance(found['params']['encoder']['kernel'], np.ndarray)


def test_read_says_what_is_missing(tmp_path):
  with pytest.raises(errors.UserError, match='no checkpoint in .*: train it'):
    checkpoint_reader.read(tmp_path)
  # A run's folder in the place of its stage's.
  (tmp_path / 'train/checkpoints').mkdir(parents=True)
  with pytest.raises(errors.UserError, match='did you mean .*/train[?]'):
    checkpoint_reader.read(tmp_path)


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state(1.0))
    checkpoints.wait()

    def full(*args, **kwargs):
      raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(checkpoints._latest, 'save', full)
    with pytest.raises(errors.UserError, match='is full: the checkp'):
      checkpoints.save(2, state(2.0))
    assert checkpoints.restore(abstract())[0] == 1


def test_a_state_saved_on_8_devices_resumes_on_1_2_and_4(tmp_path, monkeypatch):
  monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 16)
  values = {'kernel': jnp.arange(64.0).reshape(8, 8), 'bias': jnp.arange(3.0)}

  def placed(count):
    mesh = sharding.make_mesh(fsdp=count, devices=jax.devices()[:count])
    return sharding.state_shardings(mesh, values)

  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, jax.device_put(values, placed(8)))
    checkpoints.wait()
    for count in (1, 2, 4):
      target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        values,
        placed(count),
      )
      _, found = checkpoints.restore(target)
      np.testing.assert_array_equal(found['kernel'], values['kernel'])
      assert len(found['kernel'].sharding.device_set) == count
      expected = PartitionSpec('fsdp', None) if count > 1 else PartitionSpec()
      assert found['kernel'].sharding.is_equivalent_to(
        NamedSharding(found['kernel'].sharding.mesh, expected), ndim=2
      )


def test_a_state_of_another_make_is_refused_and_kept(saved):
  other = abstract()
  other['params']['encoder']['kernel'] = jax.ShapeDtypeStruct(
    (4, 9), jnp.float32
  )
  with (
    checkpoint.Checkpoints(saved) as checkpoints,
    pytest.raises(errors.UserError, match='another kind of state') as caught,
  ):
    checkpoints.restore(other)
  assert "['params']['encoder']['kernel'] found (4, 8), expected (4, 9); 1" in (
    str(caught.value)
  )
  assert {p.name for p in (saved / 'checkpoints').iterdir()} == {'2', '3'}


def test_a_disk_that_really_is_full(tmp_path):
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', tmp_path],
    capture_output=True,
    check=False,
  )
  if mounted.returncode:
    pytest.skip('needs the right to mount a small file system')
  rng = np.random.default_rng(0)
  big = {'a': jnp.asarray(rng.standard_normal(20000), jnp.float32)}
  try:
    with (
      pytest.raises(errors.UserError, match='is full: the checkpoints before'),
      checkpoint.Checkpoints(tmp_path / 'run') as checkpoints,
    ):
      for step in range(1, 9):
        checkpoints.save(step, big)
        checkpoints.wait()
    with checkpoint.Checkpoints(tmp_path / 'run') as checkpoints:
      step, found = checkpoints.restore(
        jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
          big,
        )
      )
    assert step >= 1
    np.testing.assert_array_equal(found['a'], big['a'])
  finally:
    # Lazily: a thread that failed may not have closed its file yet.
    subprocess.run(['umount', '--lazy', tmp_path], check=True)
