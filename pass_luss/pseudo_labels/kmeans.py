"""k-means of features that are sharded over the devices of a mesh.

  rows = kmeans.shard_feature_rows(mesh, features)
  initial = kmeans.sample_initial_centroids(
    rng, restarts=30, num_rows=rows.count, k=919
  )
  clustering = kmeans.fit_kmeans(rows, initial, num_iterations=20)

Lloyd's algorithm on squared Euclidean distances, like Faiss' flat L2 clustering
(spec §3.2): each iteration uses all rows, and centroids are not normalized.
Iterations end early where they no longer move a centroid. The memory of
distances is bounded by a block of rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float32, Int

from segcore.distributed import sharding

# Full float32 products: TPUs and GPUs would round the factors by default.
_EXACT = jax.lax.Precision.HIGHEST

# Rows whose distances are in memory at a time; a block fits into a CPU's cache.
BLOCK_ROWS = 2048

# Restarts run together up to this number of centroids: the matrix product of a
# single restart with few clusters would be too small to be fast.
_MAX_CENTROIDS = 512

# Relative perturbation of the two halves of a split cluster, as in Faiss.
_SPLIT = 1 / 1024


class Rows(NamedTuple):
  """Features sharded over the devices, with padding at the end.

  Attributes:
    values: float32 [P, D], sharded by row; P is a multiple of the number of
      devices.
    count: number of rows without the padding, N.
  """

  values: jax.Array
  count: int


class Clustering(NamedTuple):
  """Result of the best restart.

  Attributes:
    centroids: float32 [K, D], replicated.
    objective: sum of the squared distances of the rows to their centroids.
    assignments: int32 [P], sharded like the rows; -1 for padding.
  """

  centroids: jax.Array
  objective: float
  assignments: jax.Array


def shard_feature_rows(mesh: Mesh, features: Float[np.ndarray, 'N D']) -> Rows:
  """Shards rows over a mesh, padded with zeros to a multiple of its devices.

  Args:
    mesh: device mesh with the axes of `sharding.make_mesh`.
    features: array, the same on all hosts, which read their own rows only.
  """
  count, dim = features.shape
  padded = -(-count // mesh.size) * mesh.size

  def shard(index: tuple[slice, ...]) -> np.ndarray:
    start, stop, _ = index[0].indices(padded)
    rows = np.asarray(features[start:stop], np.float32)
    return np.pad(rows, ((0, stop - start - len(rows)), (0, 0)))

  values = jax.make_array_from_callback(
    (padded, dim), sharding.batch_sharding(mesh), shard
  )
  return Rows(values, count)


def sample_initial_centroids(
  rng: Array, restarts: int, num_rows: int, k: int
) -> Int[Array, 'R K']:
  """Draws k distinct rows as the initial centroids of each restart.

  The draw of a restart does not depend on the number of restarts.

  Args:
    rng: random key.
    restarts: number of restarts R.
    num_rows: number of rows to draw from.
    k: number of clusters K.

  Raises:
    ValueError: there are fewer rows than clusters.
  """
  if not 1 <= k <= num_rows:
    raise ValueError(
      f'k: expected 1 to {num_rows} clusters, the number of rows, got {k}'
    )

  # Floyd's sampling without replacement, which needs no permutation of a
  # million rows: draw i is uniform over the first num_rows - k + i + 1 rows. If
  # it was drawn before, the last of these is taken, which cannot have been.
  last = num_rows - k + jnp.arange(k, dtype=jnp.int32)

  def draw(restart: Array) -> Array:
    key = jax.random.fold_in(rng, restart)
    drawn = jax.random.randint(key, (k,), 0, last + 1, jnp.int32)

    def choose(i: Array, chosen: Array) -> Array:
      repeated = jnp.any(chosen == drawn[i])
      return chosen.at[i].set(jnp.where(repeated, last[i], drawn[i]))

    return jax.lax.fori_loop(0, k, choose, jnp.full(k, -1, jnp.int32))

  return jax.vmap(draw)(jnp.arange(restarts))


def fit_kmeans(
  rows: Rows,
  initial: Int[Array | np.ndarray, 'R K'],
  num_iterations: int = 20,
  *,
  block_rows: int = BLOCK_ROWS,
  progress: Callable[[int, float], Any] | None = None,
) -> Clustering:
  """Runs k-means with restarts; returns the one with the lowest objective.

  The objective is that of the returned centroids, after the last update. On a
  tie the first restart wins.

  Args:
    rows: features to cluster.
    initial: indices of the rows that are the centroids a restart begins with.
    num_iterations: number of assignments and updates. Those after which no
      centroid of any restart moves are left out: they would change nothing.
    block_rows: number of rows of a block on each device; changes the result
      only by the rounding of sums.
    progress: function of the finished restarts and the lowest objective so far.

  Raises:
    ValueError: `initial` has rows out of range, or features are not finite.
  """
  initial = np.asarray(initial, np.int32)
  restarts, k = initial.shape
  if initial.min() < 0 or initial.max() >= rows.count:
    raise ValueError(
      f'initial: expected rows 0 to {rows.count - 1}, got {initial.min()} to '
      f'{initial.max()}'
    )
  mesh = rows.values.sharding.mesh
  num_parallel = _num_parallel(restarts, k)
  best, best_centroids = np.inf, None
  for first in range(0, restarts, num_parallel):
    chunk = initial[first : first + num_parallel]
    centroids, objectives = _lloyd(
      rows.values,
      rows.count,
      chunk,
      num_iterations,
      mesh=mesh,
      block_rows=block_rows,
    )
    objectives = np.asarray(objectives)
    if not np.isfinite(objectives).all():
      raise ValueError(
        f'k-means: expected finite objectives, got {objectives}: features are '
        'NaN or infinite, or overflow when squared'
      )
    lowest = int(np.argmin(objectives))
    if objectives[lowest] < best:
      best, best_centroids = float(objectives[lowest]), centroids[lowest]
    if progress:
      progress(first + len(chunk), best)
  assignments = _assign_rows(
    rows.values, rows.count, best_centroids, mesh=mesh, block_rows=block_rows
  )
  return Clustering(best_centroids, best, assignments)


def gather_assignments(
  clustering: Clustering, num_rows: int
) -> Int[np.ndarray, 'N']:
  """Returns the cluster of every row, without the padding, on every host."""
  replicated = sharding.replicated_sharding(
    clustering.assignments.sharding.mesh
  )
  return np.asarray(jax.device_put(clustering.assignments, replicated))[
    :num_rows
  ]


def assign_to_centroids(
  features: Float[Array, 'N D'],
  centroids: Float[Array, 'K D'],
  block_rows: int = BLOCK_ROWS,
) -> Int[Array, 'N']:
  """Returns the index of the nearest centroid of each row, the lowest on a tie.

  The nearest of L2-normalized centroids has the largest cosine similarity.
  """

  def visit(clusters: Array, block: Array, _: Array, start: Array) -> Array:
    block_clusters = nearest_centroids(block, centroids[None])[0]
    return jax.lax.dynamic_update_slice_in_dim(
      clusters, block_clusters, start, 0
    )

  clusters = jnp.zeros(len(features), jnp.int32)
  return _fold_blocks(visit, clusters, features, len(features), block_rows)


def nearest_centroids(
  features: Float[Array, 'N D'], centroids: Float[Array, 'R K D']
) -> Int[Array, 'R N']:
  """Returns the nearest centroid of each row in each of R sets of centroids.

  Compares |c|²/2 - x·c, half the squared distance without |x|², which is the
  same for all centroids. Of equal ones the first is returned; K if x is NaN.
  """
  k = centroids.shape[1]
  products = jnp.einsum('rkd,nd->rkn', centroids, features, precision=_EXACT)
  half = jnp.sum(jnp.square(centroids), axis=-1) / 2
  distances = half[..., None] - products
  # On CPUs argmin takes longer than the product; two minima do not.
  least = jnp.min(distances, axis=1, keepdims=True)
  order = jnp.arange(k, dtype=jnp.int32)[:, None]
  return jnp.min(jnp.where(distances == least, order, k), axis=1)


def split_empty_clusters(
  centroids: Float[Array, 'K D'], counts: Int[Array, 'K']
) -> Float[Array, 'K D']:
  """Replaces each empty cluster by half of the cluster largest at that time.

  As in Faiss the two halves are perturbed by 1/1024 of the centroid, with signs
  that alternate along the dimensions and are opposite for the halves. Faiss
  draws the cluster to split with probabilities that grow with its size; here it
  is the first largest, so that the result is deterministic.

  Args:
    centroids: centroids of all clusters; those of empty clusters are ignored.
    counts: number of rows of each cluster; their sum is at least K.
  """
  dim = centroids.shape[1]
  factors = 1 + _SPLIT * (1 - 2 * (jnp.arange(dim) % 2))

  def split(state: tuple[Array, Array]) -> tuple[Array, Array]:
    centroids, counts = state
    empty, donor = jnp.argmin(counts), jnp.argmax(counts)
    centroid, half = centroids[donor], counts[donor] // 2
    centroids = centroids.at[empty].set(centroid * factors)
    centroids = centroids.at[donor].set(centroid * (2 - factors))
    return centroids, counts.at[empty].set(half).at[donor].add(-half)

  def unfinished(state: tuple[Array, Array]) -> Array:
    # Clusters of one row cannot be split: with fewer than K rows the first
    # condition would hold forever.
    return (jnp.min(state[1]) == 0) & (jnp.max(state[1]) > 1)

  return jax.lax.while_loop(unfinished, split, (centroids, counts))[0]


def _num_parallel(restarts: int, k: int) -> int:
  """Returns the number of restarts that run together, which divides all."""
  return max(
    n
    for n in range(1, restarts + 1)
    if restarts % n == 0 and (n == 1 or n * k <= _MAX_CENTROIDS)
  )


def _fold_blocks(
  visit: Callable[[Any, Array, Array, Array], Any],
  carry: Any,
  features: Float[Array, 'N D'],
  count: Any,
  block_rows: int,
) -> Any:
  """Folds a function over blocks of rows, of which one is copied at a time.

  Args:
    visit: function of (carry, rows of the block, valid rows, start of the
      block) that returns the next carry. Rows that overlap with the previous
      block and rows of the padding are not valid.
    carry: initial carry.
    features: all rows.
    count: number of rows without the padding.
    block_rows: size of a block, at most.
  """
  num_rows = len(features)
  size = min(block_rows, num_rows)

  def body(i: Array, carry: Any) -> Any:
    # Blocks have a static size, so the last one overlaps the one before.
    start = jnp.minimum(i * size, num_rows - size)
    block = jax.lax.dynamic_slice_in_dim(features, start, size)
    position = start + jnp.arange(size)
    valid = (position >= i * size) & (position < count)
    return visit(carry, block, valid, start)

  return jax.lax.fori_loop(0, -(-num_rows // size), body, carry)


def _sums(
  features: Float[Array, 'N D'], clusters: Int[Array, 'R N'], k: int
) -> Float[Array, 'R K D']:
  """Sums the rows of each cluster; rows of cluster K are left out."""
  return jax.lax.platform_dependent(
    features,
    clusters,
    cpu=functools.partial(_segment_sums, k=k),
    default=functools.partial(_one_hot_sums, k=k),
  )


def _segment_sums(features: Array, clusters: Array, k: int) -> Array:
  """Sums row by row: faster than a product on CPUs, the more so for large k."""
  # One scatter a restart: they run in parallel, and each takes less than half
  # of its share of a batched scatter, which computes an index for each number.
  return jnp.stack(
    [jax.ops.segment_sum(features, restart, k) for restart in clusters]
  )


def _one_hot_sums(features: Array, clusters: Array, k: int) -> Array:
  """Sums by a product: for matrix units, and deterministic unlike a scatter."""
  one_hot = clusters[:, None] == jnp.arange(k)[:, None]
  return jnp.einsum(
    'rkn,nd->rkd', one_hot.astype(features.dtype), features, precision=_EXACT
  )


def _squared_distances(
  features: Float[Array, 'N D'],
  centroids: Float[Array, 'R K D'],
  clusters: Int[Array, 'R N'],
) -> Float[Array, 'R N']:
  """Computes the squared distance of each row to the centroid of its cluster.

  Squares differences, as |x|² - 2x·c + |c|² would cancel in tight clusters.
  """

  def distances(restart: tuple[Array, Array]) -> Array:
    centroids, clusters = restart
    # NaN rows have cluster K, which is out of range: their distance is NaN.
    assigned = centroids.at[clusters].get(mode='fill', fill_value=jnp.nan)
    return jnp.sum(jnp.square(features - assigned), axis=-1)

  return jax.lax.map(distances, (centroids, clusters))


def _local_count(values: Float[Array, 'N D'], count: Any, mesh: Mesh) -> Array:
  """Returns the number of rows from this device's first to the padding."""
  return count - jax.lax.axis_index(mesh.axis_names) * len(values)


def _select_rows(
  values: Float32[Array, 'N D'], indices: Int[Array, 'R K'], mesh: Mesh
) -> Float32[Array, 'R K D']:
  """Returns rows of all devices by their global indices; runs on each device.

  Each row is on one device: a sum with the zeros of the others sends it.
  """
  axes = mesh.axis_names
  local = indices - jax.lax.axis_index(axes) * len(values)
  is_local = (local >= 0) & (local < len(values))
  rows = values[jnp.clip(local, 0, len(values) - 1)]
  return jax.lax.psum(jnp.where(is_local[..., None], rows, 0), axes)


def _update(
  fold: Callable[[Any, Any], Any],
  centroids: Float32[Array, 'R K D'],
  mesh: Mesh,
) -> Float32[Array, 'R K D']:
  """Assigns all rows and computes new centroids; runs on each device."""
  restarts, k, _ = centroids.shape

  def visit(carry: Any, block: Array, valid: Array, _: Array) -> Any:
    clusters = jnp.where(valid, nearest_centroids(block, centroids), k)
    ones = jnp.ones(len(block), jnp.int32)
    count_rows = jax.vmap(lambda row: jax.ops.segment_sum(ones, row, k))
    sums, counts = carry
    return sums + _sums(block, clusters, k), counts + count_rows(clusters)

  carry = jnp.zeros_like(centroids), jnp.zeros((restarts, k), jnp.int32)
  sums, counts = jax.lax.psum(fold(visit, carry), mesh.axis_names)
  means = sums / jnp.maximum(counts, 1)[..., None]
  return jax.vmap(split_empty_clusters)(means, counts)


def _objectives(
  fold: Callable[[Any, Any], Any],
  centroids: Float32[Array, 'R K D'],
  mesh: Mesh,
) -> Float32[Array, 'R']:
  """Sums the squared distances of all rows; runs on each device."""

  def visit(total: Array, block: Array, valid: Array, _: Array) -> Array:
    clusters = nearest_centroids(block, centroids)
    distances = _squared_distances(block, centroids, clusters)
    return total + jnp.sum(jnp.where(valid, distances, 0), axis=-1)

  return jax.lax.psum(fold(visit, jnp.zeros(len(centroids))), mesh.axis_names)


@functools.partial(jax.jit, static_argnames=('mesh', 'block_rows'))
def _lloyd(
  values: Float32[Array, 'P D'],
  count: Any,
  initial: Int[Array | np.ndarray, 'R K'],
  num_iterations: Any,
  *,
  mesh: Mesh,
  block_rows: int,
) -> tuple[Float32[Array, 'R K D'], Float32[Array, 'R']]:
  """Runs several restarts together; returns their centroids and objectives."""

  def on_device(values: Array, count: Array, initial: Array) -> Any:
    fold = functools.partial(
      _fold_blocks,
      features=values,
      count=_local_count(values, count, mesh),
      block_rows=block_rows,
    )

    def is_moving(state: Any) -> Array:
      iteration, centroids, previous = state
      # Equal on all devices, as sums over the mesh are, so that all of them
      # end together. NaN counts as moving.
      moved = (iteration == 0) | jnp.any(centroids != previous)
      return moved & (iteration < num_iterations)

    def update(state: Any) -> Any:
      iteration, centroids, _ = state
      return iteration + 1, _update(fold, centroids, mesh), centroids

    first = _select_rows(values, initial, mesh)
    _, centroids, _ = jax.lax.while_loop(is_moving, update, (0, first, first))
    return centroids, _objectives(fold, centroids, mesh)

  replicated = PartitionSpec()
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(PartitionSpec(mesh.axis_names), replicated, replicated),
    out_specs=replicated,
    check_vma=False,
  )(values, count, initial)


@functools.partial(jax.jit, static_argnames=('mesh', 'block_rows'))
def _assign_rows(
  values: Float32[Array, 'P D'],
  count: Any,
  centroids: Float32[Array, 'K D'],
  *,
  mesh: Mesh,
  block_rows: int,
) -> Int[Array, 'P']:
  """Returns the nearest centroid of each row; -1 for padding."""

  def on_device(values: Array, count: Array, centroids: Array) -> Array:
    clusters = assign_to_centroids(values, centroids, block_rows)
    local_count = _local_count(values, count, mesh)
    return jnp.where(jnp.arange(len(values)) < local_count, clusters, -1)

  sharded, replicated = PartitionSpec(mesh.axis_names), PartitionSpec()
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(sharded, replicated, replicated),
    out_specs=sharded,
    check_vma=False,
  )(values, count, centroids)
