"""Embeddings of the most recent steps, first in, first out.

`Queue` is that of SwAV: an objective asks for it (`Objective.needs_queue`), and
the state has it. `Ring` is that of MoCo, written by position: part of the
memory of an objective (`Objective.initial_memory`).
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pass_luss.pretrain import embedding_ops


@dataclasses.dataclass(frozen=True)
class QueueSpec:
  """The size of a queue.

  Attributes:
    length: number L of rows of each list, over all devices.
    size: number D of values of a row.
    num_lists: number of lists that are filled side by side, one for each large
      view.
  """

  length: int
  size: int
  num_lists: int = 2


@flax.struct.dataclass
class Queue:
  """The most recent embeddings, one list for each large view.

  A part of a state, which is also a tree of shapes or of shardings: hence
  fields of any type.

  Attributes:
    rows: float32 [2, L, D], the newest first; zeros where nothing was stored.
    count: int32 [], number of rows stored so far, at most L.
  """

  rows: Any
  count: Any


def empty_embedding_queue(spec: QueueSpec) -> Queue:
  """Returns a queue without rows."""
  rows = jnp.zeros((spec.num_lists, spec.length, spec.size))
  return Queue(rows, jnp.zeros((), jnp.int32))


def enqueue_embeddings(
  queue: Queue, embeddings: Float[Array, 'B 2 D']
) -> Queue:
  """Stores a batch at the front and drops the oldest rows; no gradient."""
  length = queue.rows.shape[1]
  # Cut first: a batch longer than the queue would not fit into the update.
  new = jax.lax.stop_gradient(jnp.moveaxis(embeddings, 1, 0))[:, :length]
  # Not a concatenation: the new rows are split over the devices and the queue
  # is replicated, so concatenating them would reshard the whole queue.
  rows = jax.lax.dynamic_update_slice(
    jnp.roll(queue.rows, len(embeddings), axis=1),
    new.astype(queue.rows.dtype),
    (0, 0, 0),
  )
  return Queue(rows, jnp.minimum(queue.count + len(embeddings), length))


@flax.struct.dataclass
class Ring:
  """The most recent embeddings, in a list that is written round and round.

  Attributes:
    rows: float32 [L, D], L2-normalized.
    position: int32 [], place of the next row.
  """

  rows: Any
  position: Any


def random_ring(rng: Array, length: int, size: int) -> Ring:
  """Returns a ring of L2-normalized Gaussian noise, to be written from row 0.

  The first L / B steps thus contrast with noise, as in MoCo's code.

  Args:
    rng: random key.
    length: number L of rows.
    size: number D of values of a row.
  """
  rows = jax.random.normal(rng, (length, size))
  rows = embedding_ops.l2_normalize_embeddings(rows)
  return Ring(rows, jnp.zeros((), jnp.int32))


def write_ring(ring: Ring, embeddings: Float[Array, 'B D']) -> Ring:
  """Overwrites the B oldest rows with a batch; no gradient.

  The length must be a multiple of B (`check_ring_length`), so that no batch is
  written across the end.
  """
  length = len(ring.rows)
  # Only the new rows move between devices, as in `enqueue_embeddings`.
  rows = jax.lax.dynamic_update_slice(
    ring.rows,
    jax.lax.stop_gradient(embeddings).astype(ring.rows.dtype),
    (ring.position, jnp.zeros_like(ring.position)),
  )
  return Ring(rows, (ring.position + len(embeddings)) % length)
