"""Mini-batch k-means of the pixels of a stream of batches, on a mesh.

  initial = initial_clusters(features_of_batches, k, key, 20, mesh)
  clusters = update_clusters(clusters, features)   # for each batch

Each batch moves the centroids of the clusters that it hits (Sculley 2010; spec
comparators §3.3). Features stay on their devices: the sums and the counts of
the clusters are what devices exchange.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pass_luss.pseudo_labels import kmeans
from segcore.distributed import sharding

# Full float32 products, as in k-means.
_EXACT = jax.lax.Precision.HIGHEST
# Added to the number of pixels of a cluster that divides its learning rate.
_EPSILON = 1e-6


@flax.struct.dataclass
class Clusters:
  """Centroids and the number of pixels that have moved them.

  A part of a state, which is also a tree of shapes: hence fields of any type.

  Attributes:
    centroids: float32 [K, D], not normalized.
    counts: float32 [K].
  """

  centroids: Any
  counts: Any


def assign_pixels(
  features: Float[Array, '*shape D'], centroids: Float[Array, 'K D']
) -> Int[Array, '*shape']:
  """Returns the nearest centroid of each pixel: argmax of 2 f·c - |c|²."""
  rows = features.reshape(-1, features.shape[-1])
  nearest = kmeans.nearest_centroids(rows, centroids[None])[0]
  return nearest.reshape(features.shape[:-1])


def count_pixels(
  labels: Int[Array, '*shape'], num_clusters: int
) -> Float[Array, 'K']:
  """Counts the pixels of each cluster; negative labels do not count."""
  one_hot = jax.nn.one_hot(labels, num_clusters)
  return jnp.sum(one_hot, axis=range(labels.ndim))


def cluster_sums(
  features: Float[Array, '*shape D'],
  labels: Int[Array, '*shape'],
  num_clusters: int,
) -> Float[Array, 'K D']:
  """Sums the features of each cluster, over all devices.

  Args:
    features: features of a batch.
    labels: cluster of each pixel; negative for pixels that do not count.
    num_clusters: number K of clusters.
  """
  # A product: rows stay on their devices, and only the sums are all-reduced.
  one_hot = jax.nn.one_hot(labels, num_clusters, dtype=features.dtype)
  return jnp.einsum('...k,...d->kd', one_hot, features, precision=_EXACT)


def update_clusters(
  clusters: Clusters, features: Float[Array, '*shape D']
) -> Clusters:
  """Moves the centroids that a batch hits toward the means of their pixels.

    n_c ← n_c + m, rate = m / (n_c + 1e-6), c ← (1 - rate) c + rate mean

  Args:
    clusters: clusters before the batch.
    features: features of the batch, of which m pixels are of a cluster c.
  """
  labels = assign_pixels(features, clusters.centroids)
  sums = cluster_sums(features, labels, len(clusters.centroids))
  hits = count_pixels(labels, len(clusters.centroids))
  counts = clusters.counts + hits
  rate = (hits / (counts + _EPSILON))[:, None]
  means = sums / jnp.maximum(hits, 1.0)[:, None]
  moved = (1.0 - rate) * clusters.centroids + rate * means
  centroids = jnp.where((hits > 0)[:, None], moved, clusters.centroids)
  return Clusters(centroids, counts)


def initial_clusters(
  batches: list[Float[Array, 'B h w D']],
  num_clusters: int,
  key: PRNGKeyArray,
  iterations: int,
  mesh: Mesh,
) -> Clusters:
  """Clusters the pixels of the first batches by k-means, without restarts.

  Args:
    batches: features of whole batches, sharded by row.
    num_clusters: number K of clusters.
    key: key of the pixels that are the first centroids.
    iterations: number of assignments and updates.
    mesh: the devices.
  """

  # Rows of an image lie together, in the order of the batch: so each device
  # keeps its rows, and their order does not depend on the number of devices.
  def join(*batches: Array) -> Array:
    stacked = jnp.stack(batches, axis=1)
    return stacked.reshape(-1, stacked.shape[-1])

  rows = jax.jit(join, out_shardings=sharding.batch_sharding(mesh))(*batches)
  initial = kmeans.sample_initial_centroids(key, 1, len(rows), num_clusters)
  clustering = kmeans.fit_kmeans(
    kmeans.Rows(rows, len(rows)), np.asarray(initial), iterations
  )
  counts = jax.jit(lambda labels: count_pixels(labels, num_clusters))(
    clustering.assignments
  )
  return Clusters(clustering.centroids, counts)


_update_clusters = jax.jit(update_clusters)


def cluster_batches(
  batches: Iterable[Float[Array, 'B h w D']],
  counts: Sequence[int],
  initial_batches: int,
  iterations: int,
  key: PRNGKeyArray,
  mesh: Mesh,
) -> list[Float[Array, 'K D']]:
  """Clusters the pixels of a stream of batches, by each number of clusters.

  K-means of the first batches, then `update_clusters` by each further one.

  Args:
    batches: features of whole batches, sharded by row.
    counts: number K of clusters of each clustering.
    initial_batches: number of batches of which k-means computes the first
      centroids, at most as many as there are.
    iterations: number of assignments and updates of that.
    key: key of the pixels that are the first centroids.
    mesh: the devices.

  Returns:
    The centroids of each clustering.
  """
  first, clusterings = [], []
  for features in batches:
    if clusterings:
      clusterings = [_update_clusters(each, features) for each in clusterings]
      continue
    first.append(features)
    if len(first) == initial_batches:
      clusterings = [
        initial_clusters(
          first, count, jax.random.fold_in(key, i), iterations, mesh
        )
        for i, count in enumerate(counts)
      ]
      first = []
  return [each.centroids for each in clusterings]
