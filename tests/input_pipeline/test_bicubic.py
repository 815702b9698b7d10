"""Bicubic resizing against a slow transcription, OpenCV and JAX."""

import cv2
import jax
import numpy as np
import pytest

from input_pipeline import bicubic
from tests.transcriptions import luss_comparators

GRIDS = ['legacy', 'half_pixel']


def noise(height, width, low=0, high=256):
  rng = np.random.default_rng(height * width)
  return rng.integers(low, high, (height, width, 3), np.uint8)


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize(
  ('shape', 'size'),
  [
    ((12, 20), (8, 16)),
    ((20, 5), (16, 8)),
    ((2, 3), (16, 8)),
    ((1, 2), (4, 4)),
    ((9, 7), (9, 7)),
  ],
)
def test_equals_the_transcription(grid, shape, size):
  """Positions are multiples of 1/1024, or nearly; nothing overshoots."""
  image = noise(*shape, low=100, high=130)
  actual = bicubic.resize_image_bicubic(image, size, grid)
  assert (actual.dtype, actual.shape) == (np.uint8, (*size, 3))
  expected = luss_comparators.bicubic(image, size, grid == 'legacy')
  # Half for rounding to bytes, the rest for positions.
  np.testing.assert_allclose(actual, expected, atol=0.52)
  if shape == size:
    np.testing.assert_array_equal(actual, image)


@pytest.mark.parametrize('grid', GRIDS)
def test_overshoots_are_clipped(grid):
  image = np.zeros((4, 8, 3), np.uint8)
  image[:, 4:] = 255
  expected = luss_comparators.bicubic(image, (4, 32), grid == 'legacy')
  assert expected.min() < -10 and expected.max() > 265
  actual = bicubic.resize_image_bicubic(image, (4, 32), grid)
  np.testing.assert_allclose(actual, np.clip(expected, 0, 255), atol=0.6)


def test_half_pixel_grid_equals_jax():
  image = noise(37, 50)
  for size in ((24, 24), (61, 90)):
    expected = jax.image.resize(
      image.astype(np.float32), (*size, 3), 'cubic', antialias=False
    )
    actual = bicubic.resize_image_bicubic(image, size, 'half_pixel')
    difference = actual - np.clip(expected, 0, 255)
    assert np.abs(difference).max() < 1
    # Of bytes that are rounded: 0.25.
    assert np.abs(difference).mean() < 0.27


def test_legacy_grid_at_factor_3_is_that_of_opencv_a_pixel_later():
  """Positions are i / 3 here, and i / 3 - 1 / 3 there; a is -0.75 in both."""
  image = noise(10, 13)
  expected = cv2.resize(image, (39, 30), interpolation=cv2.INTER_CUBIC)
  actual = bicubic.resize_image_bicubic(image, (30, 39), 'legacy')
  np.testing.assert_allclose(
    actual[:-1, :-1].astype(int), expected[1:, 1:].astype(int), atol=1
  )


@pytest.mark.parametrize(
  ('grid', 'shift'), [('legacy', 0), ('half_pixel', 0.5)]
)
@pytest.mark.parametrize('size', [224, 48])
def test_geometry_of_a_ramp_and_of_an_edge(grid, shift, size):
  ramp = np.zeros((5, 100, 3), np.uint8)
  ramp[:] = 2 * np.arange(100)[None, :, None]
  view = bicubic.resize_image_bicubic(ramp, (5, size), grid)
  positions = (np.arange(size) + shift) * 100 / size - shift
  inner = slice(size // 10, -(size // 10))
  # A quarter of a pixel is the rounding to bytes.
  np.testing.assert_allclose(
    view[2, inner, 1] / 2, positions[inner], atol=0.25 + 0.05
  )
  edge = np.zeros((5, 100, 3), np.uint8)
  edge[:, 60:] = 200
  view = bicubic.resize_image_bicubic(edge, (5, size), grid)
  # The middle of the step is between pixels 59 and 60.
  right = positions > 59.5 + 1e-3
  np.testing.assert_array_equal(view[2, :, 0] > 100, right)


@pytest.mark.parametrize('grid', GRIDS)
def test_weights_have_a_sum_of_1_and_indices_are_inside(grid):
  for old, new in ((300, 224), (50, 224), (1, 7), (3, 2)):
    indices, weights = bicubic.cubic_taps(old, new, grid)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert indices.min() >= 0 and indices.max() < old
    assert indices.shape == weights.shape == (new, 4)
