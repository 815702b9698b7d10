"""Pixels of each class are counted as by definition."""

import numpy as np
import pytest

from input_pipeline.sources import label_pixels


@pytest.mark.parametrize(('classes', 'length'), [(3, 0), (3, 7), (919, 0)])
def test_counts_are_those_of_each_class(classes, length):
  rng = np.random.default_rng(0)
  label = rng.integers(-2, classes, (40, 50)).astype(np.int16)
  label[0, 0] = classes - 1
  actual = label_pixels.count_label_pixels(label, length)
  expected = [int((label == i).sum()) for i in range(max(classes, length))]
  assert actual.tolist() == expected


@pytest.mark.parametrize('dtype', [np.int8, np.int32, np.int64])
def test_label_maps_of_any_integers_and_layout_are_counted(dtype):
  label = (np.arange(60).reshape(6, 10) % 7).astype(dtype)
  expected = [int((label[::2, 1:] == i).sum()) for i in range(7)]
  for view in (label[::2, 1:], np.asfortranarray(label[::2, 1:])):
    assert label_pixels.count_label_pixels(view).tolist() == expected
    ids = view.astype(np.int16, order='K')
    assert label_pixels.count_label_pixels(ids).tolist() == expected
  assert label_pixels.count_label_pixels(label[:0], 2).tolist() == [0, 0]


def test_counts_of_large_maps_are_exact(monkeypatch):
  monkeypatch.setattr(label_pixels, '_MAX_COUNT', 64)
  label = np.arange(300, dtype=np.int16).reshape(30, 10) % 4 - 1
  actual = label_pixels.count_label_pixels(label)
  assert actual.tolist() == [75, 75, 75]


def test_without_a_class_there_are_no_counts():
  ignored = np.full((2, 3), -1, np.int16)
  assert label_pixels.count_label_pixels(ignored).size == 0
