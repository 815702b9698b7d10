import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.protocols import knn
from segcore.distributed import sharding

vote = jax.jit(
  knn.knn_vote, static_argnames=('k', 'temperature', 'query_rows', 'bank_rows')
)


def unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def problem(num_entries=60, num_queries=40, dim=8, num_classes=6, seed=0):
  """Draws a bank around some centers, and queries near them."""
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(num_classes + 1, dim))
  labels = rng.integers(num_classes + 1, size=num_entries).astype(np.int32)
  features = centers[labels] + 1.5 * rng.normal(size=(num_entries, dim))
  queries = 3 * rng.normal(size=(num_queries, dim))
  return (
    knn.KnnBank(unit(features).astype(np.float32), labels),
    queries.astype(np.float32),
  )


def vote_slowly(queries, bank, k, temperature, num_classes):
  """Votes with all similarities at once, in float64."""
  expected = []
  for query in unit(np.float64(queries)):
    cosines = np.float64(bank.features) @ query
    cosines[bank.labels < 0] = -np.inf
    sums = np.zeros(num_classes + 1)
    for entry in np.argsort(-cosines, kind='stable')[:k]:
      if bank.labels[entry] >= 0:
        sums[bank.labels[entry]] += np.exp(cosines[entry] / temperature)
    expected.append(int(np.argmax(sums)))
  return expected


@pytest.mark.parametrize('k', [1, 3, 10, 60])
@pytest.mark.parametrize('temperature', [0.07, 1.0])
def test_vote_equals_the_transcription(k, temperature):
  bank, queries = problem()
  actual = vote(queries, bank, k, temperature)
  expected = vote_slowly(queries, bank, k, temperature, num_classes=6)
  np.testing.assert_array_equal(actual, expected)
  assert len(set(expected)) > 2


def test_defaults_are_those_of_the_paper():
  bank, queries = problem()
  np.testing.assert_array_equal(
    vote(queries, bank),
    vote(queries, bank, k=10, temperature=0.07),
  )


@pytest.mark.parametrize(
  ('query_rows', 'bank_rows'),
  [(1, 1), (1, 100), (7, 7), (7, 60), (40, 11), (40, 1), (100, 100), (100, 11)],
)
def test_result_does_not_depend_on_the_block_size(query_rows, bank_rows):
  bank, queries = problem()
  actual = vote(queries, bank, query_rows=query_rows, bank_rows=bank_rows)
  expected = vote_slowly(queries, bank, 10, 0.07, num_classes=6)
  np.testing.assert_array_equal(actual, expected)


def test_eight_devices_equal_one():
  bank, queries = problem()
  one = sharding.make_mesh(devices=jax.devices()[:1])
  alone = knn.make_sharded_knn_vote(one, bank)(queries)
  actual = knn.make_sharded_knn_vote(sharding.make_mesh(), bank)(queries)
  np.testing.assert_array_equal(actual, alone)
  assert len(actual.sharding.device_set) == 8
  expected = vote_slowly(queries, bank, 10, 0.07, num_classes=6)
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('bank_rows', [9, 100])
def test_entries_without_a_class_are_ignored(bank_rows):
  bank, queries = problem()
  # Each query has an entry of its own, which would be the nearest.
  padded = knn.KnnBank(
    np.concatenate([unit(queries), bank.features, unit(queries)]),
    np.concatenate([np.full(40, -1), bank.labels, np.full(40, -1)]).astype(
      np.int32
    ),
  )
  np.testing.assert_array_equal(
    vote(queries, padded, bank_rows=bank_rows),
    vote(queries, bank),
  )


def test_lowest_of_classes_with_equal_weight_wins():
  eye = np.eye(4, dtype=np.float32)
  bank = knn.KnnBank(eye, np.array([5, 3, 0, 3], np.int32))
  # Two entries are as near: 5 before 3 in the bank; then 3 and 0.
  queries = np.float32([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
  np.testing.assert_array_equal(vote(queries, bank, k=2), [3, 0])


@pytest.mark.parametrize('bank_rows', [1, 2, 9])
def test_first_of_equally_near_entries_votes(bank_rows):
  ones = np.full((5, 4), 0.5, np.float32)
  bank = knn.KnnBank(ones, np.array([7, 7, 2, 2, 2], np.int32))
  for k, expected in ((1, 7), (3, 7), (4, 2), (5, 2)):
    actual = vote(np.ones((1, 4), np.float32), bank, k, bank_rows=bank_rows)
    np.testing.assert_array_equal(actual, [expected])


def test_no_entry_votes_twice_where_blocks_overlap():
  ones = np.full((3, 4), 0.5, np.float32)
  bank = knn.KnnBank(ones, np.array([1, 4, 1], np.int32))
  # The second block of two would be the second and third entry.
  actual = vote(np.ones((1, 4), np.float32), bank, k=3, bank_rows=2)
  np.testing.assert_array_equal(actual, [1])


def test_one_near_neighbor_outweighs_nine_far_ones():
  # exp(1 / 0.07) against 9·exp(0.8 / 0.07), which is 0.52 of it; at 0.9 it is
  # 2.2 times as much.
  query = np.array([[1.0, 0.0]], np.float32)
  for cosine, expected in ((0.8, 1), (0.9, 0)):
    far = [[cosine, np.sqrt(1 - cosine**2)]] * 9
    bank = knn.KnnBank(
      np.array([[1.0, 0.0], *far], np.float32),
      np.array([1] + [0] * 9, np.int32),
    )
    actual = vote(query, bank)
    np.testing.assert_array_equal(actual, [expected])


def test_a_small_temperature_does_not_overflow():
  bank, queries = problem()
  actual = vote(queries, bank, temperature=1e-4)
  nearest = vote(queries, bank, k=1)
  np.testing.assert_array_equal(actual, nearest)


def test_more_neighbors_than_entries_are_refused():
  bank, queries = problem(num_entries=9)
  with pytest.raises(ValueError, match='expected 1 to 9, .*, got 10'):
    knn.knn_vote(jnp.asarray(queries), bank)
  with pytest.raises(ValueError, match='got 0'):
    knn.knn_vote(jnp.asarray(queries), bank, k=0)
  half = bank._replace(labels=np.where(bank.labels > 2, -1, bank.labels))
  usable = int(np.sum(half.labels >= 0))
  with pytest.raises(ValueError, match=f'expected 1 to {usable}, '):
    knn.make_sharded_knn_vote(sharding.make_mesh(), half, k=9)


def test_entries_are_normalized_means_over_all_positions():
  features = np.zeros((2, 2, 2, 2), np.float64)
  features[0] = [[[3, 0], [1, 4]], [[0, 2], [0, 2]]]
  features[1] = [[[1, 1], [1, 1]], [[1, 1], [-2, 0]]]
  masks = np.array([[[0, 2], [2, -1]], [[-1, -1], [-1, 1]]])
  bank = knn.build_knn_bank(features, masks, num_classes=2)
  np.testing.assert_array_equal(bank.labels, [0, 2, 1])
  # (3, 0) and (1, 6) and (-2, 0), each over its length.
  expected = [[1, 0], [1 / np.sqrt(37), 6 / np.sqrt(37)], [-1, 0]]
  np.testing.assert_allclose(bank.features, expected, rtol=1e-6)
  assert bank.features.dtype == np.float32
  assert bank.labels.dtype == np.int32


def test_entries_of_many_classes_equal_a_loop():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(3, 6, 5, 16)).astype(np.float32)
  masks = rng.integers(-1, 4, size=(3, 6, 5)) * 306
  bank = knn.build_knn_bank(features, masks, num_classes=919)
  entries, labels = [], []
  for feature, mask in zip(np.float64(features), masks, strict=True):
    for value in sorted(set(mask[mask >= 0].tolist())):
      mean = (feature * (mask == value)[..., None]).mean((0, 1))
      entries.append(mean / np.linalg.norm(mean))
      labels.append(value)
  np.testing.assert_array_equal(bank.labels, labels)
  np.testing.assert_allclose(bank.features, entries, atol=1e-6)


def test_image_without_labels_has_no_entry():
  features = np.ones((1, 2, 2, 3), np.float32)
  bank = knn.build_knn_bank(features, np.full((1, 2, 2), -1), 5)
  assert bank.features.shape == (0, 3)
  assert bank.labels.shape == (0,)


def test_region_of_zeros_stays_finite():
  features = np.zeros((1, 2, 2, 3), np.float32)
  bank = knn.build_knn_bank(features, np.ones((1, 2, 2), int), 5)
  np.testing.assert_array_equal(bank.features, np.zeros((1, 3)))


def test_class_out_of_range_is_refused():
  features = np.ones((1, 1, 2, 3), np.float32)
  with pytest.raises(
    ValueError, match='expected classes 0 to 5 or negative, got 6'
  ):
    knn.build_knn_bank(features, np.array([[[0, 6]]]), 5)


def soft_problem(num_entries=70, num_queries=30, dim=6, num_classes=4, seed=1):
  """Draws unit features in float64, some of them equal, with soft labels."""
  rng = np.random.default_rng(seed)
  features = unit(rng.normal(size=(num_entries, dim)))
  features[20:30] = features[:10]
  labels = rng.dirichlet(np.full(num_classes, 0.3), num_entries)
  queries = 2 * rng.normal(size=(num_queries, dim))
  queries[:5] = features[:5]
  return knn.SoftKnnBank(features, labels), queries


def average_slowly(queries, bank, k, temperature):
  """Averages labels with weights softmax(cosine / T), one neighbor a time."""
  expected = []
  for query in unit(queries):
    cosines = [
      sum(f * q for f, q in zip(x, query, strict=True)) for x in bank.features
    ]
    # Equal features have equal cosines: the earlier one comes first.
    order = sorted(range(len(cosines)), key=lambda i: (-cosines[i], i))[:k]
    weights = [
      np.exp((cosines[i] - cosines[order[0]]) / temperature) for i in order
    ]
    total = sum(w * bank.labels[i] for w, i in zip(weights, order, strict=True))
    expected.append(total / sum(weights))
  return np.array(expected)


@pytest.mark.parametrize('k', [1, 7, 70])
@pytest.mark.parametrize('bank_rows', [11, 100])
def test_soft_vote_equals_the_transcription(k, bank_rows):
  bank, queries = soft_problem()
  with jax.enable_x64():
    scores = knn.soft_knn_vote(
      jnp.asarray(queries), bank, k, 0.02, query_rows=7, bank_rows=bank_rows
    )
    assert scores.dtype == np.float64
  expected = average_slowly(queries, bank, k, 0.02)
  np.testing.assert_allclose(scores, expected, atol=1e-6)
  np.testing.assert_allclose(np.sum(np.asarray(scores), axis=1), 1, atol=1e-9)


def test_soft_defaults_are_those_of_the_paper():
  bank, queries = soft_problem()
  np.testing.assert_allclose(
    knn.soft_knn_vote(jnp.asarray(queries), bank),
    average_slowly(queries, bank, 30, 0.02),
    atol=1e-4,
  )


def test_soft_vote_on_eight_devices_equals_one():
  bank, queries = soft_problem(num_queries=32)
  alone, actual = (
    jax.jit(knn.make_sharded_soft_vote(mesh, k=5))(jnp.asarray(queries), bank)
    for mesh in (
      sharding.make_mesh(devices=jax.devices()[:1]),
      sharding.make_mesh(),
    )
  )
  assert len(actual.sharding.device_set) == 8
  np.testing.assert_allclose(actual, alone, atol=1e-6)


def test_soft_vote_needs_k_rows():
  bank, queries = soft_problem(num_entries=30)
  with pytest.raises(ValueError, match='k: expected 1 to 30, .* got 31'):
    knn.soft_knn_vote(jnp.asarray(queries), bank, 31)
