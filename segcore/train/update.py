"""Updates of the parameters: gradient accumulation and optimizer step."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from input_pipeline import batch as batch_lib
from runtime import errors
from segcore import types
from segcore.distributed import sharding
from segcore.train import optimizers, train_state


class LossOutput(NamedTuple):
  """What a loss finds on a microbatch.

  Attributes:
    total: sum of the loss over everything that is counted.
    count: how much was counted: rows, pixels or values.
    scalars: more to log; means over the microbatch.
    batch_stats: statistics after this forward pass.
  """

  total: types.Scalar
  count: types.Scalar
  scalars: types.Metrics
  batch_stats: types.Params


class ForwardKeys(NamedTuple):
  """Randomness of one look at a microbatch.

  Attributes:
    rows: a key for each row, from its index in the global batch; draws from it
      are the same however the batch is divided.
    network: one key for all rows, for dropout.
  """

  rows: Array
  network: Array


# (all parameters, batch statistics, microbatch, keys) -> LossOutput.
Loss = Callable[
  [types.Params, types.Params, batch_lib.Batch, ForwardKeys], LossOutput
]


def row_keys(rng: Array, num_rows: int) -> Array:
  """A key for each row of a global batch, whatever device holds it."""
  return jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(num_rows))


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
  """Batch, length and optimizer of a training.

  Attributes:
    batch_size: global number of images of a step.
    num_steps: length of the training and of its schedule.
    optimizer: rule, schedule and parameter groups.
    accumulate: equal parts in which a batch is looked at.
    evaluate_every: steps between evaluations; 0: only after the last one.
    seed: of fresh parameters, random draws and the order of the images.
  """

  batch_size: int
  num_steps: int
  optimizer: optimizers.OptimizerOptions
  accumulate: int = 1
  evaluate_every: int = 0
  seed: int = 0

  def __post_init__(self):
    for name in ('batch_size', 'num_steps', 'accumulate'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}: found {getattr(self, name)}, expected >= 1')
    if not 0 <= self.seed < 2**31:
      raise ValueError(f'seed: found {self.seed}, expected 0 to 2**31 - 1')
    if self.evaluate_every < 0:
      raise ValueError(
        f'evaluate_every: found {self.evaluate_every}, expected >= 0'
      )
    if self.optimizer.warmup_steps >= self.num_steps:
      raise ValueError(
        f'optimizer.warmup_steps: found {self.optimizer.warmup_steps}, '
        f'expected below num_steps = {self.num_steps}'
      )

  def check(self, mesh: Mesh, path: str, accumulates: bool = True) -> None:
    """Raises UserError unless batches and their parts fit the devices.

    Args:
      mesh: the devices.
      path: where the recipe stands, for messages.
      accumulates: whether the method can look at a batch in parts: its loss is
        a sum over a count, and rows do not meet.
    """
    sharding.check_batch_size(self.batch_size, mesh, f'{path}.batch_size')
    if self.accumulate > 1 and not accumulates:
      raise errors.UserError(
        f'{path}.accumulate: found {self.accumulate}, expected 1, since this '
        'method needs the whole batch at once'
      )
    if self.batch_size % (self.accumulate * mesh.size):
      raise errors.UserError(
        f'{path}.accumulate: found {self.accumulate}, expected a divisor of '
        f'{self.batch_size // mesh.size} images per device'
      )

  def make_update(self, trained: tuple[str, ...]) -> 'Update':
    """The update of these parts of the parameters."""
    return Update(trained, self.optimizer, self.num_steps, self.accumulate)


@dataclasses.dataclass(frozen=True)
class Update:
  """How a loss that is a sum over a count changes parameters.

  Attributes:
    trained: top-level parts of the parameters that the gradient is taken of
      and that have optimizer slots; all others are constants.
    optimizer: rule, schedule and parameter groups.
    num_steps: length of the schedule.
    accumulate: equal parts in which a batch is looked at; must divide the rows
      on every device.
  """

  trained: tuple[str, ...]
  optimizer: optimizers.OptimizerOptions
  num_steps: int
  accumulate: int = 1

  def init(
    self,
    segmenter: nn.Module,
    rng: Array,
    image_shape: tuple[int, ...],
    loaded: types.Params | None,
  ) -> train_state.TrainState:
    """Fresh variables with loaded subtrees in their place, at step 0.

    Args:
      segmenter: a `Segmenter`.
      rng: the run's key.
      image_shape: shape [B, H, W, 3] of the images of training.
      loaded: {'params': {part: tree}, 'batch_stats': {part: tree}}, whose
        parts replace the fresh ones whole (see `pretrained`); of the heads,
        one may be there and another not.
    """
    init_rng, run_rng = jax.random.split(rng)
    images = jnp.zeros((1, *image_shape[1:]), jnp.float32)
    variables = segmenter.init(init_rng, images)
    found = loaded or {}
    params = _with_parts(variables['params'], found.get('params', {}))
    return train_state.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=_with_parts(
        variables.get('batch_stats', {}), found.get('batch_stats', {})
      ),
      opt_state=self._transformation(params).init(self._trained(params)),
      rng=run_rng,
    )

  def __call__(
    self, loss: Loss, state: train_state.TrainState, batch: batch_lib.Batch
  ) -> tuple[train_state.TrainState, types.Metrics]:
    """One update.

    Sums and counts are added up over the parts and divided once, so the update
    is that of the whole batch wherever rows do not meet inside the network
    (batch statistics, dropout).

    Args:
      loss: sums over what it counts.
      state: its step selects the random draws.
      batch: a global batch.

    Returns:
      The state after the update; 'loss', the loss's scalars and 'grad_norm'.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    rng = jax.random.fold_in(state.rng, state.step)
    row_rng, network_rng = jax.random.split(rng)

    def look_at(microbatch, rows_rng, part):
      keys = ForwardKeys(rows_rng, jax.random.fold_in(network_rng, part))

      def total(trained):
        params = {**state.params, **trained}
        outcome = loss(params, state.batch_stats, microbatch, keys)
        return outcome.total, outcome

      return jax.grad(total, has_aux=True)(self._trained(state.params))

    # Parts are strided, so that each has rows on every device.
    parts = jax.tree.map(
      lambda x: jnp.moveaxis(
        x.reshape(rows // self.accumulate, self.accumulate, *x.shape[1:]), 1, 0
      ),
      (dict(batch), row_keys(row_rng, rows)),
    )
    parts = (*parts, jnp.arange(self.accumulate))
    found = look_at(*jax.tree.map(lambda x: x[0], parts))
    if self.accumulate > 1:
      found, _ = jax.lax.scan(
        lambda sums, part: (jax.tree.map(jnp.add, sums, look_at(*part)), None),
        found,
        jax.tree.map(lambda x: x[1:], parts),
      )
    gradient, outcome = found
    count = jnp.maximum(outcome.count, 1)
    gradient = jax.tree.map(lambda g: g / count, gradient)
    # Each part has moved the same old statistics: their mean is taken.
    batch_stats = jax.tree.map(
      lambda s: s / self.accumulate, outcome.batch_stats
    )
    metrics = {
      'loss': outcome.total / count,
      **{n: v / self.accumulate for n, v in outcome.scalars.items()},
      'grad_norm': optax.global_norm(gradient),
    }
    return self.apply_gradients(state, gradient, batch_stats), metrics

  def apply_gradients(
    self,
    state: train_state.TrainState,
    gradient: types.Params,
    batch_stats: types.Params,
  ) -> train_state.TrainState:
    """The state one step later.

    For methods that find their gradient themselves.

    Args:
      state: before the step; of a subclass, whose own fields stay.
      gradient: of the loss by the trained parts.
      batch_stats: after the forward pass.
    """
    trained = self._trained(state.params)
    updates, opt_state = self._transformation(state.params).update(
      gradient, state.opt_state, trained
    )
    return state.replace(
      step=state.step + 1,
      params={**state.params, **optax.apply_updates(trained, updates)},
      batch_stats=batch_stats,
      opt_state=opt_state,
    )

  def _trained(self, params: types.Params) -> types.Params:
    return {name: params[name] for name in self.trained}

  def _transformation(self, params) -> optax.GradientTransformation:
    return optimizers.build(
      self.optimizer, self.num_steps, self._trained(params)
    )


def _with_parts(fresh: types.Params, found: types.Params) -> types.Params:
  """The fresh tree with what was found of each part in its place.

  Of the heads, those that were not found stay fresh.
  """
  heads = {**fresh.get('heads', {}), **found.get('heads', {})}
  return {**fresh, **found, **({'heads': heads} if heads else {})}
