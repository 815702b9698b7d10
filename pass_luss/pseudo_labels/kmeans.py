"""k-means on features that are spread over the devices of a mesh.

  rows = kmeans.place(mesh, features)
  initial = kmeans.sample_initial(rng, restarts=30, num_rows=rows.count, k=919)
  found = kmeans.fit(rows, initial, num_iterations=20)
  kmeans.clustering_scores(found.assignments[: rows.count], folders)

Lloyd's algorithm on squared Euclidean distances, as Faiss' flat L2 clustering
does it (spec PASS §3.2): all rows in each iteration, centroids not normalized.
Distances are never held for more than a block of rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float32, Int

from segcore.distributed import sharding

# Products of float32 that are as exact as float32, on every device.
_EXACT = jax.lax.Precision.HIGHEST

# Rows whose distances exist at a time: a block stays in a processor's cache.
BLOCK_ROWS = 2048

# Centroids of restarts that run together: one product serves them all.
_MOST_COLUMNS = 512

# By how much, relatively, the halves of a split cluster differ from it.
_SPLIT = 1 / 1024


class Rows(NamedTuple):
  """Rows over the devices, the last of which may only fill the devices up.

  Attributes:
    values: float32 [P, D], sharded over the rows; P divides among the devices.
    count: how many rows, from the first on, are meant; the others do nothing.
  """

  values: jax.Array
  count: int


class Clustering(NamedTuple):
  """The best of some restarts.

  Attributes:
    centroids: float32 [K, D], on every device.
    objective: sum over the rows of the squared distance to their centroid.
    assignments: int32 [P], sharded as the rows; -1 for those that only fill up.
  """

  centroids: jax.Array
  objective: float
  assignments: jax.Array


def shard_rows(mesh: Mesh, features: Float[np.ndarray, 'N D']) -> Rows:
  """Spreads rows over a mesh, after as many zeros as fill it up.

  Args:
    mesh: with the axes of `sharding.make_mesh`.
    features: the same on all hosts, for instance a memory map: each host reads
      the rows of its own devices only.
  """
  count, dim = features.shape
  filled = -(-count // mesh.size) * mesh.size

  def part(index: tuple[slice, ...]) -> np.ndarray:
    start, stop, _ = index[0].indices(filled)
    found = np.asarray(features[start:stop], np.float32)
    return np.pad(found, ((0, stop - start - len(found)), (0, 0)))

  values = jax.make_array_from_callback(
    (filled, dim), sharding.batch_sharding(mesh), part
  )
  return Rows(values, count)


def sample_initial(
  rng: Array, restarts: int, num_rows: int, k: int
) -> Int[Array, 'R K']:
  """Which rows are the first centroids: for each restart, k distinct ones.

  A restart's draw does not depend on how many restarts there are.

  Raises:
    ValueError: there are fewer rows than clusters.
  """
  if not 1 <= k <= num_rows:
    raise ValueError(
      f'k: found {k} clusters, expected 1 to {num_rows}, the number of rows'
    )

  # Floyd's way, which needs no permutation of all rows: draw i is of the first
  # num_rows - k + i + 1; of what was drawn before, the last of them takes the
  # place, since it cannot have been drawn.
  tops = num_rows - k + jnp.arange(k, dtype=jnp.int32)

  def draw(restart: Array) -> Array:
    key = jax.random.fold_in(rng, restart)
    drawn = jax.random.randint(key, (k,), 0, tops + 1, jnp.int32)

    def settle(i: Array, chosen: Array) -> Array:
      again = jnp.any(chosen == drawn[i])
      return chosen.at[i].set(jnp.where(again, tops[i], drawn[i]))

    return jax.lax.fori_loop(0, k, settle, jnp.full(k, -1, jnp.int32))

  return jax.vmap(draw)(jnp.arange(restarts))


def fit(
  rows: Rows,
  initial: Int[Array | np.ndarray, 'R K'],
  num_iterations: int = 20,
  *,
  block_rows: int = BLOCK_ROWS,
  progress: Callable[[int, float], Any] | None = None,
) -> Clustering:
  """k-means from each row of `initial`; the one of least objective is kept.

  The objective belongs to the centroids that are returned, after the last
  update. Of equal ones the first restart is kept.

  Args:
    rows: what is clustered.
    initial: for each restart, the rows that are its first centroids.
    num_iterations: assignments and updates; there is no other end.
    block_rows: whose distances are held at a time, on each device. What is
      found depends on it only by the rounding of sums.
    progress: called with the number of restarts done, and the least objective
      so far.

  Raises:
    ValueError: `initial` names rows that there are not, or features are not
      finite.
  """
  initial = np.asarray(initial, np.int32)
  restarts, k = initial.shape
  if initial.min() < 0 or initial.max() >= rows.count:
    raise ValueError(
      f'initial: found rows {initial.min()} to {initial.max()}, expected 0 to '
      f'{rows.count - 1}'
    )
  mesh = rows.values.sharding.mesh
  together = _together(restarts, k)
  best, centroids = np.inf, None
  for first in range(0, restarts, together):
    chunk = initial[first : first + together]
    found, objectives = _lloyd(
      *(rows.values, rows.count, chunk, num_iterations),
      mesh=mesh,
      block_rows=block_rows,
    )
    objectives = np.asarray(objectives)
    if not np.isfinite(objectives).all():
      raise ValueError(
        f'k-means: found an objective of {objectives}, expected finite ones: '
        'features hold NaN or infinity, or overflow when squared'
      )
    least = int(np.argmin(objectives))
    if objectives[least] < best:
      best, centroids = float(objectives[least]), found[least]
    if progress:
      progress(first + len(chunk), best)
  assignments = _assign_rows(
    *(rows.values, rows.count, centroids), mesh=mesh, block_rows=block_rows
  )
  return Clustering(centroids, best, assignments)


def assign(
  features: Float[Array, 'N D'],
  centroids: Float[Array, 'K D'],
  block_rows: int = BLOCK_ROWS,
) -> Int[Array, 'N']:
  """The nearest centroid of each row; the first one of several.

  Where the centroids are L2-normalized it is the one of largest cosine.
  """

  def visit(found: Array, block: Array, _: Array, start: Array) -> Array:
    here = nearest(block, centroids[None])[0]
    return jax.lax.dynamic_update_slice_in_dim(found, here, start, 0)

  found = jnp.zeros(len(features), jnp.int32)
  return _over_blocks(visit, found, features, len(features), block_rows)


def nearest(
  features: Float[Array, 'N D'], centroids: Float[Array, 'R K D']
) -> Int[Array, 'R N']:
  """The nearest centroid of each row in each of R sets of centroids.

  By |c|²/2 - x·c, which lacks what is the same for all centroids of a row; the
  first of several that are equal, and K where there is none, as x is NaN.
  """
  k = centroids.shape[1]
  products = jnp.einsum('rkd,nd->rkn', centroids, features, precision=_EXACT)
  half = jnp.sum(jnp.square(centroids), axis=-1) / 2
  distances = half[..., None] - products
  # On a CPU, argmin takes more time than the product.
  least = jnp.min(distances, axis=1, keepdims=True)
  order = jnp.arange(k, dtype=jnp.int32)[:, None]
  return jnp.min(jnp.where(distances == least, order, k), axis=1)


def split_empty(
  centroids: Float[Array, 'K D'], counts: Int[Array, 'K']
) -> Float[Array, 'K D']:
  """Gives each empty cluster half of the one that is then the largest.

  As in Faiss both are moved by 1/1024 of the centroid, up and down in turns
  along the dimensions, in opposite ways. Faiss draws who gives, with
  probabilities that grow with the size; here it is the largest (the first of
  several), so that a repetition finds the same.

  Args:
    centroids: that of an empty cluster is not read.
    counts: rows of each; all together at least K.
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
    # A cluster of one row has no half: with fewer rows than K it would not end.
    return (jnp.min(state[1]) == 0) & (jnp.max(state[1]) > 1)

  return jax.lax.while_loop(unfinished, split, (centroids, counts))[0]


def clustering_scores(
  assignments: Int[np.ndarray, 'N'], labels: Int[np.ndarray, 'N']
) -> dict[str, float]:
  """How well clusters agree with classes that they have not seen.

  Args:
    assignments: the cluster of each row, from 0.
    labels: its class, from 0; not necessarily as many as clusters.

  Returns:
    nmi: mutual information over the mean of both entropies, 0 to 1; 1 where
      there is one cluster and one class.
    accuracy: share of rows whose cluster is matched to their class, when each
      cluster is matched to one class at most so that the share is largest.

  Raises:
    ValueError: there are no rows, or an id is negative.
  """
  lowest = min(assignments.min(initial=0), labels.min(initial=0))
  if not labels.size or lowest < 0:
    raise ValueError(
      f'clustering_scores: found {labels.size} rows with ids from {lowest} on, '
      'expected at least one row, and no negative id'
    )
  shape = (assignments.max() + 1, labels.max() + 1)
  cells = assignments.astype(np.int64) * shape[1] + labels
  table = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
  rows, columns = scipy.optimize.linear_sum_assignment(table, maximize=True)
  joint = table / labels.size
  entropies = _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0))
  shared = entropies - _entropy(joint.ravel())
  return {
    'nmi': float(max(2 * shared / entropies, 0)) if entropies > 0 else 1.0,
    'accuracy': float(table[rows, columns].sum() / labels.size),
  }


def _entropy(probs: Float[np.ndarray, 'N']) -> float:
  """In nats."""
  probs = probs[probs > 0]
  return float(-np.sum(probs * np.log(probs)))


def _together(restarts: int, k: int) -> int:
  """How many restarts run at a time: a divisor, so that one program serves."""
  return max(
    n
    for n in range(1, restarts + 1)
    if restarts % n == 0 and (n == 1 or n * k <= _MOST_COLUMNS)
  )


def _over_blocks(
  visit: Callable[[Any, Array, Array, Array], Any],
  carry: Any,
  features: Float[Array, 'N D'],
  count: Any,
  block_rows: int,
) -> Any:
  """Folds blocks of rows; none is copied but the one that is visited.

  Args:
    visit: from the carry, the rows of a block, which of them count (the last
      block overlaps the one before, and rows from `count` on do not), and
      where the block starts, to the next carry.
    carry: the first one.
    features: all rows.
    count: of the rows that are meant.
    block_rows: of a block, at most.
  """
  num_rows = len(features)
  size = min(block_rows, num_rows)

  def body(i: Array, carry: Any) -> Any:
    start = jnp.minimum(i * size, num_rows - size)
    block = jax.lax.dynamic_slice_in_dim(features, start, size)
    position = start + jnp.arange(size)
    fresh = (position >= i * size) & (position < count)
    return visit(carry, block, fresh, start)

  return jax.lax.fori_loop(0, -(-num_rows // size), body, carry)


def _sums(
  features: Float[Array, 'N D'], clusters: Int[Array, 'R N'], k: int
) -> Float[Array, 'R K D']:
  """The sum of each cluster's rows; rows of cluster K are left out."""
  return jax.lax.platform_dependent(
    *(features, clusters),
    cpu=functools.partial(_scattered, k=k),
    default=functools.partial(_multiplied, k=k),
  )


def _scattered(features: Array, clusters: Array, k: int) -> Array:
  """Row by row: on a CPU faster than the product, the more the larger k is."""
  return jax.vmap(lambda of: jax.ops.segment_sum(features, of, k))(clusters)


def _multiplied(features: Array, clusters: Array, k: int) -> Array:
  """As a product: where matrix units wait for it, and in a fixed order."""
  one_hot = clusters[:, None] == jnp.arange(k)[:, None]
  return jnp.einsum(
    'rkn,nd->rkd', one_hot.astype(features.dtype), features, precision=_EXACT
  )


def _squared_distances(
  features: Float[Array, 'N D'],
  centroids: Float[Array, 'R K D'],
  clusters: Int[Array, 'R N'],
) -> Float[Array, 'R N']:
  """From each row to the centroid of its cluster.

  From differences: |x|² - 2x·c + |c|² would lose what is small in tight
  clusters. One set of centroids at a time.
  """

  def of_restart(given: tuple[Array, Array]) -> Array:
    centroids, clusters = given
    # NaN for the rows that have no nearest centroid, as they are NaN.
    own = centroids.at[clusters].get(mode='fill', fill_value=jnp.nan)
    return jnp.sum(jnp.square(features - own), axis=-1)

  return jax.lax.map(of_restart, (centroids, clusters))


def _local_count(values: Float[Array, 'N D'], count: Any, mesh: Mesh) -> Array:
  """How many of this device's rows are meant; all, if that or more."""
  return count - jax.lax.axis_index(mesh.axis_names) * len(values)


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
  """Centroids and objectives of restarts that run together."""
  restarts, k = initial.shape

  def on_device(values: Array, count: Array, initial: Array) -> Any:
    axes = mesh.axis_names
    mine = _local_count(values, count, mesh)

    def first() -> Array:
      # The device that has a row tells the others.
      at = initial - jax.lax.axis_index(axes) * len(values)
      here = (at >= 0) & (at < len(values))
      found = values[jnp.clip(at, 0, len(values) - 1)]
      return jax.lax.psum(jnp.where(here[..., None], found, 0), axes)

    def iterate(_: Array, centroids: Array) -> Array:
      def visit(carry: Any, block: Array, fresh: Array, _: Array) -> Any:
        clusters = jnp.where(fresh, nearest(block, centroids), k)
        ones = jnp.ones(len(block), jnp.int32)
        counted = jax.vmap(lambda of: jax.ops.segment_sum(ones, of, k))
        sums, counts = carry
        return sums + _sums(block, clusters, k), counts + counted(clusters)

      carry = jnp.zeros_like(centroids), jnp.zeros((restarts, k), jnp.int32)
      sums, counts = jax.lax.psum(
        _over_blocks(visit, carry, values, mine, block_rows), axes
      )
      means = sums / jnp.maximum(counts, 1)[..., None]
      return jax.vmap(split_empty)(means, counts)

    def objectives(centroids: Array) -> Array:
      def visit(total: Array, block: Array, fresh: Array, _: Array) -> Array:
        clusters = nearest(block, centroids)
        distances = _squared_distances(block, centroids, clusters)
        return total + jnp.sum(jnp.where(fresh, distances, 0), axis=-1)

      total = jnp.zeros(restarts)
      return jax.lax.psum(
        _over_blocks(visit, total, values, mine, block_rows), axes
      )

    centroids = jax.lax.fori_loop(0, num_iterations, iterate, first())
    return centroids, objectives(centroids)

  whole = PartitionSpec()
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(PartitionSpec(mesh.axis_names), whole, whole),
    out_specs=whole,
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
  """The nearest centroid of each row; -1 for those that only fill up."""

  def on_device(values: Array, count: Array, centroids: Array) -> Array:
    found = assign(values, centroids, block_rows)
    mine = _local_count(values, count, mesh)
    return jnp.where(jnp.arange(len(values)) < mine, found, -1)

  rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(rows, whole, whole),
    out_specs=rows,
    check_vma=False,
  )(values, count, centroids)
