"""The command line that prepares a data set."""

import PIL.Image
import pytest

from input_pipeline import prepare
from tests.support import healthy_sources as sources


def test_check_reports_and_then_records_are_written(tmp_path, capsys):
  data_dir = tmp_path / 'prepared'
  sources.write_folder(tmp_path / 'roads')
  command = sources.arguments_of(sources.FOLDER, tmp_path / 'roads', data_dir)
  assert prepare.main([*command, '--check']) == 0
  report, _, rest = capsys.readouterr().out.partition('the picture is in ')
  assert report.startswith('train: 3 images\n')
  picture, _, last = rest.partition('\n')
  assert PIL.Image.open(picture).width > 1000
  assert last == 'this was a check: no record was written\n'
  assert not list(data_dir.rglob('*.array_record*'))

  assert prepare.main(command) == 0
  out = capsys.readouterr().out
  assert out.startswith(f'{report}the picture is in ')
  [records_file] = data_dir.rglob('*.array_record*')
  assert out.endswith(f'records are in {records_file.parent}\n')


@pytest.mark.parametrize('spelling', ['unlabeled', 'unlabelled'])
def test_images_without_a_mask_in_either_spelling(tmp_path, capsys, spelling):
  sources.write_folder(tmp_path / 'roads')
  (tmp_path / 'roads/masks/b.png').unlink()
  command = sources.arguments_of(
    sources.FOLDER, tmp_path / 'roads', tmp_path / 'prepared'
  )
  assert prepare.main([*command, '--check', f'--without_mask={spelling}']) == 0
  out = capsys.readouterr().out
  assert out.startswith('train: 2 images\nunlabeled: 1 image')


def test_reports_of_two_folders_are_two_files(tmp_path, capsys):
  for name in ('roads', 'paths'):
    sources.write_folder(tmp_path / name)
    command = sources.arguments_of(
      sources.FOLDER, tmp_path / name, tmp_path / 'prepared'
    )
    assert prepare.main([*command, '--check']) == 0
    assert 'crops of training: ' in capsys.readouterr().out
  reports = sorted(p.name for p in (tmp_path / 'prepared/reports').iterdir())
  assert [name.rpartition('-')[0] for name in reports] == [
    'image_mask_folder-paths',
    'image_mask_folder-roads',
  ]


def test_user_errors_are_a_line_for_each_problem(tmp_path, capsys):
  source = tmp_path / 'roads'
  sources.write_folder(source)
  command = sources.arguments_of(sources.FOLDER, source, tmp_path / 'prepared')
  assert prepare.main([*command, '--ignore=']) == 2
  assert capsys.readouterr().err.splitlines() == [
    f'error: {source}/masks/a.png: expected values 0…2, got 255 (192 pixels)',
    f'{source}/masks/b.png: expected values 0…2, got 255 (192 pixels)',
    f'{source}/masks/c.png: expected values 0…2, got 255 (192 pixels)',
    '3 files cannot be used; repair or remove them, or set '
    "on_bad_example='skip'",
  ]
  assert prepare.main([*command, '--ignore=white']) == 2
  assert capsys.readouterr().err.startswith('error: ignore: expected ')
