"""What is said about labeled images when a training starts."""

import numpy as np
import pytest

from input_pipeline import audit_reports, datasets
from segcore.experiment import data
from tests.support import scenes


@pytest.fixture
def labeled(tmp_path):
  """Scenes of which the first shows no class but the background."""

  def mask(i):
    return '.png', scenes.encoded(scenes.ids(i) * min(i, 1))

  source = scenes.write(tmp_path / 's', mask=mask)
  options = scenes.options(source)
  return datasets.open_dataset_split(
    options, 'train', str(tmp_path / 'records')
  )


def test_classes_that_no_labeled_image_shows_are_logged(labeled, capsys):
  capsys.readouterr()
  data.log_classes_without_labels(labeled)
  assert capsys.readouterr().out == ''
  data.log_classes_without_labels(labeled.select(np.array([0])))
  assert capsys.readouterr().out == (
    "warning: none of the 1 labeled images shows 'red', 'blue': such a class "
    'cannot be learned; choose other images with list= or run=, or more of '
    'them\n'
  )


def test_warnings_about_a_folder_are_repeated_by_every_run(
  tmp_path, capsys, monkeypatch
):
  source = scenes.write(tmp_path / 's', classes=f'{scenes.NAMED}green\n')
  arguments = (scenes.options(source), 'train', str(tmp_path / 'records'))
  datasets.open_dataset_split(*arguments)
  warning = "warning: class 'green' occurs in no mask\n"
  assert warning in capsys.readouterr().out
  datasets.open_dataset_split(*arguments)
  assert capsys.readouterr().out == ''
  # Another run.
  monkeypatch.setattr(audit_reports, '_PRINTED', set())
  datasets.open_dataset_split(*arguments)
  assert warning in capsys.readouterr().out
  datasets.open_dataset_split(*arguments)
  assert capsys.readouterr().out == ''
