"""Resizing against loops over cells, and against jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models.layers import resize

resize_bilinear = jax.jit(resize.resize_bilinear, static_argnums=(1, 2))
resize_nearest_floor = jax.jit(resize.resize_nearest_floor, static_argnums=1)
resize_by_jax = jax.jit(jax.image.resize, static_argnums=(1, 2))


def _random(*shape):
  return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def _read(x, row, column):
  """Interpolates a map at a real coordinate, with its edges repeated."""
  height, width = x.shape[:2]
  row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
  top, left = int(row), int(column)
  below, right = min(top + 1, height - 1), min(left + 1, width - 1)
  down, across = row - top, column - left
  return (
    (1 - down) * (1 - across) * x[top, left]
    + (1 - down) * across * x[top, right]
    + down * (1 - across) * x[below, left]
    + down * across * x[below, right]
  )


def _bilinear(x, size, align_corners):
  result = np.empty((*size, x.shape[-1]))
  for i in range(size[0]):
    for j in range(size[1]):
      if align_corners:
        row = i * (x.shape[0] - 1) / max(size[0] - 1, 1)
        column = j * (x.shape[1] - 1) / max(size[1] - 1, 1)
      else:
        row = (i + 0.5) * x.shape[0] / size[0] - 0.5
        column = (j + 0.5) * x.shape[1] / size[1] - 0.5
      result[i, j] = _read(x, row, column)
  return result


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(9, 4), (4, 9), (5, 7), (3, 2), (1, 1)])
def test_bilinear_reads_without_antialiasing(size, align_corners):
  x = _random(2, 5, 7, 3)
  resized = resize_bilinear(x, size, align_corners)
  expected = np.stack([_bilinear(each, size, align_corners) for each in x])
  np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_bilinear_of_a_single_cell_repeats_it():
  x = np.full((1, 1, 1, 2), 3.0, np.float32)
  for align_corners in (False, True):
    resized = resize_bilinear(x, (4, 5), align_corners)
    np.testing.assert_array_equal(resized, np.full((1, 4, 5, 2), 3.0))


@pytest.mark.parametrize('shape', [(2, 4, 4, 3), (1, 3, 5, 2), (1, 1, 2, 1)])
def test_upsample2x_equals_bilinear_with_half_pixel_centers(shape):
  x = _random(*shape)
  size = (2 * shape[1], 2 * shape[2])
  resized = jax.jit(resize.upsample2x)(x)
  expected = np.stack([_bilinear(each, size, False) for each in x])
  np.testing.assert_allclose(resized, expected, atol=1e-6)
  of_jax = resize_by_jax(x, resized.shape, 'bilinear')
  np.testing.assert_allclose(resized, of_jax, atol=1e-6)


@pytest.mark.parametrize('shape', [(2, 4, 4, 3), (1, 3, 5, 2), (1, 1, 2, 1)])
def test_gradient_of_upsample2x_equals_that_of_jax(shape):
  doubled = (shape[0], 2 * shape[1], 2 * shape[2], shape[3])

  @jax.jit
  def gradients(x, upstream):
    (gradient,) = jax.vjp(resize.upsample2x, x)[1](upstream)
    (expected,) = jax.vjp(
      lambda x: jax.image.resize(x, doubled, 'bilinear'), x
    )[1](upstream)
    return gradient, expected

  gradient, expected = gradients(_random(*shape), _random(*doubled))
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_upsample2x_keeps_the_type():
  x = np.ones((1, 4, 4, 2), jnp.bfloat16)
  value, gradient = jax.jit(
    jax.value_and_grad(lambda x: resize.upsample2x(x).sum().astype(jnp.float32))
  )(x)
  assert value == 128 and gradient.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.float32(gradient), np.full(x.shape, 4.0))


@pytest.mark.parametrize('size', [(3, 5), (7, 11), (4, 4), (8, 2)])
@pytest.mark.parametrize('channels', [(), (2,)])
def test_nearest_floor_reads_the_cell_below(size, channels):
  x = np.random.default_rng(0).integers(-1, 99, (2, 5, 7, *channels))
  x = x.astype(np.int16)
  resized = resize_nearest_floor(x, size)
  expected = np.empty((2, *size, *channels), np.int16)
  for i in range(size[0]):
    for j in range(size[1]):
      expected[:, i, j] = x[:, (i * 5) // size[0], (j * 7) // size[1]]
  np.testing.assert_array_equal(resized, expected)
  assert resized.dtype == jnp.int16


def test_pixels_of_a_cell_are_its_channels():
  image = _random(2, 6, 8, 3)
  cells = np.empty((2, 3, 4, 12), np.float32)
  for y in range(6):
    for x in range(8):
      first = 3 * (2 * (y % 2) + x % 2)
      cells[:, y // 2, x // 2, first : first + 3] = image[:, y, x]
  image, cells = jnp.asarray(image), jnp.asarray(cells)
  np.testing.assert_array_equal(resize.depth_to_space(cells, 2), image)
  np.testing.assert_array_equal(resize.space_to_depth(image, 2), cells)
  assert resize.depth_to_space(image, 1) is image


@pytest.mark.parametrize('align_corners', [False, True])
def test_intervals_are_resized_as_axes_of_their_length(align_corners):
  old, new = (
    [(1, 6, 9), (0, 1, 9), (2, 7, 9)],
    [(0, 3, 7), (5, 2, 7), (2, 1, 7)],
  )
  intervals = [
    resize.Intervals(*np.array(each).T[:2], each[0][2]) for each in (old, new)
  ]
  matrices = jax.jit(
    lambda a, b: resize.interval_resize_matrices(
      intervals[0]._replace(start=a.start, length=a.length),
      intervals[1]._replace(start=b.start, length=b.length),
      align_corners,
    )
  )(*(each._replace(size=None) for each in intervals))
  for matrix, (start, length, _), (to, cells, _) in zip(
    matrices, old, new, strict=True
  ):
    expected = np.zeros((7, 9))
    expected[to : to + cells, start : start + length] = (
      resize.bilinear_resize_matrix(length, cells, align_corners)
    )
    np.testing.assert_allclose(matrix, expected, atol=1e-6)
