import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import batch


@pytest.fixture
def grays():
  """Every value of a pixel, once, in each channel."""
  values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  return np.repeat(values, 3, axis=-1)


def test_to_symmetric_by_hand():
  pixel = jnp.array([[[[0, 255, 51]]]], jnp.uint8)
  actual = batch.batch_images_to_symmetric(pixel)
  assert actual.dtype == jnp.float32
  # 51 / 127.5 = 0.4.
  np.testing.assert_allclose(actual, [[[[-1.0, 1.0, -0.6]]]], rtol=1e-6)


@pytest.mark.parametrize('compiled', [False, True])
def test_all_values_survive_the_round_trip(grays, compiled):
  there = (
    jax.jit(batch.batch_images_to_symmetric)
    if compiled
    else batch.batch_images_to_symmetric
  )
  floats = np.asarray(there(jnp.asarray(grays)))
  np.testing.assert_array_equal(floats.ravel()[[0, -1]], [-1.0, 1.0])
  np.testing.assert_allclose(
    floats.ravel()[::3], np.linspace(-1, 1, 256), atol=1e-6
  )
  np.testing.assert_array_equal(batch.batch_images_to_uint8(floats), grays)


def test_to_uint8_rounds_and_clips():
  # 0.999 is 254.87, -0.997 is 0.38; 1.5 and -7 are outside.
  floats = np.array([[[[0.999, -0.997, 1.5]]], [[[-7.0, 0.6, -0.6]]]])
  actual = batch.batch_images_to_uint8(floats.astype(np.float32))
  assert actual.dtype == np.uint8
  assert actual.tolist() == [[[[255, 0, 255]]], [[[0, 204, 51]]]]


def test_join_is_batch_major():
  joined = batch.join_batch_rows([jnp.array([1, 2]), jnp.array([10, 20])])
  assert joined.tolist() == [1, 10, 2, 20]
  rows = [jnp.array([[i, i], [-i, -i]]) for i in (1, 2, 3)]
  assert batch.join_batch_rows(rows).tolist() == [
    [1, 1], [2, 2], [3, 3], [-1, -1], [-2, -2], [-3, -3]
  ]  # fmt: skip


def test_split_by_hand():
  first, second, third = batch.split_batch_rows(jnp.arange(6), 3)
  assert first.tolist() == [0, 3]
  assert second.tolist() == [1, 4]
  assert third.tolist() == [2, 5]


@pytest.mark.parametrize('count', [1, 2, 5])
def test_split_inverts_join(count):
  rng = np.random.default_rng(count)
  arrays = [jnp.asarray(rng.normal(size=(4, 3, 2))) for _ in range(count)]
  parts = batch.split_batch_rows(batch.join_batch_rows(arrays), count)
  assert len(parts) == count
  for part, array in zip(parts, arrays, strict=True):
    np.testing.assert_array_equal(part, array)


def test_split_refuses_rows_that_do_not_divide():
  with pytest.raises(
    ValueError, match=r'^array: expected a multiple of 2 rows, got 7$'
  ):
    batch.split_batch_rows(jnp.zeros((7, 3)), 2)
