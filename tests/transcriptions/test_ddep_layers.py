"""Layers of DDeP against hand calculation and scipy."""

import numpy as np
import pytest
from scipy import ndimage, signal

from tests.transcriptions import (
  ddep_layers,
)


@pytest.mark.parametrize(
  ('n', 'kernel', 'stride', 'expected'),
  [
    (224, 7, 2, (2, 3)),
    (112, 3, 2, (0, 1)),
    (56, 3, 1, (1, 1)),
    (56, 1, 2, (0, 0)),
    (15, 7, 2, (3, 3)),
    (15, 3, 2, (1, 1)),
    (5, 2, 3, (0, 0)),
  ],
)
def test_same_padding(n, kernel, stride, expected):
  assert ddep_layers.same_padding(n, kernel, stride) == expected


def test_convolution_along_one_axis_by_hand():
  x = np.array([1.0, 2, 3, 4]).reshape(1, 1, 4, 1)
  kernel = np.array([1.0, 10, 100]).reshape(1, 3, 1, 1)
  strided = ddep_layers.conv2d(x, kernel, stride=2)
  # SAME pads (0, 1): 1 + 20 + 300 and 3 + 40 + 0.
  np.testing.assert_array_equal(strided.ravel(), [321, 43])
  same = ddep_layers.conv2d(x, kernel, np.array([0.5]))
  np.testing.assert_array_equal(same.ravel(), [210.5, 321.5, 432.5, 43.5])


def test_symmetric_padding_sees_other_pixels_than_same_does():
  x = np.arange(1.0, 17).reshape(1, 4, 4, 1)
  kernel = np.zeros((3, 3, 1, 1))
  kernel[0, 0] = 1.0
  options = {'kernel': kernel, 'stride': 2}
  same = ddep_layers.conv2d(x, padding='same', **options)
  symmetric = ddep_layers.conv2d(x, padding=1, **options)
  np.testing.assert_array_equal(same[0, ..., 0], [[1, 3], [9, 11]])
  np.testing.assert_array_equal(symmetric[0, ..., 0], [[0, 0], [0, 6]])


def test_convolution_sums_scipys_correlations(rng):
  x = rng.normal(size=(2, 6, 5, 3))
  kernel = rng.normal(size=(3, 3, 3, 2))
  expected = [
    [
      sum(signal.correlate2d(one[..., i], kernel[..., i, o], 'same')
          for i in range(3))
      for o in range(2)
    ]
    for one in x
  ]  # fmt: skip
  actual = ddep_layers.conv2d(x, kernel).transpose(0, 3, 1, 2)
  np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_pooling_by_hand():
  x = -np.arange(1.0, 17).reshape(1, 4, 4, 1)
  same = ddep_layers.max_pool(x)[0, ..., 0]
  np.testing.assert_array_equal(same, [[-1, -3], [-9, -11]])
  zeros = ddep_layers.max_pool(x, padding=1, value=0.0)[0, ..., 0]
  np.testing.assert_array_equal(zeros, [[0, 0], [0, -6]])
  infinite = ddep_layers.max_pool(x, padding=1)[0, ..., 0]
  np.testing.assert_array_equal(infinite, [[-1, -2], [-5, -6]])


def test_weight_standardization_by_hand():
  kernel = np.array([1e-5, 3e-5]).reshape(1, 1, 2, 1)  # mean 2e-5, std 1e-5
  on_std = ddep_layers.standardize(kernel, 1e-5)
  np.testing.assert_allclose(on_std.ravel(), [-0.5, 0.5])
  on_var = ddep_layers.standardize(kernel, 1e-10, 'var')
  np.testing.assert_allclose(on_var.ravel(), [-(0.5**0.5), 0.5**0.5])


def test_group_norm_groups_neighboring_channels():
  x = np.array([0.0, 2, 10, 10]).reshape(1, 1, 1, 4)
  scale = np.array([1.0, 2, 3, 4])
  bias = np.array([0.0, 0, 5, 6])
  result = ddep_layers.group_norm(x, scale, bias, groups=2, eps=3.0)
  # The first group has mean 1 and variance 1: 1 / sqrt(1 + 3) = 0.5.
  np.testing.assert_allclose(result.ravel(), [-0.5, 1, 5, 6])
  old = [v.reshape(1, 1, 1, 4) for v in (scale, bias)]
  again = ddep_layers.group_norm(x, *old, groups=2, eps=3.0)
  np.testing.assert_array_equal(result, again)
  with pytest.raises(ValueError, match='a multiple of 3 channels, got 4'):
    ddep_layers.group_norm(x, scale, bias, groups=3)


def test_layer_norm_by_hand():
  result = ddep_layers.layer_norm(np.array([[1.0, 3.0]]), 2.0, 1.0, eps=3.0)
  np.testing.assert_allclose(result, [[0.0, 2.0]])


def test_gelus_at_known_points():
  x = np.array([-1.0, 0.0, 1.0, 2.0])
  np.testing.assert_allclose(
    ddep_layers.gelu_tanh(x), [-0.158808, 0, 0.841192, 1.954598], atol=1e-6
  )
  np.testing.assert_allclose(
    ddep_layers.gelu_erf(x), [-0.158655, 0, 0.841345, 1.954500], atol=1e-6
  )


def test_attention_by_hand():
  # One head of size 4 (scale 1/2); query and key see the first feature only.
  eye = np.eye(4).reshape(4, 1, 4)
  first = np.zeros((4, 1, 4))
  first[0, 0, 0] = 1.0
  none = np.zeros((1, 4))
  weights = {
    'query/kernel': 2 * np.log(3) * first,
    'query/bias': none,
    'key/kernel': first,
    'key/bias': none,
    'value/kernel': eye,
    'value/bias': none,
    'out/kernel': eye.reshape(1, 4, 4),
    'out/bias': np.array([0.0, 0, 0, 1]),
  }
  x = np.array([[[1.0, 4, 0, 0], [0, 0, 4, 0]]])
  # Scores of token 0: log 3 and 0, so 3/4 and 1/4; of token 1: 1/2 each.
  expected = [[[0.75, 3, 1, 1], [0.5, 2, 2, 1]]]
  np.testing.assert_allclose(ddep_layers.attention(x, weights), expected)


# Resizing.


def test_half_pixel_and_aligned_doubling_by_hand():
  x = np.array([0.0, 4.0]).reshape(1, 1, 2, 1)
  half = ddep_layers.resize(x, (2, 4))
  np.testing.assert_allclose(half[0, ..., 0], [[0, 1, 3, 4]] * 2)
  x = np.array([0.0, 3.0]).reshape(1, 1, 2, 1)
  aligned = ddep_layers.resize(x, (1, 4), aligned=True)
  np.testing.assert_allclose(aligned.ravel(), [0, 1, 2, 3])


@pytest.mark.parametrize('size', [(8, 10), (4, 5), (7, 13), (2, 3), (1, 9)])
@pytest.mark.parametrize('aligned', [False, True])
def test_resize_equals_scipys_zoom(rng, size, aligned):
  x = rng.normal(size=(1, 4, 5, 2))
  factors = (1, size[0] / 4, size[1] / 5, 1)
  options = {} if aligned else {'grid_mode': True, 'mode': 'nearest'}
  expected = ndimage.zoom(x, factors, order=1, **options)
  np.testing.assert_allclose(
    ddep_layers.resize(x, size, aligned), expected, atol=1e-12
  )


@pytest.mark.parametrize('grid', [(14, 14), (32, 32), (24, 24), (8, 30)])
def test_positions_keep_the_class_and_zoom_the_grid(rng, grid):
  table = rng.normal(size=(1, 197, 3))
  actual = ddep_layers.resize_positions(table, grid)
  assert actual.shape == (1, 1 + grid[0] * grid[1], 3)
  np.testing.assert_array_equal(actual[:, 0], table[:, 0])
  square = table[0, 1:].reshape(14, 14, 3)
  expected = ndimage.zoom(square, (grid[0] / 14, grid[1] / 14, 1), order=1)
  np.testing.assert_allclose(
    actual[0, 1:].reshape(*grid, 3), expected, atol=1e-12
  )
  without = ddep_layers.resize_positions(table[:, 1:], grid, class_token=False)
  np.testing.assert_array_equal(without, actual[:, 1:])


def test_positions_that_are_linear_stay_linear_on_each_axis():
  rows, columns = np.mgrid[:3, :5]
  table = (10.0 * rows + columns).reshape(1, 15, 1)
  actual = ddep_layers.resize_positions(
    table, (5, 9), old_grid=(3, 5), class_token=False
  )
  rows, columns = np.mgrid[:5, :9]
  expected = 10 * rows / 2 + columns / 2
  np.testing.assert_allclose(actual.reshape(5, 9), expected)
