"""Step 1 of PASS: an encoder learns from images alone.

Image clusters (SwAV) or propagated pixels (PixelPro) or both, with pixels of
two views aligned (P2P) and shallow features taught by the deep ones (D2S).
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from pass_luss.pretrain import embedding_ops, view_axis, view_colors
from pass_luss.pretrain import options as options_lib
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import d2s, swav
from pass_luss.pretrain.objectives import p2p as p2p_lib
from pass_luss.pretrain.objectives import pixpro as pixpro_lib
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.ops import losses
from segcore.train import train_state
from segcore.train import update as update_lib


@flax.struct.dataclass
class State(train_state.TrainState):
  """With what is remembered of the steps before.

  Attributes:
    queue: of embeddings; None without one.
    momentum_params: PixelPro's slow copy of the encoder and the projector;
      None without.
    momentum_batch_stats: its own statistics.
  """

  queue: Any
  momentum_params: Any
  momentum_batch_stats: Any


@dataclasses.dataclass(frozen=True)
class Pretrain:
  """Representation learning; see `method.Method`.

  Batches hold `views_large` [B, 2, h, w, 3] with their boxes and mirrors, and
  `views_small` if there are small ones. The segmenter has the heads of
  `options.build_heads`.

  Attributes:
    segmenter: the encoder and the heads.
    update: of all of it.
    options: what is learned from.
    colors: of the views.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  options: options_lib.ObjectiveOptions
  colors: view_colors.ViewColors

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> State:
    """The queue is empty, the momentum encoder a copy."""
    rows, _, *shape = batch_spec['views_large'].shape
    state = self.update.init(self.segmenter, rng, (rows, *shape), loaded)
    queue = None
    clusters = self.options.clusters
    if clusters and clusters.queue:
      size = self.segmenter.heads.modules['clusters'].size
      queue = queue_lib.empty(queue_lib.QueueSpec(clusters.queue, size))
    slow = (
      (_slow(state.params), _slow(state.batch_stats))
      if self.options.pixpro
      else (None, None)
    )
    return State(
      **vars(state),
      queue=queue,
      momentum_params=slow[0],
      momentum_batch_stats=slow[1],
    )

  def train_step(
    self, state: State, batch: batch_lib.Batch
  ) -> tuple[State, types.Metrics]:
    """One update of everything; then the queue takes the new embeddings."""
    rng = jax.random.fold_in(state.rng, state.step)
    views = self.views(batch, rng)
    if self.options.clusters:
      # In place, as the official code: the update starts from unit length.
      state = state.replace(params=prototypes_lib.normalize(state.params))
    state, keys = self._keys(state, views)

    def loss(params):
      found, stats = self.look(params, state.batch_stats, views, batch)
      terms, scalars, embeddings = self._losses(
        params, state, batch, found, keys
      )
      return self._total(terms), (terms, scalars, embeddings, stats)

    (total, (terms, scalars, embeddings, stats)), gradient = jax.value_and_grad(
      loss, has_aux=True
    )(state.params)
    new = self.update.apply_gradients(state, gradient, stats)
    if self.options.clusters:
      frozen = state.step < self.options.clusters.frozen_steps
      new = prototypes_lib.freeze(frozen, new, state)
    if state.queue is not None:
      new = new.replace(
        queue=swav.update_queue(
          state.queue, embeddings, state.step, self.options.clusters
        )
      )
    return new, {'loss': total, **terms, **scalars}

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w D']:
    """The deepest map: what this training is for."""
    found = self.segmenter.apply(
      train_state.variables(state), images, decode=False, method='features'
    )
    return found['encoder'].deepest.array

  def views(
    self, batch: batch_lib.Batch, rng: Array
  ) -> dict[str, Float[Array, 'B V h w 3']]:
    """Views in [-1, 1], by group, in their new colors."""
    return view_colors.augment(batch, rng, self.colors)

  def look(
    self,
    params: types.Params,
    batch_stats: types.Params,
    views: dict[str, Float[Array, 'B V h w 3']],
    batch: batch_lib.Batch,
  ) -> tuple[dict[str, Any], types.Params]:
    """All outputs in training mode, and the statistics that follow.

    Views of one size go through the encoder together; the pooled maps of all
    of them through the projection once.
    """
    found, changed = self.segmenter.apply(
      {'params': params, 'batch_stats': batch_stats},
      views,
      batch,
      method=self._look,
      mutable=['batch_stats'],
    )
    return found, {**batch_stats, **changed.get('batch_stats', {})}

  def _look(
    self,
    net: segmenter_lib.Segmenter,
    views: dict[str, Array],
    batch: batch_lib.Batch,
  ) -> dict[str, Any]:
    options = self.options
    maps = {
      name: net.features(view_axis.merge(group), decode=False, train=True)[
        'encoder'
      ]
      for name, group in views.items()
    }
    large = maps['large']
    deep = large.deepest.array
    rows = len(views['large'])
    found: dict[str, Any] = {'deep': deep}
    if options.clusters:
      pooled = jnp.concatenate(
        [
          view_axis.split(embedding_ops.average_pool(m.deepest.array), rows)
          for m in maps.values()
        ],
        axis=1,
      )
      embeddings = net.heads.call_method(
        'clusters', 'embed', view_axis.merge(pooled), True
      )
      found['embeddings'] = view_axis.split(embeddings, rows)
    for stage in options.shallow.stages:
      shallow = large.by_name(f'x{stage}').array
      embeddings = net.heads.call_method(
        f'shallow{stage}', '__call__', shallow, True
      )
      found[f'shallow{stage}'] = view_axis.split(embeddings, rows)
    if options.alignment:
      found |= self._aligned(net, deep, batch)
    if options.pixpro:
      pixels = net.heads.call_method('pixpro', 'projected', deep, True)
      transformed = net.heads.call_method('pixpro', 'transformed', pixels)
      found['propagated'] = view_axis.split(
        pixpro_lib.propagated(pixels, transformed, options.pixpro.power), rows
      )
    return found

  def _aligned(
    self, net: segmenter_lib.Segmenter, deep: Array, batch: batch_lib.Batch
  ) -> dict[str, Any]:
    """The points of the overlap, projected and predicted, in both views."""
    options = self.options.alignment
    has_head = 'pixels' in self.segmenter.heads.modules
    points_of_rows, points_of_columns, overlap = p2p_lib.overlap_grids(
      batch['box_large'], batch['flip_large'], options.grid
    )
    maps = deep
    if has_head:
      maps = net.heads.call_method('pixels', 'projected', deep, True)
    sampled = p2p_lib.sample(
      losses.at_least_float32(maps),
      view_axis.merge(points_of_rows),
      view_axis.merge(points_of_columns),
    )
    rows = len(overlap)
    found = {'overlap': overlap, 'points': view_axis.split(sampled, rows)}
    if options.kind == 'regression':
      # Each view has its own statistics here (§2.6: p_a = q(z_a)).
      found['predicted'] = jnp.stack(
        [
          net.heads.call_method(
            'pixels', 'predicted', found['points'][:, view], True
          )
          for view in (0, 1)
        ],
        axis=1,
      )
    return found

  def _losses(
    self,
    params: types.Params,
    state: State,
    batch: batch_lib.Batch,
    found: dict[str, Any],
    keys: Float[Array, 'B 2 hw E'] | None,
  ) -> tuple[types.Metrics, types.Metrics, Array | None]:
    """Terms of the loss, more to log, and the embeddings of the images."""
    options = self.options
    terms, scalars, embeddings = {}, {}, None
    if options.clusters:
      embeddings = found['embeddings']
      prototypes = params['heads']['clusters']['prototypes']
      scores = embedding_ops.similarities(embeddings, prototypes)
      targets = swav.view_targets(
        scores, state.queue, prototypes, options.clusters
      )
      temperature = options.clusters.temperature
      terms['loss_swav'] = swav.swapped_loss(scores, targets, temperature)
      fixed = jax.lax.stop_gradient(prototypes)
      for stage in options.shallow.stages:
        shallow = embedding_ops.similarities(found[f'shallow{stage}'], fixed)
        taught = targets
        if options.shallow.targets == 'own':
          taught = swav.view_targets(shallow, None, fixed, options.clusters)
        terms[f'loss_shallow{stage}'] = d2s.loss(
          shallow, taught, temperature, options.shallow.view
        )
      scalars['prototype_usage'] = prototypes_lib.usage(
        view_axis.merge(targets)
      )
      scalars['embedding_spread'] = swav.embedding_deviation(
        view_axis.merge(embeddings[:, :2])
      )
      if state.queue is not None:
        scalars['queue_fill'] = state.queue.count / options.clusters.queue
    if options.alignment:
      terms['loss_p2p'] = self._alignment(params, found)
      scalars['overlap_share'] = jnp.mean(found['overlap'].astype(jnp.float32))
    if options.pixpro:
      terms['loss_pixpro'] = self._pixpro(batch, found, keys)
    return terms, scalars, embeddings

  def _alignment(
    self, params: types.Params, found: dict[str, Any]
  ) -> types.Scalar:
    options = self.options.alignment
    match options.kind:
      case 'regression':
        return p2p_lib.regression_loss(found['predicted'], found['points'])
      case 'contrastive':
        return p2p_lib.contrastive_loss(
          found['points'], found['overlap'], options.temperature
        )
      case _:
        return p2p_lib.clustering_loss(
          found['points'],
          params['heads']['clusters']['prototypes'],
          found['overlap'],
          self.options.clusters,
        )

  def _keys(
    self, state: State, views: dict[str, Array]
  ) -> tuple[State, Float[Array, 'B 2 hw E'] | None]:
    """PixelPro's momentum encoder moves, and looks at both large views."""
    if not self.options.pixpro:
      return state, None
    decay = pixpro_lib.momentum(
      state.step, self.update.num_steps, self.options.pixpro.decay
    )
    params = jax.tree.map(
      lambda slow, fast: decay * slow + (1.0 - decay) * fast,
      state.momentum_params,
      _slow(state.params),
    )

    def look(net, images):
      maps = net.features(images, decode=False, train=True)['encoder']
      return net.heads.call_method(
        'pixpro', 'projected', maps.deepest.array, True
      )

    pixels, changed = self.segmenter.apply(
      {'params': params, 'batch_stats': state.momentum_batch_stats},
      view_axis.merge(views['large']),
      method=look,
      mutable=['batch_stats'],
    )
    keys = jax.lax.stop_gradient(
      view_axis.split(embedding_ops.l2_normalize(pixels), len(views['large']))
    )
    state = state.replace(
      momentum_params=params,
      momentum_batch_stats={
        **state.momentum_batch_stats,
        **changed.get('batch_stats', {}),
      },
    )
    return state, keys.reshape(*keys.shape[:2], -1, keys.shape[-1])

  def _pixpro(
    self,
    batch: batch_lib.Batch,
    found: dict[str, Any],
    keys: Float[Array, 'B 2 hw E'],
  ) -> types.Scalar:
    """Both directions."""
    propagated = found['propagated']
    grid = propagated.shape[2:4]
    propagated = propagated.reshape(keys.shape)
    positive = pixpro_lib.positives(
      batch['box_large'],
      batch['flip_large'],
      batch['size'],
      grid,
      self.options.pixpro.distance,
    )
    return pixpro_lib.loss(
      propagated[:, 0], keys[:, 1], positive
    ) + pixpro_lib.loss(
      propagated[:, 1], keys[:, 0], jnp.swapaxes(positive, 1, 2)
    )

  def _total(self, terms: types.Metrics) -> types.Scalar:
    """All terms; those of SwAV and D2S as one, if they are averaged."""
    clustered = [
      value
      for name, value in terms.items()
      if name == 'loss_swav' or name.startswith('loss_shallow')
    ]
    others = sum(terms.values()) - sum(clustered)
    if not clustered:
      return others
    count = len(clustered) if self.options.combine == 'mean' else 1
    return sum(clustered) / count + others


def _slow(tree: types.Params) -> types.Params:
  """The part of parameters, or of statistics, that the momentum encoder has."""
  heads_of_tree = tree.get('heads', {}).get('pixpro', {})
  return {
    'encoder': tree.get('encoder', {}),
    'heads': {'pixpro': {'projector': heads_of_tree.get('projector', {})}},
  }
