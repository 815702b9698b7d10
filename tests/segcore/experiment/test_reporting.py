"""Means of IoU that leave classes out."""

import numpy as np
import pytest

from input_pipeline.builders import cityscapes
from runtime import errors, options
from segcore.eval import metrics
from segcore.experiment import evaluation, reporting

# The published rule for networks trained on SYNTHIA.
SYNTHIA = {
  'miou16': ('terrain', 'truck', 'train'),
  'miou13': ('terrain', 'truck', 'train', 'wall', 'fence', 'pole'),
}


def test_classes_of_synthia():
  subsets = evaluation.class_subsets_without(cityscapes.CLASSES, SYNTHIA, '')
  # Train ids of specs U2PL §7; the 13 leave out 3, 4 and 5 as well.
  assert subsets == {
    'miou16': (*range(9), *range(10, 14), 15, 17, 18),
    'miou13': (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18),
  }


def test_means_of_published_rows():
  percent = {
    'gta5': (
      '95.7 70.9 89.7 53.3 46.3 47.0 59.1 58.3 90.4 48.6 92.9 73.2 44.6 92.6 '
      '77.5 77.8 76.7 59.3 67.5'
    ),
    'synthia': (
      '85.3 45.7 87.6 42.8 5.0 41.9 57.8 49.4 86.8 0 89.9 75.8 49.0 88.0 0 '
      '61.6 0 54.1 64.8'
    ),
  }
  rows = {k: np.array(v.split(), float) for k, v in percent.items()}
  assert round(rows['gta5'].mean(), 2) == 69.55
  subsets = evaluation.class_subsets_without(cityscapes.CLASSES, SYNTHIA, '')
  row = rows['synthia']
  mean = metrics.mean_iou_of_classes(row, subsets['miou16'])
  assert round(mean, 2) == 61.59
  np.testing.assert_allclose(mean, 19 / 16 * row.mean())


def test_predictions_of_a_class_that_is_left_out_are_wrong():
  label = np.array([[0, 0, 1, 1, 2, 2, 3, 3]])
  prediction = np.array([[0, 3, 1, 1, 2, 3, 3, 0]])
  matrix = metrics.ConfusionMatrix.empty(4).update(prediction, label, 'a')
  iou = matrix.compute()['iou']
  # Class 0: 1 of 3; 1: 2 of 2; 2: 1 of 2. A pixel of class 3 that is predicted
  # as class 0 counts against it, too.
  mean = metrics.mean_iou_of_classes(iou, (0, 1, 2))
  np.testing.assert_allclose(mean, (1 / 3 + 1 + 1 / 2) / 3)
  assert np.isnan(metrics.mean_iou_of_classes(iou * np.nan, (0, 1)))


@pytest.mark.parametrize(
  ('classes', 'message'),
  [
    (('terain',), "miou_without.mean: 'terain': unknown name, did you mean te"),
    (cityscapes.CLASSES, 'leave out some of the 19 classes, got all of them'),
  ],
)
def test_classes_to_leave_out_are_checked(classes, message):
  with pytest.raises(errors.UserError, match=message):
    evaluation.class_subsets_without(
      cityscapes.CLASSES, {'mean': classes}, 'config.evaluate.miou_without'
    )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'miou_without': {'iou': ('road',)}}, "expected a new name, got 'iou'"),
    ({'miou_without': {'mean': 'road'}}, 'mean: expected names of classes'),
    ({'miou_without': {'mean': (3,)}}, 'mean: expected names of classes'),
    (
      {'training_scale': True, 'protocol': {'fit_sides': (64, 32)}},
      r'contradicts protocol.fit_sides=\(64, 32\)',
    ),
  ],
)
def test_options_that_cannot_be_are_refused(fields, message):
  with pytest.raises(errors.UserError, match=message):
    options.build_options(
      reporting.EvaluateOptions, {'protocol': {}, **fields}, 'config.evaluate'
    )
