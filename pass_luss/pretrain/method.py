"""Step 1 of PASS: self-supervised pretraining of the encoder.

An encoder and a list of objectives: SwAV on images or PixPro on pixels or both,
or one that the paper compares with (MoCo v2, BYOL, …), with pixels of two views
aligned (P2P) and shallow features supervised by deep ones (D2S). What
objectives share is here: the forward passes of the encoder and of its momentum
average, the queue, the sum of the loss and the update.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from input_pipeline.batch import Batch
from pass_luss.pretrain import momentum as momentum_lib
from pass_luss.pretrain import objective as objective_lib
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain import view_axis, view_colors
from segcore import types
from segcore.models import features as features_lib
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state
from segcore.train import update as update_lib
from segcore.train.train_state import StepResult

# Numbers of the keys of memories, of targets, and of dropout in both networks,
# folded into those of a run and of a step, from which rows of a batch have the
# numbers from 0.
_MEMORY_KEY, _TARGET_KEY = 2**31 - 2, 2**31 - 1
_DROPOUT_KEY, _MOMENTUM_DROPOUT_KEY = 2**31 - 3, 2**31 - 4
# Outputs or targets of each objective, by its name.
ArraysByObjective = Mapping[str, objective_lib.Arrays]


@dataclasses.dataclass(frozen=True)
class Pretrain:
  """Pretraining by a list of objectives; a `method.Method`.

  Batches hold `views_large` [B, 2, h, w, 3] with their boxes and flips, and
  `views_small`, or `views_smaller1`, …, if there are views of other sizes.

  Attributes:
    segmenter: the encoder and the heads of the objectives.
    update: gradient step of all parameters.
    objectives: objectives, each listed after those whose targets it reads.
    colors: augmentation of the views.
    combine: 'mean': the terms of the `averaged` objectives are averaged and
      the others added; 'sum': all are added.

  Raises:
    ValueError: two objectives need a queue, or a momentum encoder.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  objectives: tuple[objective_lib.Objective, ...]
  colors: view_colors.ViewColors
  combine: Literal['mean', 'sum'] = 'mean'

  def __post_init__(self):
    for need in ('needs_queue', 'needs_momentum'):
      names = [o.name for o in self.objectives if getattr(o, need) is not None]
      if len(names) > 1:
        raise ValueError(
          f'objectives: expected at most one with {need}, got '
          f'{" and ".join(names)}'
        )

  @property
  def _momentum(self) -> momentum_lib.MomentumSpec | None:
    specs = [o.needs_momentum for o in self.objectives]
    return next((spec for spec in specs if spec), None)

  @property
  def _queue(self) -> queue_lib.QueueSpec | None:
    specs = [o.needs_queue for o in self.objectives]
    return next((spec for spec in specs if spec), None)

  @property
  def _views(self) -> tuple[int, ...]:
    """Returns the numbers of the large views that the encoder encodes."""
    return tuple(sorted({n for o in self.objectives for n in o.views}))

  @property
  def _encodes_by_view(self) -> bool:
    return all(o.encodes_by_view for o in self.objectives)

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> objective_lib.State:
    """Builds the state before step 0.

    The queue is empty and the momentum encoder a copy of the encoder.
    """
    rows, _, *shape = batch_spec['views_large'].shape
    state = self.update.init(self.segmenter, rng, (rows, *shape), loaded)
    momentum, queue = self._momentum, self._queue
    return objective_lib.State(
      **vars(state),
      queue=queue_lib.empty_embedding_queue(queue) if queue else None,
      momentum_params=momentum.select(state.params) if momentum else None,
      momentum_batch_stats=(
        momentum.select(state.batch_stats) if momentum else None
      ),
      memory=_initial_memory(
        self.objectives, jax.random.fold_in(rng, _MEMORY_KEY)
      ),
    )

  def train_step(self, state: objective_lib.State, batch: Batch) -> StepResult:
    """Updates all parameters once, then the queue and the prototypes."""
    rng = jax.random.fold_in(state.rng, state.step)
    target_rng = jax.random.fold_in(rng, _TARGET_KEY)
    views = self.views(batch, rng)
    for objective in self.objectives:
      state = state.replace(params=objective.prepare(state.params))
    # Outside of `loss`: nothing of this pass is stored for a backward pass.
    state, momentum_outputs = self._momentum_forward(
      state, views, jax.random.fold_in(rng, _MOMENTUM_DROPOUT_KEY)
    )
    dropout_rng = jax.random.fold_in(rng, _DROPOUT_KEY)

    def loss(params):
      outputs, stats = self.forward(
        params, state.batch_stats, views, batch, dropout_rng
      )
      total, scalars, targets = self._loss(
        objective_lib.Step(
          params, state, batch, outputs, momentum_outputs, {}, target_rng
        )
      )
      return total, (scalars, outputs, targets, stats)

    (total, (scalars, outputs, targets, stats)), gradient = jax.value_and_grad(
      loss, has_aux=True
    )(state.params)
    new = self.update.apply_gradients(state, gradient, stats)
    if self._momentum and self._momentum.after_update:
      new = new.replace(momentum_params=self._average(state, new.params))
    # After the update: frozen prototypes are restored, queues take this batch.
    step = objective_lib.Step(
      state.params, state, batch, outputs, momentum_outputs, targets, target_rng
    )
    for objective in self.objectives:
      new = objective.after_update(step, new)
    return new, {'loss': total, **scalars}

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w D']:
    """Computes the encoder's deepest map, in evaluation mode."""
    return self.segmenter.apply(
      train_state.train_state_variables(state), images, method='deepest_map'
    )

  def views(
    self, batch: Batch, rng: Array
  ) -> dict[str, Float[Array, 'B V h w 3']]:
    """Returns the views in [-1, 1], by group, with augmented colors."""
    return view_colors.augment_view_colors(batch, rng, self.colors)

  def forward(
    self,
    params: types.Params,
    batch_stats: types.Params,
    views: Mapping[str, Float[Array, 'B V h w 3']],
    batch: Batch,
    dropout_rng: Array | None = None,
  ) -> tuple[ArraysByObjective, types.Params]:
    """Computes the outputs of all objectives in training mode.

    Views of one size go through the encoder together, so that batch statistics
    are those of a resolution (spec §2.3), unless the only objective encodes
    them one by one.

    Args:
      params: parameters of the network.
      batch_stats: running statistics of the network.
      views: views in [-1, 1], by group.
      batch: boxes and flips of the views.
      dropout_rng: key of dropout; None for heads without it.

    Returns:
      Outputs by objective, and the new batch statistics.
    """

    def network(net: segmenter_lib.Segmenter) -> ArraysByObjective:
      encoded = _encode(net, views, batch, self._encodes_by_view, self._views)
      return {
        objective.name: objective.outputs(net, encoded)
        for objective in self.objectives
      }

    return _apply(self.segmenter, network, params, batch_stats, dropout_rng)

  def _momentum_forward(
    self,
    state: objective_lib.State,
    views: Mapping[str, Float[Array, 'B V h w 3']],
    dropout_rng: Array,
  ) -> tuple[objective_lib.State, ArraysByObjective]:
    """Updates the momentum encoder, then applies it to the large views.

    It stays as it is if it is updated after the encoder.

    Returns:
      The state with the updated momentum encoder, and its outputs by objective,
      without a gradient; both unchanged and empty if none is needed.
    """
    momentum = self._momentum
    if momentum is None:
      return state, {}
    params = state.momentum_params
    if not momentum.after_update:
      params = self._average(state, state.params)

    objectives = [o for o in self.objectives if o.needs_momentum is not None]

    def network(net: segmenter_lib.Segmenter) -> ArraysByObjective:
      # Training mode here, too, as in PixPro: batch statistics, and running
      # ones of this network's own.
      encoded = _encode(
        net,
        {'large': views['large']},
        {},
        self._encodes_by_view,
        objectives[0].momentum_views,
      )
      return {
        objective.name: objective.momentum_outputs(net, encoded)
        for objective in objectives
      }

    outputs, batch_stats = _apply(
      self.segmenter, network, params, state.momentum_batch_stats, dropout_rng
    )
    state = state.replace(
      momentum_params=params, momentum_batch_stats=batch_stats
    )
    return state, jax.lax.stop_gradient(outputs)

  def _average(
    self, state: objective_lib.State, params: types.Params
  ) -> types.Params:
    """Moves the momentum encoder's parameters toward those of the network."""
    return self._momentum.update(
      state.momentum_params, params, state.step, self.update.num_steps
    )

  def _loss(
    self, step: objective_lib.Step
  ) -> tuple[types.Scalar, types.Metrics, ArraysByObjective]:
    """Computes the total loss, terms and scalars to log, and the targets."""
    # Targets first: D2S reads those of SwAV.
    for objective in self.objectives:
      targets = {**step.targets, objective.name: objective.targets(step)}
      step = dataclasses.replace(step, targets=targets)
    terms, scalars = {}, {}
    for objective in self.objectives:
      terms[objective.name], logged = objective.loss(step)
      scalars |= terms[objective.name] | logged
    return self.total(terms), scalars, step.targets

  def total(self, terms: Mapping[str, types.Metrics]) -> types.Scalar:
    """Adds up the terms of all objectives (spec §2.8).

    Args:
      terms: terms of the loss by objective, in the order of the objectives.
    """
    averaged = [
      value
      for objective in self.objectives
      if objective.averaged
      for value in terms[objective.name].values()
    ]
    everything = [value for each in terms.values() for value in each.values()]
    # A difference, though a sum of the others would do: earlier results are
    # reproduced to the bit.
    others = sum(everything) - sum(averaged)
    if not averaged:
      return others
    count = len(averaged) if self.combine == 'mean' else 1
    return sum(averaged) / count + others


def _initial_memory(
  objectives: Sequence[objective_lib.Objective], rng: Array
) -> dict[str, Any] | None:
  """Builds the memories of the objectives; None if none has one."""
  memories = {each.name: each.initial_memory(rng) for each in objectives}
  return {n: m for n, m in memories.items() if m is not None} or None


def _apply(
  segmenter: segmenter_lib.Segmenter,
  network: Callable[[segmenter_lib.Segmenter], ArraysByObjective],
  params: types.Params,
  batch_stats: types.Params,
  dropout_rng: Array | None,
) -> tuple[ArraysByObjective, types.Params]:
  """Runs a function of the bound network; also returns the new statistics."""
  outputs, changed = segmenter.apply(
    {'params': params, 'batch_stats': batch_stats},
    method=network,
    rngs=None if dropout_rng is None else {'dropout': dropout_rng},
    mutable=['batch_stats'],
  )
  return outputs, {**batch_stats, **changed.get('batch_stats', {})}


def _encode(
  net: segmenter_lib.Segmenter,
  views: Mapping[str, Float[Array, 'B V h w 3']],
  batch: Batch,
  by_view: bool,
  numbers: tuple[int, ...],
) -> objective_lib.EncodedViews:
  """Applies the encoder in training mode to each group of views or each view.

  Of the large views only those of the given numbers are encoded.
  """
  large = views['large']
  if len(numbers) < large.shape[1]:
    large = large[:, numbers[0] : numbers[-1] + 1]

  def encode(images: Float[Array, 'N h w 3']) -> features_lib.Features:
    return net.features(images, decode=False, train=True)['encoder']

  apply = (
    view_axis.apply_to_each_view if by_view else view_axis.apply_to_all_views
  )
  return objective_lib.EncodedViews(
    {
      group: apply(encode, images)
      for group, images in {**views, 'large': large}.items()
    },
    batch,
    len(large),
    by_view,
    numbers,
  )
