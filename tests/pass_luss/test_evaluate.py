import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from pass_luss import evaluate
from pass_luss.benchmark import evaluate as benchmark_evaluate
from pass_luss.benchmark import metrics, png_format

KEYS = (
  *('miou', 'miou_without_other', 'boundary_miou', 'image_accuracy', 'f_beta'),
  *('miou_by_size', 'boundary_miou_by_size'),
)


def labels(num_classes=5, count=12):
  """Returns maps by name: one class in 'other', and some ignored pixels."""
  rng = np.random.default_rng(0)
  made = {}
  for i in range(count):
    height, width = rng.integers(20, 40, 2)
    label = np.zeros((height, width), np.int16)
    # So narrow that boundaries of one class do not meet.
    label[4:-4, 4 : 4 + rng.integers(4, width - 8)] = 1 + i % num_classes
    label[:, -3:] = -1
    made[f'val/n{i % num_classes:08}/{i}.png'] = label
  return made


def write(folder, maps):
  for name, label in maps.items():
    png_format.write_imagenet_s_png(folder / name, label)


@pytest.fixture
def folders(tmp_path):
  """Writes ground truth, and predictions with some errors."""
  maps = labels()
  write(tmp_path / 'gt', maps)
  predictions = {
    name: np.roll(np.maximum(label, 0), i, axis=0)
    for i, (name, label) in enumerate(maps.items())
  }
  write(tmp_path / 'pred', predictions)
  return tmp_path


def flags(folder, *more, num_classes=5):
  return [
    *(f'--gt={folder / "gt"}', f'--pred={folder / "pred"}'),
    *(f'--num_classes={num_classes}', *more),
  ]


def scored(capsys, argv):
  assert evaluate.main(argv) == 0
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys, argv):
  assert evaluate.main(argv) == 2
  out, err = capsys.readouterr()
  (line,) = err.splitlines()
  assert line.startswith('error: ') and '{' not in out
  return line.removeprefix('error: ')


def test_endings_in_upper_case_are_scored(capsys, folders):
  expected = scored(capsys, flags(folders))
  for i, path in enumerate(sorted((folders / 'pred').rglob('*.png'))):
    if i % 2:
      path.rename(path.with_suffix('.PNG'))
  assert scored(capsys, flags(folders)) == expected


def test_equals_the_metric(capsys, folders):
  metric = metrics.ImageNetS.empty(5)
  for name, label in labels().items():
    prediction = png_format.read_imagenet_s_png(folders / 'pred' / name, 5)
    metric = metric.update(prediction, label, name)
  values = metric.compute()
  actual = scored(capsys, flags(folders))
  assert tuple(actual) == KEYS
  for name in KEYS[:5]:
    np.testing.assert_allclose(actual[name], 100 * values[name], err_msg=name)
  assert 10 < actual['boundary_miou'] < actual['miou'] < 90
  for name in ('miou', 'boundary_miou'):
    by_size = actual[f'{name}_by_size']
    assert tuple(by_size) == ('S', 'MS', 'ML', 'L')
    for size, value in by_size.items():
      expected = 100 * values[f'{name}_{size}']
      if value is None:
        assert np.isnan(expected)
      else:
        np.testing.assert_allclose(value, expected, err_msg=size)


def test_absent_classes_are_reported(capsys, folders):
  present = {i for x in labels().values() for i in np.unique(x) if i > 0}
  assert evaluate.main(flags(folders, num_classes=50)) == 0
  assert (
    f'{50 - len(present)} of 50 classes are absent from the ground truth and '
    'count as 0: check --num_classes'
  ) in capsys.readouterr().out


def test_folders_of_a_split(capsys, folders):
  whole = scored(capsys, flags(folders))
  argv = [
    *(f'--gt={folders / "gt" / "val"}', f'--pred={folders / "pred" / "val"}'),
    '--num_classes=5',
  ]
  assert scored(capsys, argv) == whole


def test_command_prints_a_table_and_json(tmp_path):
  """As a process: prints a table, and valid JSON as the last line."""
  write(tmp_path / 'gt', labels())
  write(tmp_path / 'pred', {n: np.maximum(m, 0) for n, m in labels().items()})
  done = subprocess.run(
    [sys.executable, '-m', 'pass_luss.evaluate', *flags(tmp_path)],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert done.returncode == 0, done.stderr
  *lines, last = done.stdout.splitlines()
  assert '12 images, 0.0 megapixels in ' in lines[0]
  assert lines[1].split() == ['all', 'S', 'MS', 'ML', 'L']
  assert lines[2].split()[:2] == ['miou', '100.00']

  def no_constant(name):
    raise AssertionError(name)

  actual = json.loads(last, parse_constant=no_constant)
  np.testing.assert_allclose([actual[n] for n in KEYS[:2]], 100)
  assert None in actual['miou_by_size'].values()
  assert actual['boundary_miou'] < 100  # Beside what is ignored.


def permuted(folder, num_generated=5):
  """Writes perfect predictions with permuted ids; returns the permutation."""
  maps = labels()
  rng = np.random.default_rng(1)
  numbers = np.concatenate([[0], rng.permutation(num_generated) + 1])
  write(folder / 'gt', maps)
  write(
    folder / 'pred',
    {name: numbers[np.maximum(label, 0)] for name, label in maps.items()},
  )
  return numbers


def test_permuted_ground_truth_scores_100_after_matching(capsys, tmp_path):
  numbers = permuted(tmp_path)
  path = tmp_path / 'match.json'
  before = scored(capsys, flags(tmp_path))
  assert before['miou'] < 50
  actual = scored(capsys, flags(tmp_path, '--rematch', f'--write_match={path}'))
  for name in ('miou', 'miou_without_other', 'image_accuracy', 'f_beta'):
    np.testing.assert_allclose(actual[name], 100, err_msg=name)
  match = json.loads(path.read_text())
  assert match == {str(numbers[c]): c for c in range(6)}
  assert scored(capsys, flags(tmp_path, f'--match={path}')) == actual
  assert scored(capsys, flags(tmp_path)) == before


def test_from_more_categories_to_fewer_classes(capsys, tmp_path):
  numbers = permuted(tmp_path, num_generated=9)
  path = tmp_path / 'match.json'
  argv = flags(
    *(tmp_path, '--rematch', '--num_generated=9', f'--write_match={path}')
  )
  actual = scored(capsys, argv)
  np.testing.assert_allclose(actual['miou'], 100)
  match = json.loads(path.read_text())
  found_classes = [match[str(numbers[c])] for c in range(10)]
  assert found_classes == [0, 1, 2, 3, 4, 5, 0, 0, 0, 0]
  assert scored(capsys, flags(tmp_path, f'--match={path}')) == actual
  assert 'expected ids 0…5' in refused(capsys, flags(tmp_path))


def test_missing_and_empty_folders(capsys, tmp_path):
  argv = flags(tmp_path)
  assert refused(capsys, argv) == (
    f'{tmp_path}/gt: expected SPLIT/WNID/NAME.png or WNID/NAME.png, got no '
    'such folder'
  )
  write(tmp_path / 'gt', labels())
  assert refused(capsys, argv).endswith('got no such folder')
  (tmp_path / 'pred').mkdir()
  assert refused(capsys, argv).endswith('got no PNG file')


def test_missing_files(capsys, folders):
  gt, pred = folders / 'gt', folders / 'pred'
  names = list(labels())
  for name in names[:4]:
    (pred / name).unlink()
  (gt / names[5]).unlink()
  assert refused(capsys, flags(folders)) == (
    f'4 of 11 files of {gt} are missing in {pred}: {names[0]}, {names[1]}, '
    f'{names[2]}, …; 1 of 8 files of {pred} are missing in {gt}: {names[5]}; '
    'expected the same paths below both folders'
  )


def test_folders_without_a_common_path(capsys, folders):
  argv = [
    *(f'--gt={folders / "gt"}', f'--pred={folders / "pred" / "val"}'),
    '--num_classes=5',
  ]
  name = 'n00000000/0.png'
  assert refused(capsys, argv) == (
    f'{folders}/gt and {folders}/pred/val: expected the same paths in both, '
    f'got val/{name} and {name}: is one of the folders a level deeper?'
  )


def test_different_sizes(capsys, folders):
  name = next(iter(labels()))
  png_format.write_imagenet_s_png(
    folders / 'pred' / name, np.zeros((7, 9), np.int16)
  )
  height, width = labels()[name].shape
  for more in ((), ('--rematch',)):
    assert refused(capsys, flags(folders, *more)) == (
      f'{folders}/pred/{name}: expected the size of its ground truth, '
      f'{width}x{height}, got 9x7: predict at the original size'
    )


def test_ids_out_of_range(capsys, folders):
  name = next(iter(labels()))
  path = folders / 'pred' / name
  label = labels()[name]
  png_format.write_imagenet_s_png(path, np.where(label > 0, 6, 0))
  message = refused(capsys, flags(folders))
  assert message.startswith(f'{path}: expected ids 0…5, got 6 (')
  png_format.write_imagenet_s_png(path, label * 0)
  png_format.write_imagenet_s_png(folders / 'gt' / name, label + 1)
  assert refused(capsys, flags(folders, num_classes=1)).startswith(
    f'{folders}/gt/{name}: expected ids 0…1, or 1000 where ignored, got 2 ('
  )


def test_ignored_pixels_in_predictions(capsys, folders):
  name = next(iter(labels()))
  path = folders / 'pred' / name
  label = np.zeros_like(labels()[name])
  label[0, :2] = -1
  png_format.write_imagenet_s_png(path, label)
  assert refused(capsys, flags(folders)) == (
    f'{path}: expected ids 0…5 in a prediction, got 1000, which ground truth '
    "ignores (pixels: 2): write 0 for 'other'"
  )


@pytest.mark.parametrize('side', ['gt', 'pred'])
def test_damaged_files_are_named(capsys, folders, side):
  path = folders / side / list(labels())[7]
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  message = refused(capsys, flags(folders))
  assert message.startswith(f'{path}: cannot be decoded: ')


def test_contradictory_flags(capsys, folders):
  assert refused(capsys, flags(folders, '--rematch', '--match=x.json')) == (
    'expected one of --rematch and --match, got both: remove one of them'
  )
  for flag in ('--write_match=x.json', '--num_generated=9'):
    name = flag.partition('=')[0]
    assert refused(capsys, flags(folders, flag)) == (
      f'{name}: expected together with --rematch: add that'
    )
  for count in (0, -1, 1000):
    assert refused(capsys, flags(folders, num_classes=count)) == (
      f"--num_classes: expected 1 to 999, without 'other', got {count}"
    )
  assert refused(capsys, flags(folders, '--rematch', '--num_generated=0')) == (
    "--num_generated: expected 1 to 999, without 'other', got 0"
  )


def test_invalid_flags(capsys, folders):
  assert refused(capsys, flags(folders, num_classes='many')) == (
    "argument --num_classes: invalid int value: 'many'; python -m "
    'pass_luss.evaluate --help lists the flags'
  )
  assert 'required: --gt' in refused(capsys, ['--pred=x', '--num_classes=5'])
  assert 'unrecognized arguments: --predd=x' in refused(
    capsys, flags(folders, '--predd=x')
  )


def test_invalid_match_json(capsys, folders):
  path = folders / 'match.json'
  argv = flags(folders, f'--match={path}')
  assert refused(capsys, argv).startswith(f'{path}: cannot be read: No such')
  path.write_text('{"1": 9}')
  assert 'expected classes 0…5, got 9' in refused(capsys, argv)
  # Of fewer categories than are predicted, and without one that is.
  first, *_, last = (folders / 'pred' / name for name in labels())
  png_format.write_imagenet_s_png(
    last, png_format.read_imagenet_s_png(last, 5) * 0 + 5
  )
  png_format.write_imagenet_s_png(
    first, png_format.read_imagenet_s_png(first, 5) * 0 + 2
  )
  path.write_text('{"1": 1, "3": 3, "5": 2, "4": 4}')
  advice = (
    f': the largest key of --match={path} is 5; add the missing ids to it, '
    "with 0 for 'other'"
  )
  assert refused(capsys, argv) == (
    f'{first}: expected ids of the matching, got 2, which has no class in it'
    f'{advice}'
  )
  path.write_text('{"1": 1, "2": 2}')
  message = refused(capsys, argv)
  assert 'expected ids 0…2' in message
  assert message.endswith(advice.replace('is 5', 'is 2'))


def test_ids_above_num_generated(capsys, folders):
  path = folders / 'pred' / next(iter(labels()))
  png_format.write_imagenet_s_png(
    path, png_format.read_imagenet_s_png(path, 5) * 0 + 7
  )
  assert refused(capsys, flags(folders, '--rematch')).endswith(
    ': set --num_generated to the number of predicted ids'
  )


def test_match_json_that_cannot_be_written(capsys, folders):
  (folders / 'file').write_text('')
  path = folders / 'file' / 'match.json'
  message = refused(
    capsys, flags(folders, '--rematch', f'--write_match={path}')
  )
  assert message.startswith(f'cannot write {path} (')


def test_interrupted(capsys, folders, monkeypatch):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(benchmark_evaluate, 'score_category_folders', interrupt)
  assert evaluate.main(flags(folders)) == 75
  assert capsys.readouterr().err == 'interrupted: nothing was scored\n'
