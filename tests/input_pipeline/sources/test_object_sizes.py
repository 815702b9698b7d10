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


def largest_region(mask):
  """Measures the largest 8-connected region pixel by pixel."""
  left, areas = {*zip(*mask.nonzero(), strict=True)}, []
  while left:
    border, area = [left.pop()], 0
    while border:
      row, column = border.pop()
      area += 1
      around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
      border += around & left
      left -= around
    areas.append(area)
  return max(areas)


@pytest.mark.parametrize('classes', [2, 4, 12])
def test_objects_of_noise_are_those_of_a_search_pixel_by_pixel(classes):
  rng = np.random.default_rng(classes)
  label = rng.integers(-1, classes, (31, 44)).astype(np.int16)
  label[:20, :20] = np.maximum(label[:20, :20], label[0, 0])
  ids, counts = np.unique(label[label >= 0], return_counts=True)
  objects = [i for i in ids if i != ids[counts.argmax()]]
  expected = [largest_region(label == i) / label.size for i in objects]
  assert object_sizes.object_shares(label) == expected


def test_a_class_may_have_as_many_regions_as_fit_into_a_map():
  label = np.zeros((256, 256), np.int16)
  label[::2, ::2] = 1
  label[254, 255] = 1
  assert object_sizes.object_shares(label) == [2 / 2**16]


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
    quantile = object_sizes.object_share_quantile(counts, fraction)
    assert abs(np.log2(quantile / np.quantile(shares, fraction))) <= 0.5
