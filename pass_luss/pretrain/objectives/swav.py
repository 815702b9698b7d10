"""SwAV: views of an image predict each other's balanced cluster assignments.

Scores of embeddings against prototypes become targets by Sinkhorn's algorithm,
over this batch and a queue of the batches before (spec §2.5).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pass_luss.pretrain import embedding_ops, sinkhorn
from pass_luss.pretrain import queue as queue_lib
from segcore.ops import losses
from segcore.types import Scalar


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


def update_queue(
  queue: queue_lib.Queue,
  embeddings: Float[Array, 'B V D'],
  step: Array,
  options: SwavOptions,
) -> queue_lib.Queue:
  """The queue after a step: from its first step on, with the large views."""
  begun = step >= options.queue_from_step
  return jax.tree.map(
    lambda old, new: jnp.where(begun, new, old),
    queue,
    queue_lib.push(queue, embeddings[:, :2]),
  )


def view_targets(
  scores_of_views: Float[Array, 'B V K'],
  queue: queue_lib.Queue | None,
  prototypes: Float[Array, 'D K'],
  options: SwavOptions,
) -> Float[Array, 'B 2 K']:
  """Targets of both large views, with the queue's help once it is full.

  Args:
    scores_of_views: of this batch; the large views are the first two.
    queue: None for none.
    prototypes: of now.
    options: of Sinkhorn's algorithm and the queue.
  """
  active = jnp.array(False)
  remembered = 2 * [jnp.zeros((0, prototypes.shape[1]))]
  if queue is not None:
    active = queue.count == options.queue
    # Apart, so that what was written for one view can be written over.
    remembered = [
      embedding_ops.similarities(queue.rows[view], prototypes)
      for view in (0, 1)
    ]
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
  return sinkhorn.assign_blocks(
    blocks, options.epsilon, options.sinkhorn_iterations
  )[0]


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
  pairs = jnp.einsum(
    'bik,bvk->iv', targets, log_probs, precision=embedding_ops.EXACT
  )
  pairs = -pairs / len(scores)
  num_views = scores.shape[1]
  own = jnp.trace(pairs)
  return (jnp.sum(pairs) - own) / (2 * (num_views - 1))


def embedding_deviation(embeddings: Float[Array, 'N D']) -> Scalar:
  """How far unit vectors are apart, in [0, 1]: 0 where all are the same.

  One minus the length of their mean.
  """
  return 1.0 - jnp.linalg.norm(jnp.mean(embeddings, axis=0))
