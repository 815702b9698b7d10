import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.cost import communication
from segcore.distributed import sharding
from segcore.ops import order_statistics

percentile = jax.jit(order_statistics.percentile)
nth_true_pixels = jax.jit(order_statistics.nth_true_pixels)
sample_priorities = jax.jit(
  order_statistics.sample_pixel_priorities, static_argnums=1
)


def numbers(size, seed=0):
  """Draws numbers of both signs, with repetitions and zeros of both signs."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=size).astype(np.float32)
  values[::3] = 0.5
  values[1::7] = 0.0
  values[2::7] = -0.0
  return values


@pytest.mark.parametrize('size', [1, 2, 5, 1000])
def test_order_statistics_equal_sorting(size):
  values = numbers(size)
  mask = np.random.default_rng(1).random(size) < 0.7
  mask[0] = True
  expected = np.sort(values[mask])
  order_statistic = jax.jit(order_statistics.order_statistic)
  for rank in {0, len(expected) // 2, len(expected) - 1}:
    result = order_statistic(values, mask, rank)
    assert float(result) == expected[rank]


@pytest.mark.parametrize('size', [1, 2, 5, 1000])
@pytest.mark.parametrize('percent', [0.0, 12.5, 50.0, 80.0, 99.75, 100.0])
def test_percentiles_equal_numpys(size, percent):
  values = numbers(size)
  mask = np.random.default_rng(2).random(size) < 0.7
  mask[0] = True
  result = percentile(values, mask, percent)
  expected = np.percentile(values[mask].astype(np.float64), percent)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_percentile_of_an_empty_mask_is_infinite():
  result = percentile(np.ones(3, np.float32), np.zeros(3, bool), 50.0)
  assert float(result) == np.inf


def test_percentile_in_float64():
  with jax.enable_x64():
    values = np.random.default_rng(0).random(999)
    result = percentile(values, values > 0.1, 77.7)
    expected = np.percentile(values[values > 0.1], 77.7)
    np.testing.assert_allclose(result, expected, rtol=1e-14)


def test_percentile_exchanges_scalars_only():
  mesh = sharding.make_mesh()
  rows = sharding.batch_sharding(mesh)
  shape = jax.ShapeDtypeStruct((16, 8, 8), jnp.float32, sharding=rows)
  mask = jax.ShapeDtypeStruct((16, 8, 8), jnp.bool_, sharding=rows)
  compiled = (
    jax.jit(lambda v, m: order_statistics.percentile(v, m, 80.0))
    .lower(shape, mask)
    .compile()
  )
  counts = communication.count_collectives(compiled)
  assert counts.pop('all-reduce') > 0
  assert set(counts.values()) == {0}


def test_nth_true_counts_images_then_pixels():
  mask = np.random.default_rng(0).random((3, 50, 4)) < 0.3
  ranks = np.tile(np.arange(60), (4, 1))
  indices = np.asarray(nth_true_pixels(mask, ranks))
  for c in range(4):
    expected = np.flatnonzero(mask[:, :, c])
    np.testing.assert_array_equal(indices[c, : len(expected)], expected)
    assert not indices[c, len(expected) :].any()


@pytest.mark.parametrize('size', [2**16 - 1, 2**16, 2**16 + 1])
def test_nth_true_of_large_images(size):
  mask = np.ones((2, size, 1), bool)
  ranks = np.array([[0, size - 1, size, 2 * size - 1, 2 * size]])
  indices = nth_true_pixels(mask, ranks)
  assert indices.tolist() == [[0, size - 1, size, 2 * size - 1, 0]]


def test_ranks_from_uniforms_are_equally_likely_and_in_range():
  ranks_of = jax.jit(order_statistics.ranks_from_uniforms)
  uniforms = (np.arange(9, dtype=np.float32) + 0.5) / 9
  ranks = ranks_of(uniforms, np.full(9, 3))
  assert ranks.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
  edge = np.array([0.0, np.nextafter(np.float32(1), 0)], np.float32)
  assert ranks_of(edge, np.array([7, 7])).tolist() == [0, 6]
  assert ranks_of(edge, np.array([0, 0])).tolist() == [0, 0]


@pytest.mark.parametrize('max_count', [1, 7, 200])
def test_the_highest_priorities_are_kept(max_count):
  mask = np.random.default_rng(0).random((3, 50, 4)) < 0.3
  keys = jax.random.split(jax.random.PRNGKey(0), 3)
  priorities = np.asarray(sample_priorities(keys, 50))
  assert priorities.min() >= 0
  keep = jax.jit(order_statistics.keep_top_priorities, static_argnums=2)
  kept = np.asarray(keep(mask, priorities, max_count))
  for c in range(4):
    candidates = np.flatnonzero(mask[:, :, c])
    best = candidates[np.argsort(-priorities.ravel()[candidates])[:max_count]]
    assert set(np.flatnonzero(kept[:, :, c])) == set(best)


def test_priorities_depend_on_the_key_of_the_image_only():
  keys = jax.random.split(jax.random.PRNGKey(3), 4)
  both = np.asarray(sample_priorities(keys, 10))
  alone = np.asarray(sample_priorities(keys[2:3], 10))
  np.testing.assert_array_equal(both[2], alone[0])
  assert len(np.unique(both)) == both.size
