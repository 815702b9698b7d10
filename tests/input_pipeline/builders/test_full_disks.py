"""Disks that are full or cannot be written are reported in one line."""

import contextlib
import resource
import shutil
import types
from unittest import mock

import PIL.Image
import pytest

from input_pipeline import datasets, prepare
from tests.support import damage
from tests.support import healthy_sources as sources


@contextlib.contextmanager
def largest_file(size):
  """Limits the size of all files, as if the disk were full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('below', ['', 'sub'])
@pytest.mark.parametrize('check', [False, True], ids=['prepare', 'check'])
def test_a_data_dir_that_is_a_file_is_refused(check, below, tmp_path, capfd):
  sources.write_folder(tmp_path / 'source')
  sources.write(tmp_path / 'file', b'Not a folder.')
  data_dir = tmp_path / 'file' / below
  arguments = sources.arguments_of(
    sources.FOLDER, tmp_path / 'source', data_dir
  )
  line = sources.refusal(capfd, [*arguments, *['--check'] * check])
  assert f'{tmp_path}/file' in line
  assert 'Not a directory' in line
  message = line.replace(str(tmp_path), '')
  assert damage.REMEDY.search(message), message
  assert (tmp_path / 'file').read_bytes() == b'Not a folder.'


def write_unprepared_folder(source):
  """Writes a folder with other classes than the prepared one."""
  sources.write_folder(source)
  (source / 'classes.txt').write_text('sky\nroad\nbus\n')
  return source


def check_nothing_is_lost(before, line, arguments):
  """Checks the place in an error, and that the same command works later."""
  assert f'{before.data_dir}/' in line
  before.check()
  assert prepare.main(arguments) == 0
  before.check()


def test_a_disk_that_is_too_small_is_reported(before, tmp_path, capfd):
  source = write_unprepared_folder(tmp_path / 'source')
  images = [path.stat().st_size for path in (source / 'images').iterdir()]
  arguments = sources.arguments_of(sources.FOLDER, source, before.data_dir)
  usage = types.SimpleNamespace(total=10**6, used=10**6, free=sum(images) - 1)
  with mock.patch.object(shutil, 'disk_usage', lambda path: usage):
    line = sources.refusal(capfd, arguments)
  assert 'GB are free' in line
  assert ': free some space, or choose another --data_dir' in line
  check_nothing_is_lost(before, line, arguments)


def test_a_disk_that_fills_up_with_records_is_reported(before, tmp_path, capfd):
  source = write_unprepared_folder(tmp_path / 'source')
  arguments = sources.arguments_of(sources.FOLDER, source, before.data_dir)
  with largest_file(10_000):  # The three records take ten times that.
    line = sources.refusal(capfd, arguments)
  assert 'File too large' in line
  assert 'free some space or correct the path' in line
  check_nothing_is_lost(before, line, arguments)
  options = sources.options_of(sources.FOLDER, source)
  split = datasets.open_dataset_split(options, 'train', str(before.data_dir))
  assert split.ids() == ['a', 'b', 'c']


def test_a_disk_that_fills_up_with_an_archive_is_reported(
  before, tmp_path, capfd
):
  source = tmp_path / 'source'
  sources.write_voc(source)
  arguments = sources.arguments_of('voc2012', source, before.data_dir)
  with largest_file(4000):
    line = sources.refusal(capfd, arguments)
  assert 'File too large' in line
  assert 'free some space' in line
  assert 'download' not in line  # The archive is whole.
  check_nothing_is_lost(before, line, arguments)


def test_a_disk_that_fills_up_with_the_picture_is_reported(before, capfd):
  [page] = before.data_dir.rglob('report.png')
  page.unlink()
  arguments = sources.arguments_of(
    sources.FOLDER, before.source, before.data_dir
  )
  with largest_file(4000):
    line = sources.refusal(capfd, arguments)
  assert str(page) in line
  assert 'File too large' in line
  assert 'free some space' in line
  assert prepare.main(arguments) == 0
  assert PIL.Image.open(page).convert('L').getextrema() == (0, 255)
  before.check()


def test_a_disk_that_fills_up_in_a_check_is_reported(before, tmp_path, capfd):
  arguments = sources.arguments_of(
    sources.FOLDER, before.source, before.data_dir
  )
  with largest_file(4000):
    line = sources.refusal(capfd, [*arguments, '--check'])
  assert f'{before.data_dir}/reports/image_mask_folder-' in line
  assert 'File too large' in line
  assert 'free some space' in line
  before.check()
