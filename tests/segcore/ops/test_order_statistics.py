import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.cost import communication
from segcore.distributed import sharding
from segcore.ops import order_statistics


def numbers(size, seed=0):
  """Of both signs, with repetitions and zeros of both signs."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=size).astype(np.float32)
  values[::3] = 0.5
  values[1::7] = 0.0
  values[2::7] = -0.0
  return values


@pytest.mark.parametrize('size', [1, 2, 5, 1000])
def test_order_statistics_are_those_of_sorting(size):
  values = numbers(size)
  mask = np.random.default_rng(1).random(size) < 0.7
  mask[0] = True
  expected = np.sort(values[mask])
  for rank in {0, len(expected) // 2, len(expected) - 1}:
    found = order_statistics.order_statistic(
      jnp.asarray(values), jnp.asarray(mask), rank
    )
    assert float(found) == expected[rank]


@pytest.mark.parametrize('size', [1, 2, 5, 1000])
@pytest.mark.parametrize('percent', [0.0, 12.5, 50.0, 80.0, 99.75, 100.0])
def test_percentiles_are_those_of_numpy(size, percent):
  values = numbers(size)
  mask = np.random.default_rng(2).random(size) < 0.7
  mask[0] = True
  found = order_statistics.percentile(
    jnp.asarray(values), jnp.asarray(mask), percent
  )
  expected = np.percentile(values[mask].astype(np.float64), percent)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_percentile_of_nothing_is_above_everything():
  found = order_statistics.percentile(jnp.ones(3), jnp.zeros(3, bool), 50.0)
  assert float(found) == np.inf


def test_percentile_in_float64():
  with jax.enable_x64():
    values = np.random.default_rng(0).random(999)
    found = order_statistics.percentile(
      jnp.asarray(values), jnp.asarray(values > 0.1), 77.7
    )
    expected = np.percentile(values[values > 0.1], 77.7)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_a_percentile_exchanges_numbers_only():
  mesh = sharding.make_mesh()
  rows = sharding.batch_sharding(mesh)
  shape = jax.ShapeDtypeStruct((16, 8, 8), jnp.float32, sharding=rows)
  mask = jax.ShapeDtypeStruct((16, 8, 8), jnp.bool_, sharding=rows)
  compiled = (
    jax.jit(lambda v, m: order_statistics.percentile(v, m, 80.0))
    .lower(shape, mask)
    .compile()
  )
  found = communication.count_collectives(compiled)
  assert found.pop('all-reduce') > 0
  assert set(found.values()) == {0}


def test_nth_true_counts_images_then_pixels():
  mask = np.random.default_rng(0).random((3, 50, 4)) < 0.3
  ranks = np.tile(np.arange(60), (4, 1))
  found = np.asarray(
    order_statistics.nth_true(jnp.asarray(mask), jnp.asarray(ranks))
  )
  for c in range(4):
    expected = np.flatnonzero(mask[:, :, c])
    np.testing.assert_array_equal(found[c, : len(expected)], expected)
    assert not found[c, len(expected) :].any()


@pytest.mark.parametrize('size', [2**16 - 1, 2**16, 2**16 + 1])
def test_nth_true_counts_to_the_end_of_large_images(size):
  mask = jnp.ones((2, size, 1), bool)
  ranks = jnp.array([[0, size - 1, size, 2 * size - 1, 2 * size]])
  found = order_statistics.nth_true(mask, ranks)
  assert found.tolist() == [[0, size - 1, size, 2 * size - 1, 0]]


def test_uniform_ranks_are_equally_likely_and_in_range():
  uniforms = (jnp.arange(9.0) + 0.5) / 9
  found = order_statistics.ranks_from_uniforms(uniforms, jnp.full(9, 3))
  assert found.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
  edge = jnp.array([0.0, np.nextafter(np.float32(1), np.float32(0))])
  found = order_statistics.ranks_from_uniforms(edge, jnp.array([7, 7]))
  assert found.tolist() == [0, 6]
  found = order_statistics.ranks_from_uniforms(edge, jnp.array([0, 0]))
  assert found.tolist() == [0, 0]


@pytest.mark.parametrize('most', [1, 7, 200])
def test_the_largest_priorities_stay(most):
  mask = np.random.default_rng(0).random((3, 50, 4)) < 0.3
  keys = jax.random.split(jax.random.PRNGKey(0), 3)
  priorities = np.asarray(order_statistics.draw_pixel_priorities(keys, 50))
  assert priorities.min() >= 0
  found = np.asarray(
    order_statistics.keep_top_priorities(
      jnp.asarray(mask), jnp.asarray(priorities), most
    )
  )
  for c in range(4):
    there = np.flatnonzero(mask[:, :, c])
    best = there[np.argsort(-priorities.ravel()[there])[:most]]
    assert set(np.flatnonzero(found[:, :, c])) == set(best)


def test_a_pixels_priority_is_its_images():
  keys = jax.random.split(jax.random.PRNGKey(3), 4)
  both = np.asarray(order_statistics.draw_pixel_priorities(keys, 10))
  alone = np.asarray(order_statistics.draw_pixel_priorities(keys[2:3], 10))
  np.testing.assert_array_equal(both[2], alone[0])
  assert len(np.unique(both)) == both.size
