"""Sizes of objects: one region a class and image, but not of the background."""

import numpy as np
import pytest

from input_pipeline.sources import object_sizes


def test_the_largest_region_of_each_class_but_the_background():
  label = np.zeros((20, 50), np.int16)
  label[:5, :10] = 1  # 5 %
  label[10:12, :5] = 1  # A smaller region of the class.
  label[:10, 30:40] = 3  # 10 %
  label[19] = -1
  assert sorted(object_sizes.object_shares(label)) == pytest.approx([0.05, 0.1])


@pytest.mark.parametrize('value', [-1, 4])
def test_an_image_of_one_value_has_no_object(value):
  label = np.full((8, 8), value, np.int16)
  assert object_sizes.object_shares(label) == []
  counts = object_sizes.object_share_histogram([])
  assert object_sizes.object_share_quantile(counts, 0.5) is None


def test_shares_of_large_label_maps_are_measured_on_smaller_ones():
  label = np.zeros((3000, 2000), np.int16)
  label[:600, :1000] = 1
  [share] = object_sizes.object_shares(label)
  assert share == pytest.approx(0.1, rel=0.02)


def test_quantiles_are_those_of_the_shares_to_half_an_octave():
  shares = np.random.default_rng(0).uniform(1e-4, 1, 2000)
  counts = object_sizes.object_share_histogram(shares)
  assert counts.sum() == 2000
  for fraction in (0.1, 0.25, 0.5, 0.9):
    found = object_sizes.object_share_quantile(counts, fraction)
    assert abs(np.log2(found / np.quantile(shares, fraction))) <= 0.5
