"""Mini-batch k-means against a slow numpy transcription, on eight devices."""

import functools

import jax
import numpy as np

from pass_luss.dense import (
  dense_options,
  fresh_clusters,
  image_batches,
  mini_batch_kmeans,
  pixel_clustering,
)
from pass_luss.pretrain import embedding_ops
from pass_luss.pseudo_labels import kmeans
from segcore.distributed import sharding
from segcore.train import train_state
from tests.support import meshes
from tests.transcriptions import luss_dense as reference
from tests.transcriptions import wsss

K, D, BATCH, SIDE = 4, 3, 8, 2


def draw_batches(count):
  """Draws unit features around five directions."""
  rng = np.random.default_rng(0)
  centers = rng.normal(size=(5, D))
  kinds = rng.integers(0, 5, (count, BATCH, SIDE, SIDE))
  noise = 0.3 * rng.normal(size=(*kinds.shape, D))
  return reference.normalize(centers[kinds] + noise)


def test_clusters_of_a_stream_on_eight_devices():
  batches, mesh = draw_batches(6).astype(np.float32), meshes.mesh_of()
  put, key = sharding.make_batch_sharder(mesh), jax.random.PRNGKey(3)
  clusters = mini_batch_kmeans.initial_clusters(
    [put(x) for x in batches[:2]], K, key, 20, mesh
  )
  update = jax.jit(mini_batch_kmeans.update_clusters)
  moved = clusters
  for batch in batches[2:]:
    moved = update(moved, put(batch))
  # Rows of an image lie together, those of the first batch before the second.
  rows = np.moveaxis(batches[:2], 0, 1).reshape(-1, D).astype(np.float64)
  first = kmeans.sample_initial_centroids(key, 1, len(rows), K)
  centroids = wsss.lloyd(rows, rows[np.asarray(first)[0]], 20)
  assignments, _ = wsss.squared_error(rows, centroids)
  np.testing.assert_allclose(clusters.centroids, centroids, atol=1e-5)
  counts = np.bincount(assignments, minlength=K)
  np.testing.assert_array_equal(clusters.counts, counts)
  expected = reference.mini_batch_kmeans(
    [x.reshape(-1, D).astype(np.float64) for x in batches[2:]],
    centroids,
    counts.astype(np.float64),
  )
  np.testing.assert_allclose(moved.centroids, expected[0], atol=1e-5)
  np.testing.assert_array_equal(moved.counts, expected[1])


class PixelMethod(pixel_clustering.PixelClustering):
  """Features are the normalized pixels; statistics count the batches."""

  def __init__(self):
    """Has no network."""

  def features(self, variables, view, train):
    assert train and view.box is None
    features = view.images * variables['params']['scale']
    return (
      embedding_ops.l2_normalize_embeddings(features),
      {'count': variables['batch_stats']['count'] + 1},
    )


class FixedBatches(image_batches.ImageBatches):
  """Batches of images in a fixed order."""

  def __init__(self, batches, mesh):
    object.__setattr__(self, 'batches', batches)
    object.__setattr__(self, 'mesh', mesh)

  @property
  def num_whole(self):
    return len(self.batches)

  def read(self, count, seed):
    assert (count, seed) == (len(self.batches), 3)
    return ({'image': jax.device_put(x)} for x in self.batches)


def test_fresh_clusters_of_whole_images():
  rng = np.random.default_rng(2)
  images = rng.integers(0, 256, (4, BATCH, SIDE, SIDE, 3), np.uint8)
  scale = np.array([1.0, 2.0, 0.5])
  state = train_state.TrainState(
    0,
    {'scale': scale, 'encoder': {}, 'heads': {'clusters': {}}},
    {'count': 5},
    (),
    0,
  )
  new = fresh_clusters.cluster_whole_images(
    PixelMethod(),
    state,
    FixedBatches([*images], meshes.mesh_of(1)),
    dense_options.KmeansOptions(BATCH, 2, 20),
    K,
    3,
  )
  batches = [
    reference.normalize((x / 127.5 - 1) * scale).reshape(BATCH, -1, 3)
    for x in images
  ]
  rows = np.stack(batches[:2], axis=1).reshape(-1, 3)
  key = jax.random.fold_in(jax.random.PRNGKey(3), 0)
  first = kmeans.sample_initial_centroids(key, 1, len(rows), K)
  centroids = wsss.lloyd(rows, rows[np.asarray(first)[0]], 20)
  counts = np.bincount(wsss.squared_error(rows, centroids)[0], minlength=K)
  expected, _ = reference.mini_batch_kmeans(
    [x.reshape(-1, 3) for x in batches[2:]], centroids, counts.astype(float)
  )
  head = new.params['heads']['clusters']
  np.testing.assert_allclose(head['kernel'].T, expected, atol=1e-5)
  assert not head['bias'].any() and len(head['bias']) == K
  assert new.batch_stats['count'] == 9
  assert new.params['scale'] is scale


def test_clusters_that_no_pixel_hits_stay():
  centroids = np.array([[1.0, 0.0], [0.0, 5.0]], np.float32)
  before = mini_batch_kmeans.Clusters(centroids, np.array([2.0, 7.0], 'f4'))
  features = np.array([[[[0.0, 1.0], [0.6, 0.8]]]], np.float32)
  after = jax.jit(mini_batch_kmeans.update_clusters)(before, features)
  np.testing.assert_allclose(
    after.centroids, [[(2 * 1 + 0.6) / 4, 1.8 / 4], [0, 5]], rtol=1e-5
  )
  np.testing.assert_array_equal(after.counts, [4, 7])


def test_labels_are_those_of_the_released_score():
  rng = np.random.default_rng(1)
  features = reference.normalize(rng.normal(size=(2, 3, 3, D))).astype('f4')
  centroids = rng.normal(size=(6, D)).astype(np.float32)
  labels = jax.jit(mini_batch_kmeans.assign_pixels)(features, centroids)
  expected = reference.nearest(features.reshape(-1, D), centroids)
  np.testing.assert_array_equal(labels.ravel(), expected)


def test_pixels_without_a_label_do_not_count():
  labels = np.array([[[0, -1], [1, 1]]])
  features = np.arange(8.0, dtype=np.float32).reshape(1, 2, 2, 2)
  add = functools.partial(mini_batch_kmeans.cluster_sums, num_clusters=3)
  sums = jax.jit(add)(features, labels)
  np.testing.assert_array_equal(sums, [[0, 1], [10, 12], [0, 0]])
  count = functools.partial(mini_batch_kmeans.count_pixels, num_clusters=3)
  np.testing.assert_array_equal(jax.jit(count)(labels), [1, 2, 0])
