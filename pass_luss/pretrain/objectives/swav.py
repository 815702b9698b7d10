"""SwAV: each view predicts the balanced cluster assignments of the others.

Caron et al., arXiv:2006.09882, as PASS trains it (spec §2.4, §2.5):

  z_v = P(pool(f(x_v)))                   L2-normalized embeddings of V views
  s_v = z_vᵀ C, |c_k| = 1                 scores against K prototypes
  q_i = Sinkhorn(s_i, scores of queue i)  targets of large view i (Eq. 3-5)
  L   = 1/2 Σ_{i=1,2} 1/(V-1) Σ_{v≠i} CE(q_i, softmax(s_v / τ))   (Eq. 1, 2, 6)

No gradient flows through q.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pass_luss.pretrain import (
  embedding_ops,
  heads,
  objective,
  objective_options,
  sinkhorn,
  view_axis,
)
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain import queue as queue_lib
from segcore import types
from segcore.models import segmenter
from segcore.ops import losses
from segcore.types import Scalar

Scores = Float[Array, 'B K']


@dataclasses.dataclass(frozen=True)
class Swav(objective.Objective):
  """The SwAV objective, on all views.

  Attributes:
    options: targets, loss and queue.
    sizes: widths of the head.
  """

  options: objective_options.SwavOptions
  sizes: objective_options.HeadSizes

  name = 'swav'
  averaged = True

  @property
  def needs_queue(self) -> queue_lib.QueueSpec | None:
    """Returns the size of a queue of the embeddings of both large views."""
    if not self.options.queue:
      return None
    return queue_lib.QueueSpec(self.options.queue, self.sizes.embedding)

  def heads(self, dtype: DTypeLike) -> dict[str, nn.Module]:
    """Builds the projection P with the prototypes C."""
    head = heads.Clusters(
      self.sizes.hidden,
      self.sizes.embedding,
      self.sizes.prototypes,
      dtype=dtype,
    )
    return {'clusters': head}

  def prepare(self, params: types.Params) -> types.Params:
    """L2-normalizes the prototypes before the forward pass.

    The optimizer updates the normalized prototypes, as in the official code,
    which normalizes them in place.
    """
    return prototypes_lib.l2_normalize_prototypes(params)

  def outputs(
    self, net: segmenter.Segmenter, views: objective.EncodedViews
  ) -> objective.Arrays:
    """Embeds and scores all views, in one pass through the head.

    The statistics of its batch norms are thus over all views of all sizes.
    """
    rows = view_axis.merge_view_axis(views.pooled())
    embeddings = net.heads.call_method('clusters', 'embed', rows, True)
    scores = net.heads.call_method('clusters', 'score', embeddings)
    return {
      'embeddings': views.split(embeddings),
      'scores': views.split(scores),
    }

  def targets(self, step: objective.Step) -> objective.Arrays:
    """Assigns both large views to the prototypes: q."""
    assignments = swav_view_targets(
      step.outputs[self.name]['scores'],
      step.state.queue,
      prototypes_lib.select_prototype_parameters(step.params),
      self.options,
    )
    return {'assignments': assignments}

  def loss(self, step: objective.Step) -> objective.LossTerms:
    """Computes L, and scalars that reveal a collapse of the embeddings."""
    outputs = step.outputs[self.name]
    targets = step.targets[self.name]['assignments']
    loss = swapped_prediction_loss(
      outputs['scores'], targets, self.options.temperature
    )
    scalars = {
      'prototype_usage': prototypes_lib.prototype_usage(
        view_axis.merge_view_axis(targets)
      ),
      'embedding_spread': embedding_deviation(
        view_axis.merge_view_axis(outputs['embeddings'][:, :2])
      ),
    }
    if step.state.queue is not None:
      scalars['queue_fill'] = step.state.queue.count / self.options.queue
    return objective.LossTerms({'loss_swav': loss}, scalars)

  def after_update(
    self, step: objective.Step, new: objective.State
  ) -> objective.State:
    """Undoes the update of frozen prototypes, and fills the queue."""
    old = step.state  # The new one already counts this step.
    frozen = old.step < self.options.frozen_steps
    new = prototypes_lib.freeze_prototypes(frozen, new, old)
    if old.queue is None:
      return new
    embeddings = step.outputs[self.name]['embeddings']
    queue = update_embedding_queue(
      old.queue, embeddings, old.step, self.options
    )
    return new.replace(queue=queue)


def swav_view_targets(
  scores: Float[Array, 'B V K'],
  queue: queue_lib.Queue | None,
  prototypes: Float[Array, 'D K'],
  options: objective_options.SwavOptions,
) -> Float[Array, 'B 2 K']:
  """Computes the targets q of both large views.

  A queue takes part once it is full. It holds embeddings, whose scores are
  computed anew with the current prototypes.

  Args:
    scores: scores of this batch; the large views are the first two.
    queue: embeddings of earlier batches; None for none.
    prototypes: current prototypes.
    options: options of Sinkhorn's algorithm and of the queue.
  """
  # The reference reads a queue once its last row is not 0: the same moment.
  full = jnp.array(False)
  queue_scores = 2 * [jnp.zeros((0, prototypes.shape[1]))]
  if queue is not None:
    full = queue.count == options.queue
    # One product for each view, not one for both: its buffer is free for the
    # second view once the first is done.
    queue_scores = [
      embedding_ops.prototype_similarities(queue.rows[view], prototypes)
      for view in (0, 1)
    ]
  return jnp.stack(
    [
      swav_targets(scores[:, view], queue_scores[view], full, options)
      for view in (0, 1)
    ],
    axis=1,
  )


def swav_targets(
  scores: Scores,
  queue_scores: Float[Array, 'L K'],
  queue_is_full: Bool[Array, ''],
  options: objective_options.SwavOptions,
) -> Scores:
  """Computes the targets of one view; rows sum to 1, without a gradient.

  Args:
    scores: scores of one view of this batch.
    queue_scores: scores of the queue's embeddings, computed with the current
      prototypes.
    queue_is_full: whether the queue's embeddings take part.
    options: options of Sinkhorn's algorithm.
  """
  blocks = [(jax.lax.stop_gradient(scores), jnp.ones(len(scores), bool))]
  # Shapes are static: a queue that is not yet full is masked, not left out.
  if len(queue_scores):
    used = jnp.broadcast_to(queue_is_full, (len(queue_scores),))
    blocks.append((jax.lax.stop_gradient(queue_scores), used))
  return sinkhorn.sinkhorn_assign_blocks(
    blocks, options.epsilon, options.sinkhorn_iterations
  )[0]


def swapped_prediction_loss(
  scores: Float[Array, 'B V K'],
  targets: Float[Array, 'B 2 K'],
  temperature: float,
) -> Scalar:
  """Computes the cross entropy of each view with the targets of the others.

  L = 1/2 Σ_i 1/(V-1) Σ_{v≠i} mean_b(-Σ_k q_ik log softmax(s_v / τ)_k)

  Args:
    scores: scores of all views; the large ones are the first two.
    targets: targets q of the two large views.
    temperature: temperature τ.
  """
  # Divided by τ = 0.1, scores span ±10: too much for the digits of bfloat16.
  log_probs = jax.nn.log_softmax(losses.at_least_float32(scores) / temperature)
  # All pairs (i, v) in one product; the pairs i = v are subtracted after.
  pairs = jnp.einsum(
    'bik,bvk->iv', targets, log_probs, precision=embedding_ops.EXACT
  )
  pairs = -pairs / len(scores)
  num_views = scores.shape[1]
  own = jnp.trace(pairs)
  return (jnp.sum(pairs) - own) / (2 * (num_views - 1))


def update_embedding_queue(
  queue: queue_lib.Queue,
  embeddings: Float[Array, 'B V D'],
  step: Array,
  options: objective_options.SwavOptions,
) -> queue_lib.Queue:
  """Stores the embeddings of the large views, from `queue_from_step` on.

  Args:
    queue: queue before the step.
    embeddings: embeddings of all views, the two large ones first.
    step: number of the step.
    options: options of SwAV.
  """
  # A selection, not a condition: the step is traced, and the push is cheap.
  started = step >= options.queue_from_step
  return jax.tree.map(
    lambda old, new: jnp.where(started, new, old),
    queue,
    queue_lib.enqueue_embeddings(queue, embeddings[:, :2]),
  )


def embedding_deviation(embeddings: Float[Array, 'N D']) -> Scalar:
  """Computes 1 - |mean| of L2-normalized vectors: 0 where all are equal."""
  return 1.0 - jnp.linalg.norm(jnp.mean(embeddings, axis=0))
