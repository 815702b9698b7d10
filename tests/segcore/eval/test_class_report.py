"""The IoU of every class is shown, and results that need no network."""

import numpy as np
import pytest

from segcore.eval import class_report, confusion_picture

CLASSES = ('background', 'hair', 'shoes')


def test_the_iou_of_every_class():
  iou = np.array([0.764, np.nan, 0.0])
  lines = class_report.describe_classes('val', CLASSES, iou)
  text = ' '.join(' '.join(lines).split())
  assert text == (
    'val: IoU of each class in percent background 76.4 hair - shoes 0.0'
  )
  names = [f'class {i}' for i in range(150)]
  lines = class_report.describe_classes('val', names, np.zeros(150))
  assert max(map(len, lines)) <= 80
  assert all(name in '\n'.join(lines) for name in names)
  curves = class_report.class_curves('val', CLASSES, {'iou': iou})
  assert curves == {'val_iou/background': 0.764, 'val_iou/shoes': 0.0}


@pytest.mark.parametrize(
  ('confusion', 'expected'),
  [
    ([[800, 0, 0], [100, 0, 0], [100, 0, 0]], 'predicts only `background`'),
    (
      [[700, 100, 0], [50, 50, 0], [100, 0, 0]],
      '75.0% of the pixels are right',
    ),
    ([[780, 20, 0], [20, 80, 0], [50, 0, 50]], ''),
    # Labels of one class have no other result.
    ([[900, 0, 0], [0, 0, 0], [0, 0, 0]], ''),
    ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], ''),
  ],
)
def test_trivial_results_are_warned_of(confusion, expected):
  lines = class_report.describe_trivial_result(
    'val', CLASSES, np.array(confusion)
  )
  assert len(lines) == bool(expected)
  assert expected in ''.join(lines)
  if lines:
    assert 'train longer' in lines[0]


@pytest.mark.parametrize('num_classes', [2, 12, 25, 150])
def test_the_confusion_matrix_is_drawn(num_classes):
  counts = np.eye(num_classes, dtype=np.int64) * 10
  counts[0] = 0
  names = [f'class {i}' for i in range(num_classes)]
  picture = confusion_picture.draw_confusion(counts, names)
  assert picture.dtype == np.uint8
  assert max(picture.shape) < 1200
  dark = (picture == confusion_picture._DARK).all(axis=-1).sum()
  cell = min(720 // num_classes, 44)
  assert 0.5 < dark / ((num_classes - 1) * cell**2) <= 1
