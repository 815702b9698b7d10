"""First-in, first-out memory of representations, one ring for each class."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Bank:
  """The newest representations of each class's negatives.

  Attributes:
    rows: [C, K, D], K the largest capacity.
    pointer: int32 [C], where the next row goes.
    count: int32 [C], how many rows there are.
    capacity: of each class.
  """

  rows: Any
  pointer: Any
  count: Any
  capacity: tuple[int, ...] = flax.struct.field(pytree_node=False)


def empty(
  capacity: tuple[int, ...], size: int, dtype: DTypeLike = jnp.float32
) -> Bank:
  """No rows yet.

  Args:
    capacity: of each class.
    size: D of a row.
    dtype: in which rows are kept.
  """
  num_classes = len(capacity)
  return Bank(
    jnp.zeros((num_classes, max(capacity), size), dtype),
    jnp.zeros(num_classes, jnp.int32),
    jnp.zeros(num_classes, jnp.int32),
    capacity,
  )


def push(
  bank: Bank, rows: Float[Array, 'C R D'], counts: Int[Array, 'C']
) -> Bank:
  """Adds the first `counts` rows of each class; the oldest make room.

  Args:
    bank: before; R is at most its smallest capacity.
    rows: in the order in which they are added.
    counts: how many of them are there.
  """
  most = rows.shape[1]
  if most > min(bank.capacity):
    raise ValueError(
      f'{most} rows at once do not fit a bank of {min(bank.capacity)}'
    )
  capacity = jnp.asarray(bank.capacity, jnp.int32)
  rank = jnp.arange(most, dtype=jnp.int32)
  slot = (bank.pointer[:, None] + rank) % capacity[:, None]
  # What is not there is written behind the end, which drops it.
  slot = jnp.where(rank < counts[:, None], slot, bank.rows.shape[1])
  write = jax.vmap(lambda ring, at, new: ring.at[at].set(new, mode='drop'))
  return bank.replace(
    rows=write(bank.rows, slot, rows.astype(bank.rows.dtype)),
    pointer=(bank.pointer + counts) % capacity,
    count=jnp.minimum(bank.count + counts, capacity),
  )


def fill(bank: Bank) -> Float[Array, 'C']:
  """Share of each class's capacity that is in use."""
  return bank.count / jnp.asarray(bank.capacity, jnp.float32)
