"""Shards written by several processes are those of one."""

import multiprocessing
import types

import pytest

from input_pipeline import prepare, report
from input_pipeline.builders import shard_processes, shards
from runtime import errors
from tests.support import archive_files, official, slow_writer
from tests.support import official_cases as cases


@pytest.mark.parametrize(
  ('status', 'message'),
  [
    (None, 'got one that answers no longer: run the same command'),
    (1, 'got one that ended with status 1: see what it printed'),
    (-9, 'got one that was killed by signal 9'),
  ],
)
def test_the_end_of_a_pipe_says_how_its_process_ended(status, message):
  process = types.SimpleNamespace(join=lambda timeout: None, exitcode=status)
  with (
    pytest.raises(errors.UserError, match=message),
    shard_processes._explaining_death(process, 2),
  ):
    raise EOFError


@pytest.mark.parametrize(
  ('writer', 'expected', 'message'),
  [
    ({'failures': {'b': ZeroDivisionError('of b')}}, ZeroDivisionError, 'of b'),
    ({'failures': {'b': ConnectionError('of b')}}, ConnectionError, 'of b'),
    (
      {'killed': 'b'},
      errors.UserError,
      'got one .*killed by signal 9.*fewer jobs',
    ),
  ],
)
def test_a_failure_of_a_process_is_raised(tmp_path, writer, expected, message):
  writer = slow_writer.SlowWriter(tmp_path, **writer)
  counts = []
  with pytest.raises(expected, match=message) as raised:
    shard_processes.write_shards(writer, ('a', 'b', 'c'), 1, counts.append)
  assert [path.name for path in tmp_path.iterdir()] == ['a']
  assert sum(counts) == 3
  if expected is ZeroDivisionError:
    assert 'in write_shard' in raised.value.__notes__[0]


@pytest.mark.parametrize('other', ['slow', 'stuck'])
def test_a_killed_process_ends_the_others(tmp_path, monkeypatch, other):
  monkeypatch.setattr(shard_processes, '_GRACE', 1 if other == 'stuck' else 30)
  names = [f'{i:02}' for i in range(50)]
  writer = slow_writer.SlowWriter(
    tmp_path, killed='02', stuck='01' if other == 'stuck' else ''
  )
  with pytest.raises(errors.UserError, match='expected 2 processes to write'):
    shard_processes.write_shards(writer, names, 2, lambda _: None)
  assert not multiprocessing.active_children()
  written = {path.name for path in tmp_path.iterdir()}
  assert written <= {'00', '01', '03', '04'} and '00' in written


class _TwoParts(Exception):
  """Cannot be pickled: it is created of two arguments, and has one."""

  def __init__(self, first, second):
    super().__init__(f'{first} and {second}')


def test_an_error_that_cannot_be_pickled_is_described():
  error = _TwoParts('a', 'b')
  error.add_note('where')
  actual = shard_processes.make_picklable_error(error)
  assert isinstance(actual, RuntimeError)
  assert str(actual) == '_TwoParts: a and b'
  assert actual.__notes__ == ['where']
  error = ZeroDivisionError('of b')
  assert shard_processes.make_picklable_error(error) is error


def test_an_interruption_leaves_no_part_of_a_shard(tmp_path):
  def interrupt(num_images):
    if num_images:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    shard_processes.write_shards(
      slow_writer.SlowWriter(tmp_path), ('a', 'b', 'c'), 1, interrupt
    )
  assert not [path for path in tmp_path.iterdir() if path.suffix]
  assert not (tmp_path / 'c').exists()


def test_records_and_messages_do_not_depend_on_the_number_of_jobs(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.delenv('SEG_DATA_DIR', raising=False)
  monkeypatch.setattr(shards, 'IMAGES_PER_SHARD', 2)
  monkeypatch.setattr(shards, 'IMAGES_PER_PROCESS', 1)
  monkeypatch.setattr(
    report, 'draw_dataset_report', lambda path, *_: path.touch()
  )
  source = tmp_path / 'files'
  archive_files.extract(cases.ten_scenes(tmp_path / 'zip'), source)
  [mask] = source.rglob('ADE_train_00000003.png')
  whole = mask.read_bytes()
  outputs, contents = {}, {}
  for jobs in ('1', '2'):
    folder = tmp_path / 'records'
    command = ['ade20k', f'--source={source}', f'--data_dir={folder}']
    mask.write_bytes(official.gray_png([[151, 0]]))
    assert prepare.main([*command, f'--jobs={jobs}']) == 2
    assert not list(folder.rglob('*.array_record.*'))
    mask.write_bytes(whole)
    assert prepare.main([*command, f'--jobs={jobs}']) == 0
    outputs[jobs] = capsys.readouterr()
    contents[jobs] = {
      path.relative_to(folder): path.read_bytes()
      for path in (folder / 'ade20k').rglob('*')
      if path.is_file()
    }
    folder.rename(tmp_path / f'records-{jobs}')
  assert f'error: {mask}: expected values 1…150' in outputs['1'].err
  assert outputs['2'] == outputs['1']
  assert contents['2'] == contents['1']
  assert len(contents['1']) > 4


def test_a_number_of_jobs_below_one_is_refused(capsys):
  assert prepare.main(['shapes/scenes', '--jobs=0']) == 2
  assert capsys.readouterr().err == 'error: jobs: expected 1 or more, got 0\n'
