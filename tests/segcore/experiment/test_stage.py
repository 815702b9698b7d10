import hashlib
import json

import pytest

from runtime import errors
from segcore.experiment import placement, stage
from segcore.train import workspace as workspace_lib
from tests.support import lock_holder


def writes(log, name, text='x'):
  def run(place):
    log.append(name)
    path = place.directory / 'out.txt'
    path.write_text(text + ''.join(sorted(map(str, place.needed))))
    return [path]

  return run


def chain(log, rate=1):
  return [
    stage.Stage('a', {'rate': rate}, writes(log, 'a')),
    stage.Stage('b', {}, writes(log, 'b'), needs=('a',)),
  ]


def test_finished_stages_are_skipped(tmp_path):
  log = []
  stage.run_stages(chain(log), tmp_path)
  stage.run_stages(chain(log), tmp_path)
  assert log == ['a', 'b']
  done = json.loads((tmp_path / 'a' / 'DONE.json').read_text())
  assert done['outputs'] == {'out.txt': hashlib.sha256(b'x').hexdigest()}


def test_an_interrupted_stage_runs_again_and_the_next_follows(tmp_path):
  log = []

  def breaks(place):
    raise KeyboardInterrupt

  stages = chain(log)
  broken = [stages[0], stage.Stage('b', {}, breaks, needs=('a',))]
  with pytest.raises(KeyboardInterrupt):
    stage.run_stages(broken, tmp_path)
  assert not (tmp_path / 'b' / 'DONE.json').exists()
  assert {p.name for p in tmp_path.iterdir()} == {'a', 'b'}
  stage.run_stages(stages, tmp_path)
  assert log == ['a', 'b']


def test_a_stage_that_another_process_works_on_is_refused(tmp_path):
  log, saved = [], []
  stages = chain(log)
  with (
    lock_holder.holding(tmp_path / '.b.lock') as process,
    pytest.raises(errors.UserError) as caught,
  ):
    stage.run_stages(stages, tmp_path, (), lambda *args: saved.append(args))
  assert f'process {process.pid} on' in str(caught.value)
  assert f'is working on {tmp_path}/b: wait for it' in str(caught.value)
  # Before anything is written.
  assert not log and not saved
  assert [p.name for p in tmp_path.iterdir()] == ['.b.lock']
  stage.run_stages(stages, tmp_path)
  assert log == ['a', 'b']
  assert {p.name for p in tmp_path.iterdir()} == {'a', 'b'}


def test_a_stage_that_work_folders_share_by_links_is_locked_once(tmp_path):
  shared = tmp_path / 'shared' / 'a'
  shared.mkdir(parents=True)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'a').symlink_to(shared)
  with (
    lock_holder.holding(shared.with_name('.a.lock')),
    pytest.raises(errors.UserError, match='is working on .*/run/a: wait'),
  ):
    stage.run_stages(chain([])[:1], tmp_path / 'run')


def test_changed_libraries_are_reported_and_the_stage_goes_on(
  tmp_path, monkeypatch, capsys
):
  def start(breaks, **versions):
    monkeypatch.setattr(
      stage.host_settings, 'library_versions', lambda: versions
    )

    def run(place):
      if breaks:
        raise KeyboardInterrupt
      return []

    stage.run_stages([stage.Stage('a', {}, run)], tmp_path)
    return capsys.readouterr().out

  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      start(True, numpy='2.0', resizer='not installed')
  assert 'warning' not in capsys.readouterr().out
  line = start(False, numpy='2.0', resizer='4.0')
  assert 'a was started with other libraries' in line
  assert 'resizer: not installed -> 4.0' in line
  assert 'numpy' not in line
  assert (tmp_path / 'a' / 'DONE.json').exists()


def test_other_settings_are_refused_also_further_down(tmp_path):
  stage.run_stages(chain([]), tmp_path)
  with pytest.raises(errors.UserError) as caught:
    stage.run_stages(chain([], rate=2), tmp_path)
  assert f'{tmp_path}/a was made with other settings' in str(caught.value)
  assert 'settings.rate: 1 -> 2' in str(caught.value)
  assert 'choose another --workdir' in str(caught.value)
  # Only the second stage is left of the old run: its parent's digest differs.
  (tmp_path / 'a' / 'settings.json').unlink()
  with pytest.raises(errors.UserError, match=r'/b was made with .*needs\.a'):
    stage.run_stages(chain([], rate=2), tmp_path)


def test_nothing_runs_before_all_is_checked(tmp_path):
  log = []
  stage.run_stages([chain(log)[0]], tmp_path)
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'settings.json').write_text('{}')
  (tmp_path / 'a' / 'DONE.json').unlink()
  with pytest.raises(errors.UserError, match='/b was made with other'):
    stage.run_stages(chain(log), tmp_path)
  assert log == ['a']


def test_a_stage_comes_after_what_it_needs(tmp_path):
  with pytest.raises(errors.UserError, match='b needs a, which must come befo'):
    stage.run_stages(chain([])[::-1], tmp_path)


def report(log, flip=False, rate=1):
  return [
    *chain(log, rate)[:1],
    stage.Stage(
      'report', {'flip': flip}, writes(log, 'report'), ('a',), is_report=True
    ),
  ]


def test_another_report_goes_beside_the_first(tmp_path, capsys):
  log = []
  saved = []

  def save(workdir, replaces):
    saved.append(replaces)

  stage.run_stages(report(log), tmp_path, save_config=save)
  capsys.readouterr()
  for _ in range(2):  # The same command does nothing the second time.
    stage.run_stages(report(log, flip=True), tmp_path, save_config=save)
  assert log == ['a', 'report', 'report']
  # The config stays that of the training.
  assert saved == [True, False, False]
  out = capsys.readouterr().out
  folder = tmp_path / 'report-flip=True'
  assert f'flip: False -> True): the results go to {folder}' in out
  for path in (folder, tmp_path / 'report'):
    done = json.loads((path / 'DONE.json').read_text())
    assert done['outputs'].keys() == {'out.txt'}
  # Of another training there is no report here.
  with pytest.raises(errors.UserError, match='/a was made with other settings'):
    stage.run_stages(report(log, flip=True, rate=2), tmp_path)
  # Nothing was reported yet: there is nothing to keep.
  (tmp_path / 'report' / 'DONE.json').unlink()
  stage.run_stages(report(log, flip='both'), tmp_path)
  settings = json.loads((tmp_path / 'report' / 'settings.json').read_text())
  assert settings['settings'] == {'flip': 'both'}


def longer(log, steps, requested, reason='', last='report'):
  extension = placement.Extension(
    'settings.steps', requested, lambda directory, old: reason
  )
  return [
    stage.Stage('a', {'steps': steps}, writes(log, steps), extension=extension),
    stage.Stage(last, {}, writes(log, last), ('a',), is_report=last != 'b'),
  ]


def test_a_longer_training_is_continued_if_asked_for(tmp_path):
  log = []
  stage.run_stages(longer(log, 6, requested=False), tmp_path)
  (tmp_path / 'a' / 'checkpoints').mkdir()
  with pytest.raises(errors.UserError) as caught:
    stage.run_stages(longer(log, 9, requested=False), tmp_path)
  assert (
    f'{tmp_path}/a: expected 6 steps as it was made with, got 9: to '
    in str(caught.value)
  )
  assert 'add --config.operation.extend=True' in str(caught.value)
  with pytest.raises(errors.UserError, match='got 9: cosine'):
    stage.run_stages(longer(log, 9, requested=True, reason='cosine'), tmp_path)
  with pytest.raises(errors.UserError, match='report needs a with all its ste'):
    stage.run_stages(longer(log, 9, requested=True), tmp_path, only=('report',))
  for _ in range(2):
    stage.run_stages(longer(log, 9, requested=True), tmp_path)
  assert log == [6, 'report', 9, 'report']
  assert (tmp_path / 'a' / 'checkpoints').exists()
  assert {p.name for p in tmp_path.iterdir()} == {
    *('a', 'report', 'report-6_steps')
  }
  # Back to fewer steps there is no way.
  with pytest.raises(errors.UserError, match='settings.steps: 9 -> 6'):
    stage.run_stages(longer(log, 6, requested=True), tmp_path)


def test_what_was_trained_on_a_training_stays_with_it(tmp_path):
  stage.run_stages(longer([], 6, requested=True, last='b'), tmp_path)
  with pytest.raises(errors.UserError, match='/b started from a after 6 steps'):
    stage.run_stages(longer([], 9, requested=True, last='b'), tmp_path)


def test_a_damaged_mark_is_one_line(tmp_path):
  stage.run_stages(chain([]), tmp_path)
  (tmp_path / 'a' / 'settings.json').write_text('{"sett')
  with pytest.raises(errors.UserError, match=r'settings\.json is damaged'):
    stage.run_stages(chain([]), tmp_path)


def test_only_narrows_and_says_what_is_missing(tmp_path):
  log = []
  with pytest.raises(
    errors.UserError, match='--stage: expected one of a, b, got c'
  ):
    stage.run_stages(chain(log), tmp_path, only=('c',))
  with pytest.raises(
    errors.UserError, match='b needs a, which is not finished'
  ):
    stage.run_stages(chain(log), tmp_path, only=('b',))
  stage.run_stages(chain(log), tmp_path, only=('a',))
  stage.run_stages(chain(log), tmp_path, only=('b',))
  assert log == ['a', 'b']


def test_a_changed_output_is_not_built_upon(tmp_path):
  log = []
  stage.run_stages(chain(log), tmp_path, only=('a',))
  (tmp_path / 'a' / 'out.txt').write_text('y')
  with pytest.raises(errors.UserError, match=r'out\.txt is missing or changed'):
    stage.run_stages(chain(log), tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='cannot write .* --workdir'):
    stage.run_stages(chain([]), tmp_path / 'file')


def test_a_request_to_stop_is_seen_between_stages_and_counted_on(
  tmp_path, monkeypatch
):
  calls = []

  def sync_point(call):
    calls.append(call)
    return call == 4

  monkeypatch.setattr(stage.jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(
    stage.multihost_utils, 'reached_preemption_sync_point', sync_point
  )
  log = []

  def steps(place):
    log.append([place.preemption.reached() for _ in range(2)])
    return []

  stages = [stage.Stage('a', {}, steps), stage.Stage('b', {}, steps)]
  with pytest.raises(workspace_lib.Preempted, match='ready to start b'):
    stage.run_stages(stages, tmp_path)
  assert calls == [1, 2, 3, 4]
  assert log == [[False, False]]
