"""SwAV: views of an image predict each other's balanced cluster assignments.

Scores of embeddings against prototypes become targets by Sinkhorn's algorithm,
over this batch and a queue of the batches before (spec §2.5).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segcore.ops import losses
from segcore.types import Scalar

# Vectors shorter than this are divided by it.
_SHORTEST = 1e-12
# Scores become exponents after a division by ε: never rounded to bfloat16.
EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class SwavOptions:
  """Targets, their loss and the queue.

  Attributes:
    temperature: τ, of the predictions.
    epsilon: of Sinkhorn's algorithm: how sharp targets are.
    sinkhorn_iterations: of it.
    queue: embeddings kept of each large view, over all devices; 0: none.
    queue_from_step: the queue fills from here on, and is used once it is full.
    frozen_steps: steps before which prototypes do not learn.
  """

  temperature: float = 0.1
  epsilon: float = 0.05
  sinkhorn_iterations: int = 3
  queue: int = 0
  queue_from_step: int = 0
  frozen_steps: int = 0

  def __post_init__(self):
    for name in ('temperature', 'epsilon', 'sinkhorn_iterations'):
      if getattr(self, name) <= 0:
        raise ValueError(
          f'{name}: found {getattr(self, name)}, expected more than 0'
        )
    for name in ('queue', 'queue_from_step', 'frozen_steps'):
      if getattr(self, name) < 0:
        raise ValueError(
          f'{name}: found {getattr(self, name)}, expected 0 or more'
        )


@flax.struct.dataclass
class Queue:
  """The embeddings of the newest steps, for each of the two large views.

  A state's part, so its fields are of any type.

  Attributes:
    rows: float32 [2, L, D], newest first; of unit length.
    count: int32 [], how many of the L there are.
  """

  rows: Any
  count: Any


def empty_queue(length: int, size: int) -> Queue:
  """A queue of `length` places for embeddings of `size` values."""
  return Queue(jnp.zeros((2, length, size)), jnp.zeros((), jnp.int32))


def pushed(
  queue: Queue,
  embeddings: Float[Array, 'B V D'],
  step: Array,
  options: SwavOptions,
) -> Queue:
  """The queue after a step: from its first step on, with the large views."""
  begun = step >= options.queue_from_step
  return jax.tree.map(
    lambda old, new: jnp.where(begun, new, old),
    queue,
    push(queue, embeddings[:, :2]),
  )


def push(queue: Queue, embeddings: Float[Array, 'B 2 D']) -> Queue:
  """Puts a batch to the front; the oldest rows leave."""
  length = queue.rows.shape[1]
  new = jax.lax.stop_gradient(jnp.moveaxis(embeddings, 1, 0))[:, :length]
  # Not by concatenation: the new rows are split over the devices, the old not.
  rows = jax.lax.dynamic_update_slice(
    jnp.roll(queue.rows, len(embeddings), axis=1),
    new.astype(queue.rows.dtype),
    (0, 0, 0),
  )
  return Queue(rows, jnp.minimum(queue.count + len(embeddings), length))


def unit(
  vectors: Float[Array, '*shape D'], axis: int = -1
) -> Float[Array, '*shape D']:
  """Vectors of unit length, in float32 at least; 0 stays 0."""
  vectors = losses.at_least_float32(vectors)
  # The root of a maximum, whose gradient at 0 is finite.
  square = jnp.sum(jnp.square(vectors), axis=axis, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.maximum(square, _SHORTEST**2))


def sinkhorn(
  scores: Float[Array, 'N K'],
  epsilon: float,
  num_iterations: int,
  used: Bool[Array, 'N'] | None = None,
) -> Float[Array, 'N K']:
  """Assignments of samples to prototypes that use all prototypes alike.

  The rows sum to 1. float32 at least: exp(1 / ε) is 5e8.

  Args:
    scores: cosines of samples and prototypes.
    epsilon: the smaller, the closer to one prototype for each sample.
    num_iterations: at least 1.
    used: samples that take part; the rows of the others are 0. All by default.
  """
  if used is None:
    used = jnp.ones(len(scores), bool)
  return _balanced([(scores, used)], epsilon, num_iterations)[0]


def _balanced(
  blocks: Sequence[tuple[Float[Array, '_ K'], Bool[Array, '_']]],
  epsilon: float,
  num_iterations: int,
) -> list[Float[Array, '_ K']]:
  """Sinkhorn's algorithm over blocks of samples, taken together.

  The usual form divides the matrix exp(scores / ε) by its row and its column
  sums in turn. Here the matrix stays as it is and only the factors of its rows
  and columns are iterated, which is the same with less memory traffic. Blocks
  are not concatenated: one of them is split over the devices, the other not.
  """
  # What takes part is a matter of rows: masks of [N, K] would be written too.
  shift = jnp.max(
    jnp.stack(
      [
        jnp.max(jnp.where(used, jnp.max(scores, axis=1), -jnp.inf))
        for scores, used in blocks
      ]
    )
  )
  # A common factor of all values changes nothing: it only keeps them small.
  # Only a sample that takes no part is above 0 here, and must stay finite.
  kernels = [
    jnp.exp(jnp.minimum(losses.at_least_float32(scores) - shift, 0.0) / epsilon)
    for scores, _ in blocks
  ]
  num_prototypes = kernels[0].shape[1]
  of_samples = [used.astype(kernels[0].dtype) for _, used in blocks]
  of_prototypes = jnp.ones(num_prototypes)
  for _ in range(num_iterations):
    # Not matrix products: those add thousands of terms one by one on a CPU.
    sums = sum(
      jnp.sum(kernel * factors[:, None], axis=0)
      for kernel, factors in zip(kernels, of_samples, strict=True)
    )
    of_prototypes = _inverse(sums) / num_prototypes
    of_samples = [
      used * _inverse(jnp.sum(kernel * of_prototypes, axis=1))
      for kernel, (_, used) in zip(kernels, blocks, strict=True)
    ]
  return [
    factors[:, None] * kernel * of_prototypes
    for kernel, factors in zip(kernels, of_samples, strict=True)
  ]


def _inverse(sums: Float[Array, 'N']) -> Float[Array, 'N']:
  return jnp.where(sums > 0, 1.0 / jnp.where(sums > 0, sums, 1.0), 0.0)


def scores(
  embeddings: Float[Array, '*shape D'], prototypes: Float[Array, 'D K']
) -> Float[Array, '*shape K']:
  """Products of embeddings and prototypes, never rounded."""
  return jnp.einsum('...d,dk->...k', embeddings, prototypes, precision=EXACT)


def targets_of_views(
  scores_of_views: Float[Array, 'B V K'],
  queue: Queue | tuple[()],
  prototypes: Float[Array, 'D K'],
  options: SwavOptions,
) -> Float[Array, 'B 2 K']:
  """Targets of both large views, with the queue's help once it is full.

  Args:
    scores_of_views: of this batch; the large views are the first two.
    queue: () for none.
    prototypes: of now.
    options: of Sinkhorn's algorithm and the queue.
  """
  active = jnp.array(False)
  remembered = 2 * [jnp.zeros((0, prototypes.shape[1]))]
  if isinstance(queue, Queue):
    active = queue.count == options.queue
    # Apart, so that what was written for one view can be written over.
    remembered = [scores(queue.rows[view], prototypes) for view in (0, 1)]
  return jnp.stack(
    [
      targets(scores_of_views[:, view], remembered[view], active, options)
      for view in (0, 1)
    ],
    axis=1,
  )


def targets(
  scores: Float[Array, 'B K'],
  remembered: Float[Array, 'L K'],
  active: Bool[Array, ''],
  options: SwavOptions,
) -> Float[Array, 'B K']:
  """Targets of a view, which sum to 1; no gradient flows through them.

  Args:
    scores: of this batch.
    remembered: of the queue's embeddings, with the prototypes of now.
    active: whether they take part.
    options: of Sinkhorn's algorithm.
  """
  blocks = [(jax.lax.stop_gradient(scores), jnp.ones(len(scores), bool))]
  if len(remembered):
    used = jnp.broadcast_to(active, (len(remembered),))
    blocks.append((jax.lax.stop_gradient(remembered), used))
  return _balanced(blocks, options.epsilon, options.sinkhorn_iterations)[0]


def swapped_loss(
  scores: Float[Array, 'B V K'],
  targets: Float[Array, 'B 2 K'],
  temperature: float,
) -> Scalar:
  """Cross entropy of each view against the targets of the two large ones.

  L = 1/2 Σ_i 1/(V-1) Σ_{v≠i} mean_b(-Σ_k q_ik log softmax(s_v / τ)_k).

  Args:
    scores: of all views; the large ones are the first two.
    targets: of those two.
    temperature: τ.
  """
  log_probs = jax.nn.log_softmax(losses.at_least_float32(scores) / temperature)
  pairs = jnp.einsum('bik,bvk->iv', targets, log_probs, precision=EXACT)
  pairs = -pairs / len(scores)
  num_views = scores.shape[1]
  own = jnp.trace(pairs)
  return (jnp.sum(pairs) - own) / (2 * (num_views - 1))


def usage(targets: Float[Array, 'N K']) -> Scalar:
  """How evenly prototypes are used, in [0, 1]: entropy of the mean target.

  1 where all are used alike, 0 where one takes everything.
  """
  share = jnp.mean(targets, axis=0)
  share = share / jnp.maximum(jnp.sum(share), _SHORTEST)
  entropy = -jnp.sum(jax.scipy.special.xlogy(share, share))
  return entropy / jnp.log(targets.shape[1])


def embedding_deviation(embeddings: Float[Array, 'N D']) -> Scalar:
  """How far unit vectors are apart, in [0, 1]: 0 where all are the same.

  One minus the length of their mean.
  """
  return 1.0 - jnp.linalg.norm(jnp.mean(embeddings, axis=0))
