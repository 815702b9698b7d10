"""What a run says about its labels."""

from types import SimpleNamespace

import numpy as np
import pytest

from segcore.experiment import data as data_lib
from segcore.experiment import reporting
from tests.support import fake_data, messages


def split_of(*labels, num_classes=4):
  image = np.zeros((2, 3, 3))
  examples = [
    fake_data.make_record(i, image, np.array(label, np.int16), num_classes)
    for i, label in enumerate(labels)
  ]
  return fake_data.make_split(examples, num_classes)


ALL = [[0, 1, 2], [3, 3, -1]]


@pytest.mark.parametrize(
  ('labels', 'unseen'),
  [
    ([ALL], []),
    ([[[0] * 3] * 2, ALL], []),
    ([[[0, 1, -1], [0, 0, 0]], [[1] * 3] * 2], [2, 3]),
    ([[[-1] * 3] * 2], [0, 1, 2, 3]),
  ],
)
def test_classes_that_no_labeled_image_shows_are_named(capsys, labels, unseen):
  split = split_of(*labels)
  data_lib.warn_of_unseen_classes(split)
  out = capsys.readouterr().out
  if not unseen:
    assert out == ''
  else:
    names = ', '.join(repr(split.classes[i]) for i in unseen)
    assert out == (
      f'warning: no labeled image of {split.name} shows {names}: choose other '
      'labeled images, or more\n'
    )


def test_without_a_counted_label_no_state_is_the_best(tmp_path):
  stage = SimpleNamespace(
    options=SimpleNamespace(which='best'),
    path='config.evaluate',
    trained_by='finetune',
    labeled_data=SimpleNamespace(val_split='val'),
  )
  read = reporting.EvaluateStage._read_state
  assert messages.message_of(read, stage, tmp_path) == (
    "config.evaluate.which: expected 'last', as finetune has kept no best "
    "state (no label of val was counted), got 'best'"
  )
