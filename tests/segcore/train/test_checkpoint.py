import errno
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import checkpoints as benchmark
from runtime import errors
from segcore.distributed import sharding
from segcore.train import checkpoint
from segcore.weights import checkpoint_reader
from tests.support import host_threads, runs


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
  """Truncates every array file of a checkpoint."""
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


def test_the_best_state_is_saved_after_the_latest_one(tmp_path, monkeypatch):
  """Saves that overlap would meet at barriers of one name on several hosts."""
  finished = []
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    save = checkpoints._best.save

    def save_best(*args, **kwargs):
      finished.append((tmp_path / 'checkpoints' / '7').exists())
      return save(*args, **kwargs)

    monkeypatch.setattr(checkpoints._best, 'save', save_best)
    latest = checkpoints._latest
    waited = latest.wait_until_finished
    monkeypatch.setattr(
      latest, 'wait_until_finished', lambda: finished.append('wait') or waited()
    )
    checkpoints.save(7, state(7.0))
    finished.clear()
    checkpoints.save_best(7, state(7.0), 0.5)
  assert finished[:2] == ['wait', True]


def test_two_latest_are_kept_and_the_newest_is_restored(saved):
  names = {p.name for p in (saved / 'checkpoints').iterdir()}
  assert names == {'2', '3'}
  with checkpoint.Checkpoints(saved) as checkpoints:
    step, restored = checkpoints.restore(abstract())
  assert step == 3
  np.testing.assert_array_equal(restored['slots'][0], [0.0, 3.0, 6.0])
  np.testing.assert_array_equal(
    restored['params']['encoder']['kernel'], np.full((4, 8), 3.0)
  )


def test_kept_memory_is_returned_when_the_save_before_has_ended(
  tmp_path, monkeypatch
):
  finished = []
  with checkpoint.Checkpoints(tmp_path) as checkpoints:

    def record():
      finished.append({p.name for p in (tmp_path / 'checkpoints').iterdir()})

    monkeypatch.setattr(checkpoint.memory, 'return_freed_memory', record)
    for step in (1, 2):
      checkpoints.save(step, state(float(step)))
  assert finished == [set(), {'1'}]


def test_empty_folder_restores_none(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(abstract()) is None
    assert checkpoints.best_value(before=10) is None


def test_damaged_checkpoint_restores_the_one_before(saved, caplog):
  damage(saved / 'checkpoints' / '3')
  with checkpoint.Checkpoints(saved) as checkpoints:
    step, restored = checkpoints.restore(abstract())
    assert step == 2
    assert int(restored['step']) == 2
    # The same step can be saved again.
    checkpoints.save(3, state(3.0))
    checkpoints.wait()
  assert 'checkpoint 3' in caplog.text
  assert 'is damaged' in caplog.text
  assert (saved / 'damaged-3').is_dir()
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore(abstract())[0] == 3


def test_all_damaged_is_an_error_and_deletes_nothing(saved):
  for step in (2, 3):
    damage(saved / 'checkpoints' / str(step))
  for _ in range(2):
    with (
      checkpoint.Checkpoints(saved) as checkpoints,
      pytest.raises(errors.UserError, match=r'all checkpoints .* damaged'),
    ):
      checkpoints.restore(abstract())
    assert {p.name for p in (saved / 'checkpoints').iterdir()} == {'2', '3'}


def test_corruptions_are_found_or_have_no_effect(tmp_path):
  """A sample of the 200 corruptions of the benchmark."""
  outcomes = benchmark.corrupt_all(range(20), tmp_path)
  assert {*outcomes} <= {'previous used', 'no effect'}, outcomes
  assert len(outcomes['previous used']) >= 10


def largest_file(folder):
  files = [f for f in folder.rglob('*') if f.is_file()]
  return max(files, key=lambda f: f.stat().st_size)


def flip(path, at):
  data = bytearray(path.read_bytes())
  data[at] ^= 16
  path.write_bytes(data)


def test_a_flipped_bit_of_an_array_is_found_and_the_array_named(
  tmp_path, caplog
):
  rng = np.random.default_rng(0)
  values = {'kernel': jnp.asarray(rng.integers(0, 2**32, 5000, np.uint32))}
  benchmark.save(tmp_path, {1: values, 2: values})
  file = largest_file(tmp_path / 'checkpoints/2/state')
  # Random bits are stored as they are: compressing would make them longer.
  flip(file, file.stat().st_size // 2)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    step, restored = checkpoints.restore(benchmark.abstract(values))
  assert step == 1
  np.testing.assert_array_equal(restored['kernel'], values['kernel'])
  assert "(['kernel']: the checksum differs from that of the a" in caplog.text


def test_a_lost_chunk_is_not_restored_as_zeros(saved):
  folder = saved / 'checkpoints' / '3' / 'state'
  largest_file(folder).unlink()
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore(abstract())[0] == 2


@pytest.mark.parametrize('content', ['', '{', '{"arrays": {}}', '[]', 'null'])
def test_a_damaged_manifest_is_found(saved, content, caplog):
  (saved / 'checkpoints/3/meta/metadata').write_text(content)
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore(abstract())[0] == 2
  assert 'checkpoint 3 in' in caplog.text


def test_metadata_that_name_another_shape_are_damaged(saved, caplog):
  path = saved / 'checkpoints/3/state/_METADATA'
  path.write_text(path.read_text().replace('kernel', 'kernal'))
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore(abstract())[0] == 2


@pytest.mark.parametrize('content', [{}, {'value': 0.5}])
def test_checkpoints_without_a_manifest_are_restored(saved, content, caplog):
  path = saved / 'checkpoints/3/meta/metadata'
  path.write_text(json.dumps(content))
  with checkpoint.Checkpoints(saved) as checkpoints:
    step, restored = checkpoints.restore(abstract())
  assert step == 3
  np.testing.assert_array_equal(restored['slots'][0], [0.0, 3.0, 6.0])
  assert 'was saved without checksums, by an earlier version' in caplog.text
  fields = checkpoint_reader.read_checkpoint_fields(saved / 'checkpoints')
  assert fields['params']['encoder']['kernel'].shape == (4, 8)


def test_the_reader_refuses_damaged_arrays(saved):
  rng = np.random.default_rng(0)
  values = {
    'params': jnp.asarray(rng.integers(0, 2**32, 5000, np.uint32)),
    'step': jnp.asarray(9),
  }
  benchmark.save(saved / 'other', {9: values})
  folder = saved / 'other/checkpoints'
  file = largest_file(folder)
  flip(file, file.stat().st_size // 2)
  # What is asked for is checked, and nothing else.
  assert (
    int(checkpoint_reader.read_checkpoint_fields(folder, ('step',))['step'])
    == 9
  )
  with pytest.raises(
    errors.UserError, match="'params'.*: the checksum differs"
  ):
    checkpoint_reader.read_checkpoint_fields(folder)


OTHER_KIND = checkpoint._Attempt(checkpoint._OTHER_KIND, 'another kind')
UNREADABLE = checkpoint._Attempt(checkpoint._DAMAGED, 'cannot be read')


def changed(attempt):
  state = {**attempt.state, 'slots': (jnp.ones(3),)}
  return attempt._replace(state=state)


@pytest.mark.parametrize(
  ('damage', 'expected'),
  [
    (lambda attempt: attempt, 3),
    (lambda attempt: UNREADABLE, 2),
    (changed, 2),
    (lambda attempt: OTHER_KIND, 2),
    (
      lambda attempt: attempt._replace(
        outcome=checkpoint._RESTORED_UNCHECKED, saved=None
      ),
      2,
    ),
  ],
  ids=['none', 'unreadable', 'other bytes', 'other kind', 'no manifest'],
)
def test_hosts_agree_though_one_of_them_reads_something_else(
  saved, on_hosts, damage, expected, monkeypatch
):
  opened = [checkpoint.Checkpoints(saved) for _ in range(host_threads.HOSTS)]
  attempts = {step: opened[0]._attempt(step, abstract()) for step in (2, 3)}
  for host, checkpoints in enumerate(opened):
    own = dict(attempts)
    if host == 1:
      own[3] = damage(own[3])
    monkeypatch.setattr(
      checkpoints, '_attempt', lambda step, _, own=own: own[step]
    )
    monkeypatch.setattr(checkpoints._latest, 'reload', lambda: None)
  results = on_hosts(lambda i: opened[i].restore(abstract())[0])
  assert results == [expected] * host_threads.HOSTS
  assert (saved / 'damaged-3').is_dir() == (expected == 2)


@pytest.mark.slow
def test_two_processes_agree_on_the_checkpoint_they_restore(tmp_path):
  port = runs.free_port()
  environment = {**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  processes = [
    subprocess.Popen(
      [
        sys.executable,
        '-m',
        'tests.support.restoring_host',
        str(i),
        str(port),
        str(tmp_path),
      ],
      cwd=runs.ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for process in processes:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    results = [x for x in out.splitlines() if x.startswith('RESULT')]
    assert results == [
      'RESULT none 2 True',
      'RESULT file 1 True',
      'RESULT bytes 1 True',
      'RESULT disk 1 True',
    ], err


def test_damaged_best_state_is_replaced(tmp_path, caplog):
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


def test_checkpoints_ignore_preemption(tmp_path, monkeypatch):
  """Checks that Orbax does not query jax, which answers only once."""

  def query(step):
    raise AssertionError(f'Orbax queried preemption at step {step}')

  monkeypatch.setattr(
    checkpoint.multihost_utils, 'reached_preemption_sync_point', query
  )
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state(1.0))
    checkpoints.save_best(1, state(1.0), 0.5)
    checkpoints.wait()
    assert checkpoints.restore(abstract())[0] == 1


def test_unfinished_save_is_ignored(saved):
  folder = saved / 'checkpoints'
  shutil.copytree(folder / '3', folder / '4.orbax-checkpoint-tmp')
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore(abstract())[0] == 3


def test_best_states_of_later_steps_are_ignored(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save_best(10, state(10.0), 0.5)
    checkpoints.save(20, state(20.0))
    checkpoints.save_best(30, state(30.0), 0.7)
    assert checkpoints.best_value(before=31) == 0.7
    # After resuming from step 20, the best state of step 30 is ignored …
    assert checkpoints.best_value(before=30) is None
    # … and saved again.
    checkpoints.save_best(30, state(30.0), 0.7)
    checkpoints.wait()
  best = checkpoint_reader.read_checkpoint_fields(
    tmp_path / 'best', ('params', 'step')
  )
  assert int(best['step']) == 30
  assert set(best) == {'params', 'step'}
  assert isinstance(best['params']['encoder']['kernel'], np.ndarray)


def test_reading_an_empty_folder_is_an_error(tmp_path):
  with pytest.raises(errors.UserError, match='no checkpoint in .*: train it'):
    checkpoint_reader.read_checkpoint_fields(tmp_path)
  # The folder of a run instead of that of its stage.
  (tmp_path / 'train/checkpoints').mkdir(parents=True)
  with pytest.raises(errors.UserError, match='did you mean .*/train[?]'):
    checkpoint_reader.read_checkpoint_fields(tmp_path)


def test_full_disk_is_a_user_error(tmp_path, monkeypatch):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state(1.0))
    checkpoints.wait()

    def full(*args, **kwargs):
      raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(checkpoints._latest, 'save', full)
    with pytest.raises(errors.UserError, match='is full: earlier checkp'):
      checkpoints.save(2, state(2.0))
    assert checkpoints.restore(abstract())[0] == 1


def test_state_saved_on_8_devices_restores_on_1_2_and_4(tmp_path, monkeypatch):
  monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 16)
  values = {'kernel': jnp.arange(64.0).reshape(8, 8), 'bias': jnp.arange(3.0)}

  def shardings(count):
    mesh = sharding.make_mesh(fsdp=count, devices=jax.devices()[:count])
    return sharding.state_shardings(mesh, values)

  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, jax.device_put(values, shardings(8)))
    checkpoints.wait()
    for count in (1, 2, 4):
      target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        values,
        shardings(count),
      )
      _, restored = checkpoints.restore(target)
      kernel = restored['kernel']
      np.testing.assert_array_equal(kernel, values['kernel'])
      assert len(kernel.sharding.device_set) == count
      expected = PartitionSpec('fsdp', None) if count > 1 else PartitionSpec()
      assert kernel.sharding.is_equivalent_to(
        NamedSharding(kernel.sharding.mesh, expected), ndim=2
      )


def test_state_of_other_shapes_is_refused_and_kept(saved):
  other = abstract()
  other['params']['encoder']['kernel'] = jax.ShapeDtypeStruct(
    (4, 9), jnp.float32
  )
  with (
    checkpoint.Checkpoints(saved) as checkpoints,
    pytest.raises(errors.UserError, match='another kind of state') as caught,
  ):
    checkpoints.restore(other)
  assert (
    "['params']['encoder']['kernel']: expected (4, 9), got (4, 8) (1 arrays"
  ) in str(caught.value)
  assert {p.name for p in (saved / 'checkpoints').iterdir()} == {'2', '3'}


def test_full_disk_of_a_real_file_system(tmp_path):
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
      pytest.raises(errors.UserError, match='is full: earlier checkpoints'),
      checkpoint.Checkpoints(tmp_path / 'run') as checkpoints,
    ):
      for step in range(1, 9):
        checkpoints.save(step, big)
        checkpoints.wait()
    with checkpoint.Checkpoints(tmp_path / 'run') as checkpoints:
      step, restored = checkpoints.restore(
        jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
          big,
        )
      )
    assert step >= 1
    np.testing.assert_array_equal(restored['a'], big['a'])
  finally:
    # Lazily, since a failed thread may not have closed its file yet.
    subprocess.run(['umount', '--lazy', tmp_path], check=True)
