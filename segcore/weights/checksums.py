"""Checksums of arrays that do not depend on how an array is sharded.

The checksum of an array is

  Σ bits[i, j, …] · a₀[i] · a₁[j] · …  modulo 2**64,

where `bits` are its elements as unsigned integers and a₀, a₁, … are odd
pseudo-random weights of each axis. An odd weight is invertible, so that the
change of a single element always changes the sum; any other damage is missed
with a probability of about 2**-64. The sum of an array is that of its shards:
a state that was saved from 8 devices is checked on 2, and no host needs more
than its own shards.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped, UInt64

# Elements that are converted at once: few enough to stay in the cache.
_BLOCK = 2**15
# Trailing axes are merged up to this length: products of short rows are slow.
_MIN_ROW = 512
# The constants of the generator SplitMix64.
_STEP, _MIX_1, _MIX_2 = (
  np.uint64(0x9E3779B97F4A7C15),
  np.uint64(0xBF58476D1CE4E5B9),
  np.uint64(0x94D049BB133111EB),
)


def array_checksums(arrays: dict[str, Any]) -> dict[str, int]:
  """Computes the checksum of each array; all hosts must call it together.

  Args:
    arrays: numpy or jax arrays by name, the same names on all hosts. Of an
      array that is replicated, each host checks its own copy; of one that is
      split over hosts, each host contributes the shards it holds.

  Returns:
    Checksums of whole arrays, from 0 to 2**64 - 1.
  """
  local = np.array([_of_local(x) for x in arrays.values()], np.uint64)
  split = np.array([not _is_whole(x) for x in arrays.values()], bool)
  if jax.process_count() > 1 and split.any():
    # As bytes: without 64-bit types, jax would cut the numbers in half.
    gathered = multihost_utils.process_allgather(local.view(np.uint8))
    sums = np.ascontiguousarray(gathered).view(np.uint64).sum(axis=0)
    local = np.where(split, sums, local)
  return dict(zip(arrays, map(int, local), strict=True))


def shard_checksum(
  array: Shaped[np.ndarray, '...'], start: tuple[int, ...]
) -> int:
  """Computes the part of a shard in the checksum of the whole array.

  Args:
    array: the shard; the whole array if `start` is all zeros.
    start: index of its first element in the whole array.
  """
  if not array.size:
    return 0
  bits = np.asarray(array, order='C')
  bits = bits.view(np.dtype(f'u{bits.dtype.itemsize}'))
  *outer, row = [
    _weights(axis, first, first + length)
    for axis, (first, length) in enumerate(zip(start, bits.shape, strict=True))
  ] or [np.ones(1, np.uint64)]
  while outer and row.size < _MIN_ROW:
    row = np.multiply.outer(outer.pop(), row).reshape(-1)
  sums = _weighted_rows(bits.reshape(-1, row.size), row)
  for weights in reversed(outer):
    sums = sums.reshape(-1, weights.size) @ weights
  return int(sums.sum())


def _weighted_rows(
  rows: Shaped[np.ndarray, 'N M'], weights: UInt64[np.ndarray, 'M']
) -> UInt64[np.ndarray, 'N']:
  """Returns rows @ weights modulo 2**64, in blocks that fit into the cache."""
  sums = np.zeros(len(rows), np.uint64)
  width = min(len(weights), _BLOCK)
  height = max(1, _BLOCK // width)
  for i in range(0, len(rows), height):
    for j in range(0, len(weights), width):
      block = rows[i : i + height, j : j + width].astype(np.uint64)
      sums[i : i + height] += block @ weights[j : j + width]
  return sums


@functools.lru_cache(maxsize=256)
def _weights(axis: int, start: int, stop: int) -> UInt64[np.ndarray, 'N']:
  """Returns odd pseudo-random weights of the places start…stop of an axis."""
  # Places of different axes draw from parts of the sequence that are far apart.
  x = np.arange(start, stop, dtype=np.uint64) + np.uint64((axis + 1) << 48)
  x *= _STEP
  x = (x ^ (x >> np.uint64(30))) * _MIX_1
  x = (x ^ (x >> np.uint64(27))) * _MIX_2
  return (x ^ (x >> np.uint64(31))) | np.uint64(1)


def _is_whole(array: Any) -> bool:
  """Returns whether this host can see all elements of an array."""
  if not isinstance(array, jax.Array):
    return True
  return array.is_fully_addressable or array.is_fully_replicated


def _of_local(array: Any) -> int:
  """Computes the sum over the shards of this host, each counted once.

  The copies of a shard are counted on the host of the first one only, unless
  the array is replicated: then each host counts its own.
  """
  if not isinstance(array, jax.Array):
    return shard_checksum(np.asarray(array), (0,) * np.ndim(array))
  if array.is_fully_replicated:
    return shard_checksum(
      np.asarray(array.addressable_data(0)), (0,) * array.ndim
    )
  total = 0
  for shard in array.addressable_shards:
    if shard.replica_id == 0:
      start = tuple(part.start or 0 for part in shard.index)
      total += shard_checksum(np.asarray(shard.data), start)
  return total % 2**64
