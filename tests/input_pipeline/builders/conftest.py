"""A data set that was prepared before, for tests that must not change it."""

import shutil

import numpy as np
import pytest

from input_pipeline import datasets, prepare
from input_pipeline.sources import records
from tests.support import healthy_sources as sources


class Before:
  """A data set that was prepared before and must stay intact."""

  def __init__(self, source, data_dir):
    self.source = source
    self.data_dir = data_dir
    self.files = self._read()

  def moved_to(self, data_dir):
    shutil.copytree(self.data_dir, data_dir)
    return Before(self.source, data_dir)

  def check(self):
    """Checks that its files are the same, and that its records open."""
    files = self._read()
    assert {name: files.get(name) for name in self.files} == self.files
    options = sources.options_of(sources.FOLDER, self.source)
    split = datasets.open_dataset_split(options, 'train', str(self.data_dir))
    for name, record in zip('abc', split.records, strict=True):
      assert record['id'] == name.encode()
      image = (self.source / f'images/{name}.jpg').read_bytes()
      assert record['image'] == image
      label = sources.mask_of().astype(np.int16)
      label[label == 255] = -1
      np.testing.assert_array_equal(
        records.decode_record_label(record['label']), label
      )

  def _read(self):
    return {
      path.relative_to(self.data_dir): path.read_bytes()
      for path in self.data_dir.rglob('*')
      if path.is_file()
    }


@pytest.fixture(scope='module')
def prepared_before(tmp_path_factory):
  source = tmp_path_factory.mktemp('earlier') / 'source'
  sources.write_folder(source)
  data_dir = source.parent / 'data'
  assert (
    prepare.main(sources.arguments_of(sources.FOLDER, source, data_dir)) == 0
  )
  return Before(source, data_dir)


@pytest.fixture
def before(prepared_before, tmp_path):
  return prepared_before.moved_to(tmp_path / 'data')
