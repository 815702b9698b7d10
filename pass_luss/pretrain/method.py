"""Step 1 of PASS: an encoder learns from images alone.

Image clusters (SwAV) or propagated pixels (PixelPro) or both, with pixels of
two views aligned (P2P) and shallow features taught by the deep ones (D2S).
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from pass_luss.pretrain import heads
from pass_luss.pretrain.objectives import d2s, swav
from pass_luss.pretrain.objectives import p2p as p2p_lib
from pass_luss.pretrain.objectives import pixpro as pixpro_lib
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.ops import color_augment, losses
from segcore.train import train_state
from segcore.train import update as update_lib

# Red of ImageNet's images: mean and deviation, as parts of 255.
_RED_MEAN, _RED_DEVIATION = 0.485, 0.229


@dataclasses.dataclass(frozen=True)
class Colors:
  """How the colors of views are changed.

  Attributes:
    large: of the first and of the second large view.
    small: of the small ones.
    red_deviation: by which red is divided; SwAV's 0.228 has stayed in use.
  """

  large: tuple[color_augment.ColorOptions, ...]
  small: color_augment.ColorOptions = color_augment.ColorOptions()
  red_deviation: float = _RED_DEVIATION

  def __post_init__(self):
    if len(self.large) != 2:
      raise ValueError(
        f'large: found {len(self.large)} blocks, expected 2: one for each view'
      )
    if self.red_deviation <= 0:
      raise ValueError(
        f'red_deviation: found {self.red_deviation}, expected more than 0'
      )


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
  """What is learned from; at least clusters or PixelPro.

  Attributes:
    clusters: SwAV of all views; None for none.
    alignment: P2P of the large views; None for none.
    shallow: D2S of the large views; needs clusters.
    pixpro: PixelPro of the large views; None for none.
    combine: 'mean': the losses of SwAV and of D2S are averaged (the released
      code); 'sum': all are added up (the paper).
  """

  clusters: swav.SwavOptions | None = swav.SwavOptions()
  alignment: p2p_lib.P2POptions | None = p2p_lib.P2POptions()
  shallow: d2s.D2SOptions = d2s.D2SOptions()
  pixpro: pixpro_lib.PixproOptions | None = None
  combine: Literal['mean', 'sum'] = 'mean'

  def __post_init__(self):
    if not self.clusters and not self.pixpro:
      raise ValueError(
        'clusters and pixpro: found neither, expected one of them or both'
      )
    if self.shallow.stages and not self.clusters:
      raise ValueError(
        f'shallow.stages: found {self.shallow.stages} without clusters, whose '
        'targets they need: expected ()'
      )
    aligned = self.alignment and self.alignment.kind == 'clustering'
    if aligned and not self.clusters:
      raise ValueError(
        "alignment.kind: found 'clustering' without clusters, whose prototypes "
        'it needs'
      )


@dataclasses.dataclass(frozen=True)
class Widths:
  """Of the heads.

  Attributes:
    hidden: h, of all projections.
    embedding: of images and of pixels.
    prototypes: K.
  """

  hidden: int = 512
  embedding: int = 128
  prototypes: int = 500

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 2:
        raise ValueError(f'{name}: found {value}, expected 2 or more')


def heads_of(
  options: ObjectiveOptions, widths: Widths, dtype: Any
) -> dict[str, nn.Module]:
  """The heads that training needs, by name."""
  found: dict[str, Any] = {}
  if options.clusters:
    found['clusters'] = heads.Clusters(
      widths.hidden, widths.embedding, widths.prototypes, dtype=dtype
    )
  for stage in options.shallow.stages:
    found[f'shallow{stage}'] = heads.Shallow(
      f'x{stage}', widths.hidden, widths.embedding, dtype=dtype
    )
  aligned = options.alignment
  if aligned and (aligned.project or aligned.kind == 'regression'):
    found['pixels'] = heads.Alignment(
      widths.hidden,
      widths.embedding,
      project=aligned.project,
      predict=aligned.kind == 'regression',
      dtype=dtype,
    )
  if options.pixpro:
    found['pixpro'] = heads.PixelPro(
      options.pixpro.hidden, options.pixpro.size, dtype=dtype
    )
  return found


@flax.struct.dataclass
class State(train_state.TrainState):
  """With what is remembered of the steps before.

  Attributes:
    queue: of embeddings; () without one.
    momentum_params: PixelPro's slow copy of the encoder and the projector; ()
      without.
    momentum_batch_stats: its own statistics.
  """

  queue: Any
  momentum_params: Any
  momentum_batch_stats: Any


@dataclasses.dataclass(frozen=True)
class Represent:
  """Representation learning; see `method.Method`.

  Batches hold `views_large` [B, 2, h, w, 3] with their boxes and mirrors, and
  `views_small` if there are small ones. The segmenter has the heads of
  `heads_of`.

  Attributes:
    segmenter: the encoder and the heads.
    update: of all of it.
    options: what is learned from.
    colors: of the views.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  options: ObjectiveOptions
  colors: Colors

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> State:
    """The queue is empty, the momentum encoder a copy."""
    rows, _, *shape = batch_spec['views_large'].shape
    state = self.update.init(self.segmenter, rng, (rows, *shape), loaded)
    queue: Any = ()
    clusters = self.options.clusters
    if clusters and clusters.queue:
      queue = swav.empty_queue(
        clusters.queue, self.segmenter.heads.modules['clusters'].size
      )
    slow = (
      (_slow(state.params), _slow(state.batch_stats))
      if self.options.pixpro
      else ((), ())
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
      state = state.replace(params=heads.with_unit_prototypes(state.params))
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
      learns = state.step >= self.options.clusters.frozen_steps
      new = heads.held(learns, new, state)
    if state.queue != ():
      new = new.replace(
        queue=swav.pushed(
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
    return colored_views(batch, rng, self.colors)

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
      name: net.features(_flat(group), decode=False, train=True)['encoder']
      for name, group in views.items()
    }
    large = maps['large']
    deep = large.deepest.array
    rows = len(views['large'])
    found: dict[str, Any] = {'deep': deep}
    if options.clusters:
      pooled = jnp.concatenate(
        [_by_view(heads.pooled(m.deepest.array), rows) for m in maps.values()],
        axis=1,
      )
      embeddings = net.heads.use('clusters', 'embed', _flat(pooled), True)
      found['embeddings'] = _by_view(embeddings, rows)
    for stage in options.shallow.stages:
      shallow = large.named(f'x{stage}').array
      embeddings = net.heads.use(f'shallow{stage}', '__call__', shallow, True)
      found[f'shallow{stage}'] = _by_view(embeddings, rows)
    if options.alignment:
      found |= self._aligned(net, deep, batch)
    if options.pixpro:
      pixels = net.heads.use('pixpro', 'projected', deep, True)
      transformed = net.heads.use('pixpro', 'transformed', pixels)
      found['propagated'] = _by_view(
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
      maps = net.heads.use('pixels', 'projected', deep, True)
    sampled = p2p_lib.sample(
      losses.at_least_float32(maps),
      _flat(points_of_rows),
      _flat(points_of_columns),
    )
    rows = len(overlap)
    found = {'overlap': overlap, 'points': _by_view(sampled, rows)}
    if options.kind == 'regression':
      # Each view has its own statistics here (§2.6: p_a = q(z_a)).
      found['predicted'] = jnp.stack(
        [
          net.heads.use('pixels', 'predicted', found['points'][:, view], True)
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
      scores = swav.scores(embeddings, prototypes)
      targets = swav.targets_of_views(
        scores, state.queue, prototypes, options.clusters
      )
      temperature = options.clusters.temperature
      terms['loss_swav'] = swav.swapped_loss(scores, targets, temperature)
      fixed = jax.lax.stop_gradient(prototypes)
      for stage in options.shallow.stages:
        shallow = swav.scores(found[f'shallow{stage}'], fixed)
        taught = targets
        if options.shallow.targets == 'own':
          taught = swav.targets_of_views(shallow, (), fixed, options.clusters)
        terms[f'loss_shallow{stage}'] = d2s.loss(
          shallow, taught, temperature, options.shallow.view
        )
      scalars['prototype_usage'] = swav.usage(_flat(targets))
      scalars['embedding_spread'] = swav.embedding_deviation(
        _flat(embeddings[:, :2])
      )
      if state.queue != ():
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
      return net.heads.use('pixpro', 'projected', maps.deepest.array, True)

    pixels, changed = self.segmenter.apply(
      {'params': params, 'batch_stats': state.momentum_batch_stats},
      _flat(views['large']),
      method=look,
      mutable=['batch_stats'],
    )
    keys = jax.lax.stop_gradient(
      _by_view(swav.unit(pixels), len(views['large']))
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


def colored_views(
  batch: batch_lib.Batch, rng: Array, colors: Colors
) -> dict[str, Float[Array, 'B V h w 3']]:
  """Views in [-1, 1], by group, in new colors.

  Args:
    batch: with `views_large`, and `views_small` if there are any.
    rng: of the step.
    colors: how they are changed.
  """
  keys = update_lib.row_keys(rng, len(batch['views_large']))
  first, second = colors.large
  found = {}
  for group, options, offset in (
    ('large', (first,) if first == second else (first, second), 0),
    ('small', (colors.small,), 2),
  ):
    if f'views_{group}' not in batch:
      continue
    images = batch_lib.to_symmetric(batch[f'views_{group}'])
    # All views of the same options at once; else a program for each.
    parts = jnp.split(images, len(options), axis=1)
    changed, at = [], offset
    for part, its_own in zip(parts, options, strict=True):
      count = part.shape[1]
      of_views = _flat(_fold_in_views(keys, at, count))
      augmented = color_augment.augment(_flat(part), of_views, its_own)
      changed.append(_by_view(augmented, len(images)))
      at += count
    together = jnp.concatenate(changed, axis=1)
    found[group] = with_red_deviation(together, colors.red_deviation)
  return found


def with_red_deviation(
  images: Float[Array, '*shape 3'], deviation: float
) -> Float[Array, '*shape 3']:
  """Makes up for the encoder's dividing red by ImageNet's deviation."""
  factor = _RED_DEVIATION / deviation
  if factor == 1.0:
    return images
  mean = 2.0 * _RED_MEAN - 1.0
  red = mean + factor * (images[..., :1] - mean)
  return jnp.concatenate([red, images[..., 1:]], axis=-1)


def _slow(tree: types.Params) -> types.Params:
  """The part of parameters, or of statistics, that the momentum encoder has."""
  heads_of_tree = tree.get('heads', {}).get('pixpro', {})
  return {
    'encoder': tree.get('encoder', {}),
    'heads': {'pixpro': {'projector': heads_of_tree.get('projector', {})}},
  }


def _fold_in_views(keys: Array, first: int, count: int) -> Array:
  """Keys [B, V, …] of some views of each image, numbered from `first` on."""
  views = first + jnp.arange(count)
  fold_in = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(fold_in, (0, None))(keys, views)


def _flat(views: Array) -> Array:
  """[B, V, …] as [B·V, …]: rows stay where they are."""
  return views.reshape(-1, *views.shape[2:])


def _by_view(flat: Array, rows: int) -> Array:
  """Undoes `_flat`."""
  return flat.reshape(rows, -1, *flat.shape[1:])
