"""First-in, first-out memory of representations, a ring buffer per class.

The rings have different capacities: class 0, the background, has more rows than
the others. They lie one after the other in a single array, without padding.
"""

import itertools
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Bank:
  """The latest negatives of each class.

  Attributes:
    rows: [K, D], the rings of all classes in order, K the sum of `capacity`.
    pointer: int32 [C], slot of the next row in the ring of the class.
    count: int32 [C], number of rows in use.
    capacity: number of rows of each class.
  """

  rows: Any
  pointer: Any
  count: Any
  capacity: tuple[int, ...] = flax.struct.field(pytree_node=False)

  @property
  def starts(self) -> tuple[int, ...]:
    """Returns the first row of each class's ring."""
    return tuple(itertools.accumulate(self.capacity, initial=0))[:-1]


def empty_memory_bank(
  capacity: tuple[int, ...], size: int, dtype: DTypeLike = jnp.float32
) -> Bank:
  """Returns an empty memory bank.

  Args:
    capacity: number of rows of each class.
    size: number D of features of a row.
    dtype: dtype of the stored rows.
  """
  num_classes = len(capacity)
  return Bank(
    jnp.zeros((sum(capacity), size), dtype),
    jnp.zeros(num_classes, jnp.int32),
    jnp.zeros(num_classes, jnp.int32),
    capacity,
  )


def push_negatives(
  bank: Bank, rows: Float[Array, 'C R D'], counts: Int[Array, 'C']
) -> Bank:
  """Enqueues the first `counts` rows of each class over the oldest ones.

  Args:
    bank: memory bank before the step.
    rows: features of each class, in the order in which they are enqueued.
    counts: number of valid rows of each class, up to R.

  Raises:
    ValueError: R is larger than the smallest capacity, so that a slot would be
      written twice.
  """
  num_rows = rows.shape[1]
  if num_rows > min(bank.capacity):
    raise ValueError(
      f'rows: expected at most the smallest capacity of {min(bank.capacity)} '
      f'per class, got {num_rows}'
    )
  capacity = jnp.asarray(bank.capacity, jnp.int32)
  rank = jnp.arange(num_rows, dtype=jnp.int32)
  slot = (bank.pointer[:, None] + rank) % capacity[:, None]
  at = bank_rows_of_slots(bank, slot)
  # Invalid rows get an index out of bounds, which the scatter drops: shapes
  # stay static however many rows a class has.
  at = jnp.where(rank < counts[:, None], at, len(bank.rows))
  return bank.replace(
    rows=bank.rows.at[at].set(rows.astype(bank.rows.dtype), mode='drop'),
    pointer=(bank.pointer + counts) % capacity,
    count=jnp.minimum(bank.count + counts, capacity),
  )


def bank_rows_of_slots(
  bank: Bank, slots: Int[Array, 'C *draws']
) -> Int[Array, 'C *draws']:
  """Converts slots of each class's ring, from 0, to rows of the whole bank."""
  starts = jnp.asarray(bank.starts, jnp.int32)
  return starts.reshape(-1, *[1] * (slots.ndim - 1)) + slots


def clear_memory_bank(bank: Bank) -> Bank:
  """Returns the bank with all rows unused, without freeing their memory."""
  zeros = jnp.zeros_like(bank.count)
  return bank.replace(count=zeros, pointer=zeros)


def memory_bank_fill(bank: Bank) -> Float[Array, 'C']:
  """Computes the share of each class's rows that are filled, 0 to 1."""
  return bank.count / jnp.asarray(bank.capacity, jnp.float32)
