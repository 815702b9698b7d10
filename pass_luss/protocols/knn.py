"""Weighted k-nearest-neighbor classification of features by cosine similarity.

  bank = knn.build_knn_bank(features, masks, num_classes=919)
  vote = knn.make_sharded_knn_vote(mesh, bank)
  classes = vote(queries)

In distance matching the neighbors are regions of labeled images (spec §5.3).
Class 0, 'other', votes like any other class.

  vote = knn.make_sharded_soft_vote(mesh, k=30, temperature=0.02)
  scores = vote(queries, knn.SoftKnnBank(features, labels))

In dense nearest neighbors they are patches, whose labels are the shares of the
classes (Balazevic et al. 2023, Towards in-context scene understanding).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from segcore.distributed import sharding
from segcore.ops import losses

# Queries and bank entries whose similarities are in memory at a time.
QUERY_ROWS = 1024
BANK_ROWS = 4096


class KnnBank(NamedTuple):
  """Labeled features that queries are compared with.

  Attributes:
    features: float32 [M, D], L2-normalized.
    labels: int32 [M], classes; entries with a negative one are ignored.
  """

  features: Float32[Array | np.ndarray, 'M D']
  labels: Int32[Array | np.ndarray, 'M']


class SoftKnnBank(NamedTuple):
  """Features with soft labels that queries are compared with.

  Attributes:
    features: float [M, D], L2-normalized.
    labels: float [M, C], shares of the classes.
  """

  features: Float[Array | np.ndarray, 'M D']
  labels: Float[Array | np.ndarray, 'M C']


def build_knn_bank(
  features: Float[np.ndarray, 'B h w D'],
  masks: Int[np.ndarray, 'B h w'],
  num_classes: int,
) -> KnnBank:
  """Builds one entry for each image and class in its mask, including 0.

  An entry is the L2-normalized mean of feature x mask over all positions, as in
  the released code; after normalization it equals the mean over the class.
  Computed on the host, as the number of classes in an image is not static.

  Args:
    features: feature maps, not necessarily normalized.
    masks: class of each cell, 0 to `num_classes`; negative where ignored.
    num_classes: number of classes without 'other'.

  Raises:
    ValueError: a mask has a class above `num_classes`.
  """
  highest = masks.max(initial=-1)
  if highest > num_classes:
    raise ValueError(
      f'masks: expected classes 0 to {num_classes} or negative, got {highest}'
    )
  size = features.shape[-1]
  means, labels = [np.zeros((0, size), np.float32)], [np.zeros(0, np.int32)]
  for feature, mask in zip(features, masks, strict=True):
    classes = np.unique(mask[mask >= 0])
    one_hot = (classes[:, None] == mask.reshape(-1)).astype(np.float32)
    rows = feature.reshape(-1, size).astype(np.float32)
    means.append(one_hot @ rows / np.float32(mask.size))
    labels.append(classes.astype(np.int32))
  return KnnBank(
    _l2_normalize_on_host(np.concatenate(means)), np.concatenate(labels)
  )


def knn_vote(
  queries: Float[Array, 'Q D'],
  bank: KnnBank,
  k: int = 10,
  temperature: float = 0.07,
  *,
  query_rows: int = QUERY_ROWS,
  bank_rows: int = BANK_ROWS,
) -> Int32[Array, 'Q']:
  """Returns the class with the largest sum of weights among the k nearest.

  The weight of an entry is exp(cosine / temperature). Of classes with equal
  sums the lowest wins; of entries with equal cosines the first in the bank is a
  neighbor. Block sizes bound the memory and do not change the result.

  Args:
    queries: features to classify, not necessarily normalized.
    bank: labeled features, of which at least k have a class.
    k: number of neighbors.
    temperature: temperature of the weights, in units of cosine similarity.
    query_rows: block size of the queries.
    bank_rows: block size of the bank.

  Raises:
    ValueError: k is larger than the bank.
  """
  _check_k(k, len(bank.labels))
  bank = KnnBank(jnp.asarray(bank.features), jnp.asarray(bank.labels))

  def classify(query: Array) -> Array:
    cosines, neighbors = _nearest(
      query, bank.features, bank.labels >= 0, k, bank_rows
    )
    labels = bank.labels[neighbors]
    # Dividing all weights of a query by the largest one prevents overflow.
    weights = jnp.exp((cosines - cosines[0]) / temperature)
    # [k, k] instead of a sum for each of 920 classes: for each neighbor, the
    # sum of its class.
    same = labels[:, None] == labels
    sums = jnp.sum(jnp.where(same, weights, 0), axis=-1)
    highest_class = jnp.iinfo(labels.dtype).max
    return jnp.min(jnp.where(sums == jnp.max(sums), labels, highest_class))

  return jax.lax.map(classify, _l2_normalize(queries), batch_size=query_rows)


def soft_knn_vote(
  queries: Float[Array, 'Q D'],
  bank: SoftKnnBank,
  k: int = 30,
  temperature: float = 0.02,
  *,
  query_rows: int = QUERY_ROWS,
  bank_rows: int = BANK_ROWS,
) -> Float[Array, 'Q C']:
  """Computes the weighted mean of the labels of the k nearest entries.

  The weights are softmax(cosine / temperature) over the k neighbors; of entries
  with equal cosines the first in the bank is a neighbor. Block sizes bound the
  memory and do not change the result.

  Args:
    queries: features to classify, not necessarily normalized.
    bank: features with soft labels, at least k.
    k: number of neighbors.
    temperature: temperature of the weights, in units of cosine similarity.
    query_rows: block size of the queries.
    bank_rows: block size of the bank.

  Returns:
    Class scores, which sum to 1 where the labels do.

  Raises:
    ValueError: k is larger than the bank.
  """
  _check_k(k, len(bank.features))
  usable = jnp.ones(len(bank.features), bool)
  features, labels = jnp.asarray(bank.features), jnp.asarray(bank.labels)

  def average(query: Array) -> Array:
    cosines, neighbors = _nearest(query, features, usable, k, bank_rows)
    weights = jax.nn.softmax(cosines / temperature)
    return jnp.dot(
      weights, labels[neighbors], precision=jax.lax.Precision.HIGHEST
    )

  return jax.lax.map(average, _l2_normalize(queries), batch_size=query_rows)


def make_sharded_soft_vote(
  mesh: Mesh, k: int = 30, temperature: float = 0.02
) -> Callable[[Float[Array, 'Q D'], SoftKnnBank], Float[Array, 'Q C']]:
  """Builds `soft_knn_vote` on a mesh: queries are sharded, the bank replicated.

  Args:
    mesh: device mesh with the axes of `sharding.make_mesh`.
    k: number of neighbors that vote.
    temperature: temperature of the weights, in units of cosine similarity.

  Returns:
    A traceable function from queries [Q, D] and a bank to class scores [Q, C];
    Q must be a multiple of the number of devices.
  """
  return _on_mesh(
    mesh, functools.partial(soft_knn_vote, k=k, temperature=temperature)
  )


def make_sharded_knn_vote(
  mesh: Mesh,
  bank: KnnBank,
  k: int = 10,
  temperature: float = 0.07,
  *,
  query_rows: int = QUERY_ROWS,
  bank_rows: int = BANK_ROWS,
) -> Callable[[Float[Array, 'Q D']], Int32[Array, 'Q']]:
  """Builds `knn_vote` on a mesh: queries are sharded, the bank is replicated.

  Args:
    mesh: device mesh with the axes of `sharding.make_mesh`.
    bank: labeled features, the same on all hosts.
    k: number of neighbors that vote.
    temperature: temperature of the weights, in units of cosine similarity.
    query_rows: number of queries that a device compares at a time.
    bank_rows: number of entries of the bank that are compared at a time.

  Returns:
    A function from queries [Q, D] to classes [Q]; Q must be a multiple of the
    number of devices.

  Raises:
    ValueError: fewer than k entries have a class.
  """
  _check_k(k, int(np.sum(np.asarray(bank.labels) >= 0)))
  place = functools.partial(
    jax.device_put, device=sharding.replicated_sharding(mesh)
  )
  vote = functools.partial(
    knn_vote,
    k=k,
    temperature=temperature,
    query_rows=query_rows,
    bank_rows=bank_rows,
  )
  sharded_vote = jax.jit(_on_mesh(mesh, vote))
  # Placed once: passing a host array would copy the bank at each call.
  bank = KnnBank(place(bank.features), place(bank.labels))
  return lambda queries: sharded_vote(queries, bank)


def _on_mesh(
  mesh: Mesh, vote: Callable[[Array, NamedTuple], Array]
) -> Callable[[Array, NamedTuple], Array]:
  """Runs a vote with the queries sharded over all axes, the bank replicated."""
  sharded, replicated = PartitionSpec(mesh.axis_names), PartitionSpec()
  return jax.shard_map(
    vote,
    mesh=mesh,
    in_specs=(sharded, replicated),
    out_specs=sharded,
    check_vma=False,
  )


def _nearest(
  query: Float[Array, 'D'],
  features: Float[Array, 'M D'],
  usable: Bool[Array, 'M'],
  k: int,
  bank_rows: int,
) -> tuple[Float[Array, 'k'], Int32[Array, 'k']]:
  """Returns the k largest cosines in descending order and their entries.

  The cosine of entries that are not usable is -inf.
  """
  num_entries = len(features)
  size = min(bank_rows, num_entries)

  def merge(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
    # The last block overlaps the one before; repeated entries are masked.
    start = jnp.minimum(i * size, num_entries - size)
    block = jax.lax.dynamic_slice_in_dim(features, start, size)
    is_usable = jax.lax.dynamic_slice_in_dim(usable, start, size)
    position = start + jnp.arange(size, dtype=jnp.int32)
    is_usable &= position >= i * size
    products = jnp.dot(block, query, precision=jax.lax.Precision.HIGHEST)
    cosines = jnp.where(is_usable, products, -jnp.inf)
    # top_k prefers the first of equal values: earlier blocks come first.
    cosines, order = jax.lax.top_k(jnp.concatenate([best[0], cosines]), k)
    return cosines, jnp.concatenate([best[1], position])[order]

  empty = jnp.full(k, -jnp.inf, query.dtype), jnp.zeros(k, jnp.int32)
  return jax.lax.fori_loop(0, -(-num_entries // size), merge, empty)


def _check_k(k: int, usable: int) -> None:
  if not 1 <= k <= usable:
    raise ValueError(
      f'k: expected 1 to {usable}, the number of labeled entries, got {k}'
    )


def _l2_normalize(features: Float[Array, 'N D']) -> Float[Array, 'N D']:
  features = losses.at_least_float32(features)
  norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
  return features / jnp.maximum(norm, 1e-12)


def _l2_normalize_on_host(
  features: Float[np.ndarray, 'N D'],
) -> Float[np.ndarray, 'N D']:
  norm = np.linalg.norm(features, axis=-1, keepdims=True)
  return features / np.maximum(norm, 1e-12)
