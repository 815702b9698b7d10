"""Resizing of images and of label maps, pixel by pixel."""

import fractions
import math

import cv2
import numpy as np
import PIL.Image
import pytest

from input_pipeline import resampling
from tests.support import images


def test_nearest_reads_the_pixel_at_the_center():
  index = np.arange(5, dtype=np.int16)[None]
  # Centers at 5/6, 15/6 and 25/6; at 5/16, 15/16, 25/16, …
  assert resampling.resize_label_nearest(index, (1, 3)).tolist() == [[0, 2, 4]]
  actual = resampling.resize_label_nearest(index, (1, 8))
  assert actual.tolist() == [[0, 0, 1, 2, 2, 3, 4, 4]]


def test_nearest_from_513_to_129():
  index = np.arange(513, dtype=np.int16)
  actual = resampling.resize_label_nearest(np.stack([index] * 2), (1, 129))[0]
  # Centers at 1.99, 5.97, 9.94, …, and 511.01.
  assert actual[:6].tolist() == [1, 5, 9, 13, 17, 21]
  assert actual[-5:].tolist() == [495, 499, 503, 507, 511]
  column = resampling.resize_label_nearest(index[:, None], (129, 1))[:, 0]
  np.testing.assert_array_equal(column, actual)


def test_nearest_halves_to_the_pixels_after_the_centers():
  index = np.arange(224, dtype=np.int16)[None]
  actual = resampling.resize_label_nearest(index, (1, 112))
  assert actual[0].tolist() == list(range(1, 224, 2))


def test_floor_rule_from_513_to_129_and_halved():
  index = np.arange(513, dtype=np.int16)
  actual = resampling.resize_label_by_floor(np.stack([index] * 2), (1, 129))[0]
  assert actual[:6].tolist() == [0, 3, 7, 11, 15, 19]
  assert actual[-5:].tolist() == [493, 497, 501, 505, 509]
  column = resampling.resize_label_by_floor(index[:, None], (129, 1))[:, 0]
  np.testing.assert_array_equal(column, actual)
  halved = resampling.resize_label_by_floor(index[None, :224], (1, 112))
  assert halved[0].tolist() == list(range(0, 224, 2))


@pytest.mark.parametrize(
  'resize', [resampling.resize_label_nearest, resampling.resize_label_by_floor]
)
def test_nearest_doubles_by_repeating(resize):
  label = np.array([[1, -1], [3, 4]], np.int16)
  actual = resize(label, (4, 2))
  assert actual.tolist() == [[1, -1], [1, -1], [3, 4], [3, 4]]
  assert actual.dtype == np.int16


@pytest.mark.parametrize(
  ('resize', 'offset'),
  [
    (resampling.resize_label_nearest, fractions.Fraction(1, 2)),
    (resampling.resize_label_by_floor, 0),
  ],
)
def test_nearest_equals_a_loop_in_exact_fractions(resize, offset):
  for rng in images.draws(20):
    height, width, *size = rng.integers(1, 40, 4).tolist()
    label = rng.integers(-1, 900, (height, width), np.int16)
    actual = resize(label, tuple(size))
    assert actual.shape == tuple(size)
    for i in range(size[0]):
      for j in range(size[1]):
        row = math.floor((i + offset) * height / size[0])
        column = math.floor((j + offset) * width / size[1])
        assert actual[i, j] == label[row, column]


def test_nearest_equals_pillow_and_opencv():
  """Except where a center lies on an edge: they round it either way."""
  for rng in images.draws(20):
    height, width, *size = rng.integers(1, 300, 4).tolist()
    label = rng.integers(0, 255, (height, width), np.uint8)
    actual = resampling.resize_label_nearest(label, tuple(size))
    pillow = PIL.Image.fromarray(label).resize(
      size[::-1], PIL.Image.Resampling.NEAREST
    )
    rows, columns = (
      np.flatnonzero((2 * np.arange(new) + 1) * old % (2 * new))
      for old, new in zip(label.shape, size, strict=True)
    )
    inside = np.ix_(rows, columns)
    np.testing.assert_array_equal(actual[inside], np.asarray(pillow)[inside])
    opencv = cv2.resize(
      label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT
    )
    opencv = opencv.reshape(size)
    np.testing.assert_array_equal(actual[inside], opencv[inside])


def test_bilinear_has_half_pixel_centers():
  # Twice as wide: at -0.25 (the border), 0.25, 0.75 and 1.25 (the border).
  actual = resampling.resize_image_bilinear(images.rgb([[0, 100]]), (1, 4))
  np.testing.assert_allclose(actual[0, :, 1], [0, 25, 75, 100], atol=1)
  # A fourth: at 1.5, between the inner pixels; the outer ones are not seen.
  actual = resampling.resize_image_bilinear(
    images.rgb([[0, 40, 80, 200]]), (1, 1)
  )
  np.testing.assert_allclose(actual, 60, atol=1)
