import faiss
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pseudo_labels import kmeans
from segcore.cost import communication
from segcore.distributed import sharding


def mixture(num_rows, dim, parts, seed=0, spread=0.7):
  """Draws L2-normalized features around random centers."""
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(parts, dim))
  rows = centers[rng.integers(parts, size=num_rows)]
  rows = rows + spread * rng.normal(size=rows.shape)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  return rows.astype(np.float32)


def placed(features, devices=8):
  return kmeans.shard_feature_rows(
    sharding.make_mesh(devices=jax.devices()[:devices]), features
  )


def squared_distances(features, centroids):
  """Computes squared distances [N, K] from differences in float64."""
  features, centroids = np.float64(features), np.float64(centroids)
  return np.stack(
    [np.sum((features - centroid) ** 2, axis=1) for centroid in centroids], 1
  )


def split_slowly(centroids, counts):
  """Splits empty clusters in numpy, one after another."""
  centroids, counts = np.array(centroids), np.array(counts)
  up = np.where(np.arange(centroids.shape[1]) % 2 == 0, 1 / 1024, -1 / 1024)
  for empty in range(len(counts)):
    if counts[empty] == 0:
      donor = int(np.argmax(counts))
      centroids[empty] = centroids[donor] * (1 + up)
      centroids[donor] = centroids[donor] * (1 - up)
      counts[empty] = counts[donor] // 2
      counts[donor] -= counts[empty]
  return centroids


def lloyd_slowly(features, initial, num_iterations):
  """Computes centroids, objective and assignments of a restart in float64."""
  centroids = np.float64(features[initial])
  for _ in range(num_iterations):
    nearest = np.argmin(squared_distances(features, centroids), axis=1)
    counts = np.bincount(nearest, minlength=len(centroids))
    means = [
      np.float64(features[nearest == c]).mean(0) if counts[c] else centroids[c]
      for c in range(len(centroids))
    ]
    centroids = split_slowly(np.stack(means), counts)
  distances = squared_distances(features, centroids)
  return centroids, distances.min(1).sum(), distances.argmin(1)


def test_equals_lloyds_algorithm_in_numpy():
  features = mixture(500, 16, parts=9)
  initial = np.arange(7 * 4).reshape(4, 7)
  actual = kmeans.fit_kmeans(placed(features), initial, num_iterations=6)
  slow = [lloyd_slowly(features, start, 6) for start in initial]
  centroids, objective, assignments = min(slow, key=lambda one: one[1])
  np.testing.assert_allclose(actual.centroids, centroids, atol=1e-5)
  np.testing.assert_allclose(actual.objective, objective, rtol=1e-5)
  np.testing.assert_array_equal(actual.assignments[:500], assignments)
  assert np.all(np.asarray(actual.assignments[500:]) == -1)


def test_equals_faiss_from_the_same_initial_rows():
  features = mixture(1000, 24, parts=12, spread=0.3)
  initial = np.random.default_rng(3).choice(1000, (1, 10), replace=False)
  actual = kmeans.fit_kmeans(placed(features), initial, num_iterations=8)
  theirs = faiss.Kmeans(24, 10, niter=8, max_points_per_centroid=10**7)
  theirs.train(features, init_centroids=features[initial[0]])
  np.testing.assert_allclose(actual.centroids, theirs.centroids, atol=1e-5)


def test_best_restart_is_as_good_as_that_of_faiss():
  features = mixture(3000, 16, parts=20, spread=0.2)
  rows = placed(features)
  initial = kmeans.sample_initial_centroids(jax.random.PRNGKey(0), 20, 3000, 12)
  actual = kmeans.fit_kmeans(rows, initial)
  theirs = faiss.Kmeans(
    16, 12, niter=20, nredo=20, seed=1, max_points_per_centroid=10**7
  )
  theirs.train(features)
  best = squared_distances(features, theirs.centroids).min(1).sum()
  own = squared_distances(features, actual.centroids).min(1).sum()
  np.testing.assert_allclose(actual.objective, own, rtol=1e-5)
  assert actual.objective < 1.001 * best


@pytest.mark.parametrize('num_rows', [256, 251])
def test_eight_devices_equal_one(num_rows):
  features = mixture(num_rows, 12, parts=6)
  initial = np.asarray(
    kmeans.sample_initial_centroids(jax.random.PRNGKey(1), 3, num_rows, 6)
  )
  one = kmeans.fit_kmeans(placed(features, 1), initial, 5)
  eight = kmeans.fit_kmeans(placed(features, 8), initial, 5)
  np.testing.assert_allclose(one.centroids, eight.centroids, atol=1e-5)
  np.testing.assert_allclose(one.objective, eight.objective, rtol=1e-5)
  np.testing.assert_array_equal(
    one.assignments[:num_rows], eight.assignments[:num_rows]
  )


def test_rows_may_be_sharded_over_both_axes_of_the_mesh():
  features = mixture(90, 4, parts=3)
  initial = np.array([[3, 50, 80]])
  both = kmeans.fit_kmeans(
    kmeans.shard_feature_rows(sharding.make_mesh(fsdp=2), features), initial
  )
  one = kmeans.fit_kmeans(placed(features, 1), initial)
  np.testing.assert_allclose(both.centroids, one.centroids, atol=1e-5)


@pytest.mark.parametrize('block_rows', [1, 31, 32, 1000])
def test_result_does_not_depend_on_the_block_size(block_rows):
  features = mixture(250, 8, parts=5)
  initial = np.arange(10).reshape(2, 5)
  rows = placed(features)
  whole = kmeans.fit_kmeans(rows, initial, 4)
  actual = kmeans.fit_kmeans(rows, initial, 4, block_rows=block_rows)
  np.testing.assert_allclose(actual.centroids, whole.centroids, atol=1e-5)
  np.testing.assert_allclose(actual.objective, whole.objective, rtol=1e-5)
  np.testing.assert_array_equal(actual.assignments, whole.assignments)


def test_no_iteration_raises_the_objective():
  features = mixture(600, 10, parts=30)
  rows = placed(features)
  initial = kmeans.sample_initial_centroids(jax.random.PRNGKey(2), 1, 600, 12)
  objectives = [kmeans.fit_kmeans(rows, initial, n).objective for n in range(9)]
  start = squared_distances(features, features[np.asarray(initial)[0]])
  np.testing.assert_allclose(objectives[0], start.min(1).sum(), rtol=1e-5)
  assert np.all(np.diff(objectives) <= 1e-6 * objectives[0])
  assert objectives[-1] < 0.9 * objectives[0]


def test_iterations_end_when_no_centroid_moves():
  features = mixture(600, 10, parts=12)
  rows = placed(features)
  initial = np.arange(24).reshape(2, 12)
  many = kmeans.fit_kmeans(rows, initial, 100)
  # So many iterations would take hours.
  endless = kmeans.fit_kmeans(rows, initial, 10**9)
  np.testing.assert_array_equal(endless.centroids, many.centroids)
  few = kmeans.fit_kmeans(rows, initial, 1)
  assert np.any(np.asarray(few.centroids) != np.asarray(many.centroids))


def test_padding_does_not_change_the_result():
  features = mixture(96, 8, parts=4)
  initial = np.array([[1, 20, 40], [90, 3, 60]])
  filled = np.concatenate([features, np.full((40, 8), 50.0, np.float32)])
  rows = placed(filled)._replace(count=96)
  alone = kmeans.fit_kmeans(placed(features), initial, 5)
  actual = kmeans.fit_kmeans(rows, initial, 5)
  np.testing.assert_allclose(actual.centroids, alone.centroids, atol=1e-5)
  np.testing.assert_allclose(actual.objective, alone.objective, rtol=1e-5)
  np.testing.assert_array_equal(actual.assignments[:96], alone.assignments)
  assert np.all(np.asarray(actual.assignments[96:]) == -1)


def test_shard_rows_pads_with_zeros():
  features = np.arange(22.0).reshape(11, 2)
  rows = placed(features)
  assert rows.count == 11
  assert rows.values.shape == (16, 2)
  assert rows.values.dtype == np.float32
  np.testing.assert_array_equal(rows.values[:11], features)
  assert not np.any(np.asarray(rows.values[11:]))
  # Devices that get nothing but zeros.
  few = placed(features[:3])
  np.testing.assert_array_equal(few.values[:3], features[:3])
  assert few.values.shape == (8, 2)


def test_objective_of_tight_clusters_far_from_the_origin_is_exact():
  # Its terms are 10⁻¹¹ of the squared lengths of the rows.
  rng = np.random.default_rng(0)
  centers = np.array([[300.0, -200, 100, 50], [-100.0, 400, 80, -300]])
  rows = np.repeat(centers, 40, axis=0) + 1e-3 * rng.normal(size=(80, 4))
  features = rows.astype(np.float32)
  actual = kmeans.fit_kmeans(placed(features), np.array([[0, 79]]))
  exact = squared_distances(features, actual.centroids).min(1).sum()
  np.testing.assert_allclose(actual.objective, exact, rtol=1e-5)
  best = sum(np.sum((half - half.mean(0)) ** 2) for half in np.split(rows, 2))
  np.testing.assert_allclose(actual.objective, best, rtol=0.02)


def test_empty_clusters_get_half_of_the_largest():
  counts = np.array([4, 0, 9, 0, 2], np.int32)
  centroids = np.arange(15, dtype=np.float32).reshape(5, 3) + 1
  up, down = np.array([1025, 1023, 1025]), np.array([1023, 1025, 1023])
  expected = centroids.copy()
  # 9 rows become 5 and 4; of the 5, which are still most, 3 and 2.
  expected[1] = centroids[2] * up / 1024
  expected[3] = centroids[2] * down / 1024 * up / 1024
  expected[2] = centroids[2] * down / 1024 * down / 1024
  actual = kmeans.split_empty_clusters(
    jnp.asarray(centroids), jnp.asarray(counts)
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  np.testing.assert_allclose(split_slowly(centroids, counts), actual, rtol=1e-6)


def test_nothing_is_split_without_an_empty_cluster_or_one_of_two_rows():
  centroids = jnp.arange(6.0).reshape(3, 2)
  for counts in ([1, 5, 2], [1, 0, 1], [0, 0, 0]):
    actual = kmeans.split_empty_clusters(centroids, jnp.array(counts))
    np.testing.assert_array_equal(actual, centroids)


def test_as_many_clusters_as_distinct_points_have_objective_0():
  points = np.array([[1, 0], [0.9, 0.1], [-1, 0], [0, -1]], np.float32)
  features = np.repeat(points, [5, 1, 3, 2], axis=0)
  # Twice the same point, and never the one beside it: a cluster is empty.
  actual = kmeans.fit_kmeans(placed(features), np.array([[0, 1, 6, 9]]), 20)
  assert actual.objective < 1e-12
  centroids = np.asarray(actual.centroids)
  np.testing.assert_allclose(
    centroids[np.lexsort(centroids.T)], points[np.lexsort(points.T)], atol=1e-7
  )


def test_splitting_of_empty_clusters_equals_a_loop():
  features = mixture(200, 6, parts=4)
  features[100:] = features[7]
  initial = np.array([[7, 100, 101, 3, 150]])
  actual = kmeans.fit_kmeans(placed(features), initial, 3)
  _, objective, _ = lloyd_slowly(features, initial[0], 3)
  np.testing.assert_allclose(actual.objective, objective, rtol=1e-4)


def test_best_restart_is_kept_however_many_run_together(monkeypatch):
  features = mixture(300, 8, parts=10, spread=0.3)
  rows = placed(features)
  initial = kmeans.sample_initial_centroids(jax.random.PRNGKey(5), 6, 300, 8)
  alone = [kmeans.fit_kmeans(rows, initial[i : i + 1], 5) for i in range(6)]
  objectives = [one.objective for one in alone]
  best = alone[int(np.argmin(objectives))]
  for columns in (8, 24, 1000):
    monkeypatch.setattr(kmeans, '_MAX_CENTROIDS', columns)
    reports = []
    actual = kmeans.fit_kmeans(
      *(rows, initial, 5),
      progress=lambda *values, reports=reports: reports.append(values),
    )
    np.testing.assert_allclose(actual.objective, best.objective, rtol=1e-6)
    np.testing.assert_allclose(actual.centroids, best.centroids, atol=1e-5)
    together = min(columns // 8, 6)
    assert [done for done, _ in reports] == list(range(together, 7, together))
    running = np.minimum.accumulate(objectives)[together - 1 :: together]
    np.testing.assert_allclose(
      [lowest for _, lowest in reports], running, rtol=1e-6
    )


def test_initial_rows_are_distinct_and_uniform():
  drawn = np.asarray(
    kmeans.sample_initial_centroids(
      jax.random.PRNGKey(0), 4000, num_rows=6, k=3
    )
  )
  assert all(len(set(row)) == 3 for row in drawn.tolist())
  # 20 sets of three, 200 times each but for chance (σ = 13.8).
  sets, counts = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
  assert len(sets) == 20
  assert np.all(np.abs(counts - 200) < 5 * 13.8)
  first = kmeans.sample_initial_centroids(
    jax.random.PRNGKey(0), 2, num_rows=6, k=3
  )
  np.testing.assert_array_equal(drawn[:2], first)
  every = kmeans.sample_initial_centroids(
    jax.random.PRNGKey(0), 1, num_rows=6, k=6
  )
  assert sorted(np.asarray(every)[0].tolist()) == list(range(6))


def test_invalid_arguments_are_refused():
  rows = placed(mixture(10, 3, parts=2))
  with pytest.raises(ValueError, match=r'k: expected 1 to 10 clusters.*got 11'):
    kmeans.sample_initial_centroids(jax.random.PRNGKey(0), 1, 10, 11)
  with pytest.raises(ValueError, match=r'expected rows 0 to 9, got 0 to 10'):
    kmeans.fit_kmeans(rows, np.array([[0, 10]]))
  with pytest.raises(ValueError, match=r'expected rows 0 to 9, got -1 to 3'):
    kmeans.fit_kmeans(rows, np.array([[-1, 3]]))
  spoilt = mixture(10, 3, parts=2)
  spoilt[4, 1] = np.nan
  with pytest.raises(ValueError, match='expected finite objectives'):
    kmeans.fit_kmeans(placed(spoilt), np.array([[0, 1]]))


@pytest.mark.parametrize('block_rows', [3, 50, 1000])
def test_assign_returns_the_first_of_the_nearest_centroids(block_rows):
  features = mixture(100, 5, parts=3)
  centroids = mixture(6, 5, parts=6, seed=1)
  centroids[4] = centroids[2]
  actual = kmeans.assign_to_centroids(
    jnp.asarray(features), jnp.asarray(centroids), block_rows
  )
  expected = np.argmin(squared_distances(features, centroids), axis=1)
  np.testing.assert_array_equal(actual, expected)
  # They have length 1, and so it is the largest cosine, too.
  np.testing.assert_array_equal(
    actual, np.argmax(features @ centroids.T, axis=1)
  )


def test_segment_sums_equal_one_hot_sums():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(50, 4)).astype(np.float32)
  clusters = rng.integers(8, size=(3, 50)).astype(np.int32)  # 7: left out.
  expected = np.zeros((3, 7, 4))
  for restart, row in np.ndindex(3, 50):
    if clusters[restart, row] < 7:
      expected[restart, clusters[restart, row]] += features[row]
  given = jnp.asarray(features), jnp.asarray(clusters)
  for way in (kmeans._segment_sums, kmeans._one_hot_sums):
    np.testing.assert_allclose(way(*given, k=7), expected, atol=1e-5)


def test_memory_on_imagenet_s919_is_bounded_by_blocks():
  mesh = sharding.make_mesh()
  num_rows, dim, k = 1_181_056, 2048, 919
  values = jax.ShapeDtypeStruct(
    (num_rows, dim), jnp.float32, sharding=sharding.batch_sharding(mesh)
  )
  initial = jax.ShapeDtypeStruct(
    (1, k), jnp.int32, sharding=sharding.replicated_sharding(mesh)
  )
  compiled = kmeans._lloyd.lower(
    *(values, num_rows, initial, 20), mesh=mesh, block_rows=kmeans.BLOCK_ROWS
  ).compile()
  actual = communication.count_collectives(compiled)
  assert actual.pop('all-reduce') > 0
  assert set(actual.values()) == {0}
  # Distances of all rows would be 543 MB on each device.
  assert compiled.memory_analysis().temp_size_in_bytes < 150e6
