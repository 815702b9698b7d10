"""Distance matching: a position takes the class its neighbors vote for.

  bank = neighbors.bank_entries(features, masks, num_classes=919)
  vote = neighbors.make_vote(mesh, bank)
  classes = vote(queries)

The neighbors are regions of labeled images (spec PASS §5.3); class 0 is
'other' and votes as all others do.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int32

from segcore.distributed import sharding

# Queries and bank entries whose similarities exist at a time.
QUERY_ROWS = 1024
BANK_ROWS = 4096


class Bank(NamedTuple):
  """Regions of labeled images.

  Attributes:
    features: float32 [M, D], of length 1.
    labels: int32 [M]; an entry with a negative one does nothing.
  """

  features: Float32[Array | np.ndarray, 'M D']
  labels: Int32[Array | np.ndarray, 'M']


def build_bank(
  features: Float[np.ndarray, 'B h w D'],
  masks: Int[np.ndarray, 'B h w'],
  num_classes: int,
) -> Bank:
  """One entry for each image and each class that its mask has, 0 included.

  An entry is the mean over all positions, not only those of the class, of
  feature x mask, then L2-normalized. Computed on the host: an image has few
  classes, and nobody knows how many.

  Args:
    features: of any length.
    masks: 0 to `num_classes`; negative where nothing is known.
    num_classes: without 'other'.

  Raises:
    ValueError: a mask has a class that there is not.
  """
  highest = masks.max(initial=-1)
  if highest > num_classes:
    raise ValueError(
      f'masks: found class {highest}, expected 0 to {num_classes} or negative'
    )
  size = features.shape[-1]
  means, labels = [np.zeros((0, size), np.float32)], [np.zeros(0, np.int32)]
  for feature, mask in zip(features, masks, strict=True):
    here = np.unique(mask[mask >= 0])
    of_class = (here[:, None] == mask.reshape(-1)).astype(np.float32)
    rows = feature.reshape(-1, size).astype(np.float32)
    means.append(of_class @ rows / np.float32(mask.size))
    labels.append(here.astype(np.int32))
  return Bank(_normalized(np.concatenate(means)), np.concatenate(labels))


def vote(
  queries: Float[Array, 'Q D'],
  bank: Bank,
  k: int = 10,
  temperature: float = 0.07,
  *,
  query_rows: int = QUERY_ROWS,
  bank_rows: int = BANK_ROWS,
) -> Int32[Array, 'Q']:
  """The class of the k nearest entries, weighted by exp(cosine / temperature).

  The weights of each class are summed, and the class of the largest sum is
  taken: of equal ones the lowest. Of entries that are equally near, those that
  come first in the bank are taken. Pure; blocks bound its memory and change
  nothing.

  Args:
    queries: of any length.
    bank: entries of length 1, at least k of them with a class.
    k: neighbors that vote.
    temperature: in units of the cosine.
    query_rows: queries that are compared at a time.
    bank_rows: entries that they are compared with at a time.

  Raises:
    ValueError: k is larger than the bank.
  """
  _check_k(k, len(bank.labels))
  bank = Bank(jnp.asarray(bank.features), jnp.asarray(bank.labels))

  def of_query(query: Array) -> Array:
    cosines, found = _nearest(query, bank, k, bank_rows)
    labels = bank.labels[found]
    # The same factor for all neighbors of a query, so that none overflows.
    weights = jnp.exp((cosines - cosines[0]) / temperature)
    # The sum of its class beside each neighbor: classes that no neighbor has
    # need no place, of which there would be 920 for each query.
    same = labels[:, None] == labels
    sums = jnp.sum(jnp.where(same, weights, 0), axis=-1)
    last = jnp.iinfo(labels.dtype).max
    return jnp.min(jnp.where(sums == jnp.max(sums), labels, last))

  return jax.lax.map(of_query, _unit(queries), batch_size=query_rows)


def make_sharded_vote(
  mesh: Mesh,
  bank: Bank,
  k: int = 10,
  temperature: float = 0.07,
  *,
  query_rows: int = QUERY_ROWS,
  bank_rows: int = BANK_ROWS,
) -> Callable[[Float[Array, 'Q D']], Int32[Array, 'Q']]:
  """`vote` on a mesh: queries over the devices, the whole bank on each.

  Args:
    mesh: with the axes of `sharding.make_mesh`.
    bank: the same on all hosts.
    k: as in `vote`.
    temperature: as in `vote`.
    query_rows: as in `vote`, on each device.
    bank_rows: as in `vote`.

  Returns:
    A function of queries [Q, D], where Q divides among the devices.

  Raises:
    ValueError: fewer than k entries have a class.
  """
  _check_k(k, int(np.sum(np.asarray(bank.labels) >= 0)))
  place = functools.partial(jax.device_put, device=sharding.replicated(mesh))
  rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
  voted = jax.jit(
    jax.shard_map(
      functools.partial(
        vote,
        k=k,
        temperature=temperature,
        query_rows=query_rows,
        bank_rows=bank_rows,
      ),
      mesh=mesh,
      in_specs=(rows, whole),
      out_specs=rows,
      check_vma=False,
    )
  )
  placed = Bank(place(bank.features), place(bank.labels))
  return lambda queries: voted(queries, placed)


def _nearest(
  query: Float[Array, 'D'], bank: Bank, k: int, bank_rows: int
) -> tuple[Float[Array, 'k'], Int32[Array, 'k']]:
  """The largest cosines, in falling order, and of which entries they are.

  Entries without a class, and places for which there is no entry, have -inf.
  """
  num_entries = len(bank.labels)
  size = min(bank_rows, num_entries)

  def merge(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
    # The last block overlaps the one before; what it repeats is left out.
    start = jnp.minimum(i * size, num_entries - size)
    features = jax.lax.dynamic_slice_in_dim(bank.features, start, size)
    labels = jax.lax.dynamic_slice_in_dim(bank.labels, start, size)
    position = start + jnp.arange(size, dtype=jnp.int32)
    usable = (labels >= 0) & (position >= i * size)
    products = jnp.dot(features, query, precision=jax.lax.Precision.HIGHEST)
    cosines = jnp.where(usable, products, -jnp.inf)
    # What was found before comes first, and so stays where it is as near.
    cosines, at = jax.lax.top_k(jnp.concatenate([best[0], cosines]), k)
    return cosines, jnp.concatenate([best[1], position])[at]

  none = jnp.full(k, -jnp.inf), jnp.zeros(k, jnp.int32)
  return jax.lax.fori_loop(0, -(-num_entries // size), merge, none)


def _check_k(k: int, usable: int) -> None:
  if not 1 <= k <= usable:
    raise ValueError(
      f'k: found {k} neighbors, expected 1 to {usable}, as many as entries'
    )


def _unit(features: Float[Array, 'N D']) -> Float32[Array, 'N D']:
  features = features.astype(jnp.float32)
  norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
  return features / jnp.maximum(norm, 1e-12)


def _normalized(features: Float[np.ndarray, 'N D']) -> np.ndarray:
  norm = np.linalg.norm(features, axis=-1, keepdims=True)
  return features / np.maximum(norm, 1e-12)
