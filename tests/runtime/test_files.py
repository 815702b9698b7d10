"""Work folders in a bucket behave as those on a local file system."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from runtime import errors, files, metrics_file
from segcore.eval import panels
from segcore.experiment import stage
from segcore.train import checkpoint, tensorboard
from segcore.weights import checkpoint_reader


def test_parse_path_distinguishes_buckets_from_local_paths(monkeypatch):
  monkeypatch.setattr(files, '_is_installed', lambda package: False)
  assert files.parse_file_path('a/b', '') == pathlib.Path('a/b')
  assert files.parse_file_path('~/b', '') == pathlib.Path.home() / 'b'
  with pytest.raises(errors.UserError, match='needs a package: pip install'):
    files.parse_file_path('gs://bucket/run', '--workdir')
  with pytest.raises(
    errors.UserError, match='--workdir: expected a folder or gs.* got s4://b'
  ):
    files.parse_file_path('s4://b', '--workdir')
  monkeypatch.setattr(files, '_is_installed', lambda package: True)
  actual = files.parse_file_path('gs://bucket/run', '--workdir')
  assert str(actual / 'a') == 'gs://bucket/run/a'
  assert not files.is_local_path(actual)
  assert str(files.absolute_path(actual)) == 'gs://bucket/run'


def test_files_are_written_and_listed(folder):
  (folder / 'a').mkdir(parents=True)
  files.write_atomically(folder / 'a' / 'x.json', 'é')
  files.write_atomically(folder / 'b', b'12')
  files.write_atomically(folder / 'b', b'123')
  assert (folder / 'a' / 'x.json').read_text() == 'é'
  names = [str(f.relative_to(folder)) for f in files.walk_files(folder)]
  assert names == ['a/x.json', 'b']
  assert [*files.walk_files(folder / 'b')] == [folder / 'b']
  before = files.file_checksum(folder / 'b')
  files.write_atomically(folder / 'b', b'12')
  assert files.file_checksum(folder / 'b') != before
  files.remove_folder(folder / 'a')
  files.remove_folder(folder / 'a')
  assert [*files.walk_files(folder)] == [folder / 'b']


def test_an_unfinished_write_keeps_the_old_file(folder):
  path = folder / 'deep' / 'x'
  for before in ((), ('x',)):
    with pytest.raises(ZeroDivisionError), files.atomic_file(path) as file:
      file.write(b'half')
      raise ZeroDivisionError
    actual = path.parent.iterdir() if path.parent.exists() else ()
    assert tuple(entry.name for entry in actual) == before
    files.write_atomically(path, 'old')
  assert path.read_text() == 'old'


def test_a_metrics_file_continues_at_the_checkpoint(folder):
  folder.mkdir(parents=True)
  path = folder / 'metrics.jsonl'
  log = metrics_file.MetricsFile(path, step=0)
  for step in (1, 2, 3):
    log.write(step, {'loss': 1.0})
  log.flush()
  log.flush()
  log = metrics_file.MetricsFile(path, step=2)
  assert [x['step'] for x in metrics_file.read_metrics_file(path)] == [1, 2]
  log.write(3, {'loss': 2.0})
  log.flush()
  actual = metrics_file.read_metrics_file(path)
  assert [(x['step'], x['loss']) for x in actual] == [(1, 1), (2, 1), (3, 2)]


def test_pictures_and_events_in_a_bucket_have_the_same_bytes(folder, tmp_path):
  folder.mkdir(parents=True)
  picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  panels.write_picture_png(folder / 'a.png', picture)
  panels.write_picture_png(tmp_path / 'b.png', picture)
  expected = (tmp_path / 'b.png').read_bytes()
  assert (folder / 'a.png').read_bytes() == expected
  with tensorboard.SummaryWriter(folder / 'events') as writer:
    writer.write_scalars(1, {'loss': 0.5})
    writer.flush()
    (path,) = (folder / 'events').iterdir()
    first = path.read_bytes()
    writer.write_scalars(2, {'loss': 0.25})
  assert b'loss' in first
  assert path.read_bytes().startswith(first)
  assert len(path.read_bytes()) > len(first)
  # A restart waits for a later name, and marks it for TensorBoard.
  with tensorboard.SummaryWriter(folder / 'events', resume_step=1):
    pass
  names = sorted(p.name for p in (folder / 'events').iterdir())
  assert names[0] == path.name
  assert len(names) == 2


def test_checkpoints_are_kept_restored_and_set_aside(folder):
  def state(value):
    # Larger than what Orbax puts beside the names.
    return {'w': jnp.full((64, 64), value), 'step': jnp.int32(value)}

  with checkpoint.Checkpoints(folder) as saved:
    for step in (1, 2, 3):
      saved.save(step, state(step))
    saved.save_best(2, state(2), 0.5)
    saved.wait()
    assert saved.best_value(before=3) == 0.5
  assert (
    checkpoint_reader.read_checkpoint_fields(folder / 'checkpoints', ('w',))[
      'w'
    ][0, 0]
    == 3
  )
  assert (
    checkpoint_reader.read_checkpoint_fields(folder / 'best', ('w',))['w'][
      63, 63
    ]
    == 2
  )
  for path in files.walk_files(folder / 'checkpoints' / '3' / 'state'):
    if '/d/' in str(path):
      path.write_bytes(b'')
  spec = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state(0),
  )
  with checkpoint.Checkpoints(folder) as saved:
    step, actual = saved.restore(spec)
    assert (step, int(actual['step']), float(actual['w'][5, 5])) == (2, 2, 2.0)
    saved.save(3, state(4))
    saved.wait()
  assert (folder / 'damaged-3').is_dir()
  assert (
    checkpoint_reader.read_checkpoint_fields(folder / 'checkpoints', ('w',))[
      'w'
    ][0, 0]
    == 4
  )


def test_stages_run_once_and_are_verified(folder):
  ran = []

  def make(place):
    ran.append(place.directory.name)
    files.write_atomically(place.directory / 'made.txt', 'made')
    (place.directory / 'empty').mkdir()
    return [place.directory / 'made.txt', place.directory / 'empty']

  stages = [
    stage.Stage('one', {'a': 1}, make),
    stage.Stage('two', {'b': 1}, make, needs=('one',)),
  ]
  stage.run_stages(stages, folder)
  stage.run_stages(stages, folder)
  assert ran == ['one', 'two']
  done = json.loads((folder / 'one' / 'DONE.json').read_text())
  assert [*done['outputs']] == ['made.txt']
  others = [stage.Stage('one', {'a': 2}, make)]
  with pytest.raises(errors.UserError, match='a: 1 -> 2'):
    stage.run_stages(others, folder)
  files.write_atomically(folder / 'one' / 'made.txt', 'changed')
  with pytest.raises(errors.UserError, match='is missing or changed since'):
    stage.require_finished_stage(folder / 'one', 'two')


def test_the_fake_bucket_does_not_append_or_rename(objects):
  with pytest.raises(NotImplementedError):
    epath.Path('gs://bucket/a').open('a')
  epath.Path('gs://bucket/b/c').mkdir(parents=True)
  assert not epath.Path('gs://bucket/b').exists()
  assert objects == {}
