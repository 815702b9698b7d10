"""Step 2a of PASS: trains pixel attention by clustering the attended images.

Only the attention and the prototypes are trained. All other parameters are
frozen, but their batch statistics are still updated, as in the released code
(spec §3.1).
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline.batch import Batch
from pass_luss.pretrain import embedding_ops, objective_options, view_colors
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import swav
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state
from segcore.train import update as update_lib
from segcore.train.train_state import StepResult

# Parameter group of the optimizer that freezes the pretrained projection head:
# pattern, learning rate factor, weight decay factor.
FROZEN_PROJECTION = ('^heads/clusters/projection/', 0.0, 0.0)


@flax.struct.dataclass
class AttentionState(train_state.TrainState):
  """Training state with a queue of embeddings; None without one."""

  queue: queue_lib.Queue | None


@dataclasses.dataclass(frozen=True)
class AttentionMethod:
  """Training method of pixel attention; implements `method.Method`.

  Attributes:
    segmenter: encoder with the pretrained head `clusters` and a new head
      `attention`.
    update: optimizer of the heads, with the group `FROZEN_PROJECTION`.
    options: SwAV targets, loss and queue.
    colors: color augmentation of the views.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  options: objective_options.SwavOptions
  colors: view_colors.ViewColors

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> AttentionState:
    """Initializes from loaded parameters, a new attention, an empty queue."""
    rows, _, *shape = batch_spec['views_large'].shape
    state = self.update.init(self.segmenter, rng, (rows, *shape), loaded)
    queue = None
    if self.options.queue:
      size = self.segmenter.heads.modules['clusters'].size
      queue = queue_lib.empty_embedding_queue(
        queue_lib.QueueSpec(self.options.queue, size)
      )
    return AttentionState(**vars(state), queue=queue)

  def train_step(self, state: AttentionState, batch: Batch) -> StepResult:
    """Computes one update of attention and prototypes by the SwAV loss."""
    rng = jax.random.fold_in(state.rng, state.step)
    views = view_colors.augment_view_colors(batch, rng, self.colors)['large']
    state = state.replace(
      params=prototypes_lib.l2_normalize_prototypes(state.params)
    )
    encoder = state.params['encoder']

    def loss(head_params):
      params = {'encoder': encoder, 'heads': head_params}
      (embeddings, mean), stats = self._embed(params, state.batch_stats, views)
      prototypes = head_params['clusters']['prototypes']
      scores = embedding_ops.prototype_similarities(embeddings, prototypes)
      targets = swav.swav_view_targets(
        scores, state.queue, prototypes, self.options
      )
      total = swav.swapped_prediction_loss(
        scores, targets, self.options.temperature
      )
      usage = prototypes_lib.prototype_usage(
        targets.reshape(-1, targets.shape[-1])
      )
      return total, (embeddings, mean, usage, stats)

    (total, (embeddings, mean, usage, stats)), gradient = jax.value_and_grad(
      loss, has_aux=True
    )(state.params['heads'])
    new = self.update.apply_gradients(state, {'heads': gradient}, stats)
    # As in SwAV, the prototypes are frozen for the first iterations.
    frozen = state.step < self.options.frozen_steps
    new = prototypes_lib.freeze_prototypes(frozen, new, state)
    if state.queue is not None:
      new = new.replace(
        queue=swav.update_embedding_queue(
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
    """Computes the attention weights, [0, 1], in evaluation mode."""
    return features_and_attention(self.segmenter, state, images)[1]

  def _embed(
    self,
    params: types.Params,
    batch_stats: types.Params,
    views: Float[Array, 'B 2 h w 3'],
  ) -> tuple[tuple[Array, Array], types.Params]:
    """Embeds the attended features of both views, in training mode.

    Returns:
      Embeddings [B, 2, D] and the mean attention weight; new batch statistics.
    """

    def forward(net: nn.Module, images: Array) -> tuple[Array, Array]:
      maps = net.features(images, decode=False, train=True)['encoder']
      deep = jax.lax.stop_gradient(maps.deepest.array)
      weights = net.heads.call_method('attention', '__call__', deep, True)
      attended = (
        embedding_ops.l2_normalize_embeddings(
          embedding_ops.upsample_embeddings(deep)
        )
        * weights
      )
      embeddings = net.heads.call_method(
        'clusters',
        'embed',
        embedding_ops.average_pool_embeddings(attended),
        True,
      )
      return embeddings, jnp.mean(weights)

    (embeddings, mean), changed = self.segmenter.apply(
      {'params': params, 'batch_stats': batch_stats},
      views.reshape(-1, *views.shape[2:]),
      method=forward,
      mutable=['batch_stats'],
    )
    embeddings = embeddings.reshape(len(views), 2, -1)
    stats = {**batch_stats, **changed.get('batch_stats', {})}
    return (embeddings, mean), stats


def features_and_attention(
  segmenter: segmenter_lib.Segmenter,
  state: train_state.TrainState,
  images: Float[Array, 'B H W 3'],
) -> tuple[Float[Array, 'B h w D'], Float[Array, 'B h w E']]:
  """Computes the upsampled deepest features and their attention weights.

  Both are in evaluation mode. E is D, or 1 with attention shared by channels.

  Args:
    segmenter: network with the head `attention`.
    state: parameters and batch statistics of the network.
    images: images in [-1, 1].
  """

  def forward(net: nn.Module, images: Array) -> tuple[Array, Array]:
    deep = net.deepest_map(images)
    weights = net.heads.call_method('attention', '__call__', deep, False)
    return embedding_ops.upsample_embeddings(deep), weights

  return segmenter.apply(
    train_state.train_state_variables(state), images, method=forward
  )
