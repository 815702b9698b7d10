"""Step 2a of PASS: which pixels matter, learned by the clusters of images.

Only the attention and the prototypes learn; everything else is a constant, but
its batch statistics go on moving, as in the released code (spec §3.1).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from pass_luss.pretrain import embedding_ops, view_colors
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import swav
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state
from segcore.train import update as update_lib

# Of the heads, what does not learn: the projection.
FROZEN_PROJECTION = ('^heads/clusters/projection/', 0.0, 0.0)


@flax.struct.dataclass
class AttentionState(train_state.TrainState):
  """Training state with a queue of embeddings; None without one."""

  queue: Any


@dataclasses.dataclass(frozen=True)
class AttentionMethod:
  """Learns the attention; see `method.Method`.

  The segmenter has the heads `clusters`, learned before, and `attention`.

  Attributes:
    segmenter: encoder and heads.
    update: of the heads; its group `FROZEN_PROJECTION` freezes the projection.
    options: of the clusters.
    colors: of the views.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  options: swav.SwavOptions
  colors: view_colors.ViewColors

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> AttentionState:
    """What is loaded, a new attention, and an empty queue."""
    rows, _, *shape = batch_spec['views_large'].shape
    state = self.update.init(self.segmenter, rng, (rows, *shape), loaded)
    queue = None
    if self.options.queue:
      size = self.segmenter.heads.modules['clusters'].size
      queue = queue_lib.empty(queue_lib.QueueSpec(self.options.queue, size))
    return AttentionState(**vars(state), queue=queue)

  def train_step(
    self, state: AttentionState, batch: batch_lib.Batch
  ) -> tuple[AttentionState, types.Metrics]:
    """One update of attention and prototypes."""
    rng = jax.random.fold_in(state.rng, state.step)
    views = view_colors.augment(batch, rng, self.colors)['large']
    state = state.replace(params=prototypes_lib.normalize(state.params))
    encoder = state.params['encoder']

    def loss(learned):
      params = {'encoder': encoder, 'heads': learned}
      (embeddings, mean), stats = self._look(params, state.batch_stats, views)
      prototypes = learned['clusters']['prototypes']
      scores = embedding_ops.similarities(embeddings, prototypes)
      targets = swav.view_targets(scores, state.queue, prototypes, self.options)
      total = swav.swapped_loss(scores, targets, self.options.temperature)
      usage = prototypes_lib.usage(targets.reshape(-1, targets.shape[-1]))
      return total, (embeddings, mean, usage, stats)

    (total, (embeddings, mean, usage, stats)), gradient = jax.value_and_grad(
      loss, has_aux=True
    )(state.params['heads'])
    new = self.update.apply_gradients(state, {'heads': gradient}, stats)
    frozen = state.step < self.options.frozen_steps
    new = prototypes_lib.freeze(frozen, new, state)
    if state.queue is not None:
      new = new.replace(
        queue=swav.update_queue(
          state.queue, embeddings, state.step, self.options
        )
      )
    return new, {
      'loss': total,
      'attention_mean': mean,
      'prototype_usage': usage,
    }

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w D']:
    """The attention of each channel to each pixel, in evaluation mode."""
    return features_and_attention(
      self.segmenter, train_state.variables(state), images
    )[1]

  def _look(
    self,
    params: types.Params,
    batch_stats: types.Params,
    views: Float[Array, 'B 2 h w 3'],
  ) -> tuple[tuple[Array, Array], types.Params]:
    """Embeddings of what is attended to, its mean, and new statistics."""

    def look(net: nn.Module, images: Array) -> tuple[Array, Array]:
      maps = net.features(images, decode=False, train=True)['encoder']
      deep = jax.lax.stop_gradient(maps.deepest.array)
      weights = net.heads.call_method('attention', '__call__', deep, True)
      attended = (
        embedding_ops.l2_normalize(embedding_ops.upsample(deep)) * weights
      )
      embeddings = net.heads.call_method(
        'clusters', 'embed', embedding_ops.average_pool(attended), True
      )
      return embeddings, jnp.mean(weights)

    (embeddings, mean), changed = self.segmenter.apply(
      {'params': params, 'batch_stats': batch_stats},
      views.reshape(-1, *views.shape[2:]),
      method=look,
      mutable=['batch_stats'],
    )
    by_view = embeddings.reshape(len(views), 2, -1)
    stats = {**batch_stats, **changed.get('batch_stats', {})}
    return (by_view, mean), stats


def features_and_attention(
  segmenter: segmenter_lib.Segmenter,
  variables: types.Params,
  images: Float[Array, 'B H W 3'],
) -> tuple[Float[Array, 'B h w D'], Float[Array, 'B h w E']]:
  """The enlarged deepest map and the attention to it, in evaluation mode.

  Args:
    segmenter: with the head `attention`.
    variables: of the network.
    images: in [-1, 1].
  """

  def look(net: nn.Module, images: Array) -> tuple[Array, Array]:
    deep = net.features(images, decode=False)['encoder'].deepest.array
    weights = net.heads.call_method('attention', '__call__', deep, False)
    return embedding_ops.upsample(deep), weights

  return segmenter.apply(variables, images, method=look)
