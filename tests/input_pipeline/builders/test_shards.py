"""Records in shards: written by several processes, interrupted, resumed."""

import collections
import signal

import pytest

from input_pipeline import datasets, prepare, report
from input_pipeline.builders import files, shards
from tests.support import archive_files, official
from tests.support import official_cases as cases


@pytest.fixture(autouse=True)
def no_source(monkeypatch):
  monkeypatch.delenv('SEG_DATA_DIR', raising=False)


def ten_streets(source):
  """Writes ten images, of which 3, 4 and 8 have masks of another size."""
  examples = cases.streets({f'{i:05}': [[6 + i, 0]] for i in range(1, 11)})
  for name in ('00003', '00004', '00008'):
    examples[name] = (examples[name][0], [[7], [7]])
  official.gta5(source, [examples])
  return source


@pytest.fixture
def small_shards(monkeypatch):
  """Writes two images per shard, and empty pictures."""
  monkeypatch.setattr(shards, 'IMAGES_PER_SHARD', 2)
  monkeypatch.setattr(
    report, 'draw_dataset_report', lambda path, *_: path.touch()
  )


@pytest.fixture
def read(monkeypatch):
  """Counts how often each image is read by a builder, by id."""
  counts = collections.Counter()

  sample = files.FileBuilder.read_sample

  def counted(self, source):
    counts[source.id] += 1
    return sample(self, source)

  monkeypatch.setattr(files.FileBuilder, 'read_sample', counted)
  return counts


def run(name, source, data_dir, *flags):
  return prepare.main(
    [name, f'--source={source}', f'--data_dir={data_dir}', *flags]
  )


def files_below(folder):
  """Returns the bytes of all files below a folder."""
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


@pytest.mark.parametrize(
  ('name', 'write', 'lengths'),
  [
    ('ade20k', cases.ten_scenes, {'train': [1, 2, 2, 2], 'val': [1, 2]}),
    # The second of five shards has no record, the fourth has one.
    ('gta5', ten_streets, {'train': [2, 2, 1, 2]}),
  ],
)
def test_shard_subsets_write_the_same_files_as_one_process(
  name, write, lengths, tmp_path, small_shards, read, capsys
):
  source = write(tmp_path / 'source')
  assert run(name, source, tmp_path / 'whole') == 0
  assert set(read.values()) == {1}
  assert len(read) == 10
  printed = capsys.readouterr().out
  read.clear()
  parts = tmp_path / 'parts'
  for part in ('2/3', '0/3'):
    assert run(name, source, parts, f'--shard={part}') == 0
    assert 'shards are written; the process' in capsys.readouterr().out
  assert not (parts / name).exists()
  assert run(name, source, parts, '--shard=1/3') == 0
  assert set(read.values()) == {1}
  assert len(read) == 10
  assert capsys.readouterr().out == printed.replace(
    str(tmp_path / 'whole'), str(parts)
  )
  whole = files_below(tmp_path / 'whole' / name)
  assert files_below(parts / name) == whole
  records = [path for path in whole if '.array_record-' in path]
  assert len(records) == sum(len(actual) for actual in lengths.values())
  # Of the work in progress nothing is left.
  assert not any((parts / '.parts').rglob('*.array_record*'))
  for split, actual in lengths.items():
    opened = datasets.open_dataset_split(
      datasets.DataOptions(name), split, str(parts)
    )
    info = datasets.dataset_builder(datasets.DataOptions(name), str(parts)).info
    assert info.splits[split].shard_lengths == actual
    assert [r['id'].decode() for r in opened.records] == opened.ids()


def test_rerunning_a_shard_subset_reads_nothing(
  tmp_path, small_shards, read, capsys
):
  source = cases.ten_scenes(tmp_path / 'source')
  for _ in range(2):
    assert run('ade20k', source, tmp_path / 'records', '--shard=1/3') == 0
    assert capsys.readouterr().out.startswith('2 of 6 shards are written')
  # The second and the fifth of the shards of 1 + 2 + 2 + 2 and 1 + 2 images.
  assert dict(read) == {
    'ADE_train_00000002': 1,
    'ADE_train_00000003': 1,
    'ADE_val_00000001': 1,
  }


def ctrl_c():
  raise KeyboardInterrupt


def sigterm():
  signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize('stop', [ctrl_c, sigterm])
@pytest.mark.parametrize('flags', [(), ('--shard=0/1',)])
def test_an_interrupted_run_continues(
  flags, stop, tmp_path, small_shards, read, monkeypatch, capsys
):
  source = cases.ten_scenes(tmp_path / 'source')
  assert run('ade20k', source, tmp_path / 'whole') == 0
  read.clear()
  counted = files.FileBuilder.read_sample

  def interrupted(self, source):
    if source.id == 'ADE_train_00000005':
      stop()
    return counted(self, source)

  again = tmp_path / 'again'
  with monkeypatch.context() as patch:
    patch.setattr(files.FileBuilder, 'read_sample', interrupted)
    assert run('ade20k', source, again, *flags) == 75
  captured = capsys.readouterr()
  assert captured.err.endswith(
    'interrupted: finished shards are kept, the same command continues\n'
  )
  assert not (again / 'ade20k' / '1.0.0').exists()
  # The third shard is of images 4 and 5; nothing of it is left.
  unfinished = [path for path in again.rglob('train-00002*')]
  assert unfinished == []
  assert {f'ADE_train_{i:08}' for i in (1, 2, 3)} <= set(read)
  read.clear()
  assert run('ade20k', source, again, *flags) == 0
  assert dict(read) == {
    **{f'ADE_train_{i:08}': 1 for i in (4, 5, 6, 7)},
    **{f'ADE_val_{i:08}': 1 for i in (1, 2, 3)},
  }
  assert files_below(again / 'ade20k') == files_below(
    tmp_path / 'whole' / 'ade20k'
  )


@pytest.mark.parametrize('stop', [ctrl_c, sigterm])
def test_an_interrupted_check_writes_nothing(
  stop, tmp_path, monkeypatch, capsys
):
  source = cases.ten_scenes(tmp_path / 'source')
  monkeypatch.setattr(files.FileBuilder, 'read_sample', lambda *_: stop())
  before = signal.getsignal(signal.SIGTERM)
  assert run('ade20k', source, tmp_path / 'records', '--check') == 75
  assert capsys.readouterr().err == 'interrupted: nothing was written\n'
  assert signal.getsignal(signal.SIGTERM) is before


def test_check_refuses_a_shard_subset(tmp_path, capsys):
  assert run('ade20k', tmp_path, tmp_path, '--check', '--shard=0/2') == 2
  assert capsys.readouterr().err == (
    'error: --shard=0/2 contradicts --check, which reads all files: remove one '
    'of them\n'
  )


def test_prepared_files_are_not_read_again(tmp_path, read, capsys):
  source, records_dir = (
    cases.ten_scenes(tmp_path / 'source'),
    tmp_path / 'records',
  )
  assert run('ade20k', source, records_dir) == 0
  folder = records_dir / 'ade20k' / '1.0.0'
  audited = (folder / 'audit.txt').read_text()
  first = capsys.readouterr().out
  assert first.startswith(audited)
  read.clear()
  assert run('ade20k', tmp_path / 'elsewhere', records_dir) == 0
  assert capsys.readouterr().out == (
    'ade20k was prepared before, its files are not read again; their audit is '
    f'in {folder}/audit.txt\n{first.removeprefix(audited)}'
  )
  assert not read


def test_shards_of_changed_files_are_written_again(
  tmp_path, small_shards, read
):
  archive_files.extract(cases.ten_scenes(tmp_path / 'zip'), tmp_path / 'source')
  records_dir = tmp_path / 'records'
  assert run('ade20k', tmp_path / 'source', records_dir, '--shard=0/2') == 0
  root = tmp_path / 'source' / 'ADEChallengeData2016'
  mask = root / 'annotations/training/ADE_train_00000001.png'
  mask.write_bytes(official.gray_png([[150, 150]]))
  assert run('ade20k', tmp_path / 'source', records_dir, '--shard=1/2') == 0
  assert read['ADE_train_00000001'] == 1
  assert run('ade20k', tmp_path / 'source', records_dir) == 0
  assert read['ADE_train_00000001'] == 2
  assert set(read.values()) == {1, 2}
  split = datasets.open_dataset_split(
    datasets.DataOptions('ade20k'), 'train', str(records_dir)
  )
  assert cases.read_records(split)[0].label == [[149, 149]]


def test_a_bad_file_of_another_shard_subset_is_reported_at_the_end(
  tmp_path, small_shards, read, capsys
):
  archive_files.extract(cases.ten_scenes(tmp_path / 'zip'), tmp_path / 'source')
  arguments = ('ade20k', tmp_path / 'source', tmp_path / 'records')
  root = tmp_path / 'source' / 'ADEChallengeData2016'
  mask = root / 'annotations/training/ADE_train_00000003.png'
  whole = mask.read_bytes()
  mask.write_bytes(official.gray_png([[151, 0]]))
  assert run(*arguments, '--shard=1/2') == 0  # Judged when all are there.
  assert run(*arguments, '--shard=0/2') == 2
  assert capsys.readouterr().err.startswith(
    f'error: {mask}: expected values 1…150, '
  )
  mask.write_bytes(whole)
  read.clear()
  assert run(*arguments, '--shard=0/2') == 0
  assert 'ADE_train_00000003' not in read  # It is of the other part.
  assert run(*arguments, '--shard=1/2') == 0
  assert dict(read) == {'ADE_train_00000002': 1, 'ADE_train_00000003': 1}
  split = datasets.open_dataset_split(
    datasets.DataOptions('ade20k'), 'train', str(tmp_path / 'records')
  )
  assert [record.label for record in cases.read_records(split)] == [
    [[i, -1]] for i in range(7)
  ]


def test_changed_annotations_are_read_again(tmp_path, small_shards, read):
  masks = {
    name: [[2, 9]] for name in ('2008_000002', '2008_000003', '2008_000007')
  }
  lists = {'train': list(masks)[:2], 'val': list(masks)[2:]}
  phases = {name: split for split in lists for name in lists[split]}
  source = tmp_path / 'source'
  official.voc2010(
    source, dict.fromkeys(masks, cases.photo([[0, 0]], 1)), lists
  )
  official.detail_json(source, masks, phases)
  arguments = ('pascal_context/59', source, tmp_path / 'records')
  assert run(*arguments, '--shard=0/2') == 0
  official.detail_json(source, {**masks, '2008_000002': [[2, 458]]}, phases)
  assert run(*arguments) == 0
  split = datasets.open_dataset_split(
    datasets.DataOptions('pascal_context/59'),
    'train',
    str(tmp_path / 'records'),
  )
  assert cases.read_records(split)[0].label == [[0, 58]]
