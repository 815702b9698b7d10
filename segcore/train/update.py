"""Updates of the parameters: gradient accumulation and optimizer step."""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from etils import epy
from jax.sharding import Mesh
from jaxtyping import Array

from input_pipeline import batch as batch_lib
from runtime import errors
from runtime.option_ranges import AtLeastOne, CheckedOptions
from segcore import types
from segcore.distributed import sharding
from segcore.train import optimizers

with epy.lazy_imports():
  import flax.linen as nn
  import optax

  from segcore.train import train_state


class LossOutput(NamedTuple):
  """The loss of a microbatch.

  Attributes:
    total: sum of the loss over everything that is counted.
    count: number of rows, pixels or values in the sum.
    scalars: further scalars to log, means over the microbatch.
    batch_stats: batch statistics after this forward pass.
  """

  total: types.Scalar
  count: types.Scalar
  scalars: types.Metrics
  batch_stats: types.Params


class ForwardKeys(NamedTuple):
  """PRNG keys of the forward pass of a microbatch.

  Attributes:
    rows: [B, 2], a key for each row, derived from its index in the global
      batch; draws from it are the same however the batch is divided.
    network: [2], one key for all rows, for dropout.
  """

  rows: Array
  network: Array


# (all parameters, batch statistics, microbatch, keys) -> LossOutput.
Loss = Callable[
  [types.Params, types.Params, batch_lib.Batch, ForwardKeys], LossOutput
]


def row_prng_keys(rng: Array, num_rows: int) -> Array:
  """Derives a PRNG key for each row of a global batch from the row's index.

  Args:
    rng: key of the step.
    num_rows: rows of the global batch.
  """
  return jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(num_rows))


@dataclasses.dataclass(frozen=True)
class RecipeOptions(CheckedOptions):
  """Batch, length and optimizer of a training.

  Attributes:
    batch_size: global number of images of a step.
    num_steps: length of the training and of its schedule.
    optimizer: rule, schedule and parameter groups.
    accumulate: number of equal microbatches whose gradients are accumulated.
    evaluate_every: steps between evaluations; 0: only after the last step.
    seed: seed of initial parameters, random draws and the order of the images.
  """

  batch_size: AtLeastOne
  num_steps: AtLeastOne
  optimizer: optimizers.OptimizerOptions
  accumulate: AtLeastOne = 1
  evaluate_every: int = 0
  seed: int = 0

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.seed < 2**31:
      raise ValueError(f'seed: expected 0 to 2**31 - 1, got {self.seed}')
    if self.evaluate_every < 0:
      raise ValueError(
        f'evaluate_every: expected >= 0, got {self.evaluate_every}'
      )
    if self.optimizer.warmup_steps >= self.num_steps:
      raise ValueError(
        'optimizer.warmup_steps: expected fewer than num_steps = '
        f'{self.num_steps}, got {self.optimizer.warmup_steps}'
      )

  def check(self, mesh: Mesh, path: str, accumulates: bool = True) -> None:
    """Raises UserError unless microbatches can be divided among the devices.

    Args:
      mesh: the devices.
      path: path of the recipe in the config, for messages.
      accumulates: whether the method supports gradient accumulation, because
        its loss is a sum over a count and rows of a batch do not interact.
    """
    sharding.check_batch_divides_devices(
      self.batch_size, mesh, f'{path}.batch_size'
    )
    if self.accumulate > 1 and not accumulates:
      raise errors.UserError(
        f'{path}.accumulate: expected 1, since this method needs the whole '
        f'batch at once, got {self.accumulate}'
      )
    if self.batch_size % (self.accumulate * mesh.size):
      raise errors.UserError(
        f'{path}.accumulate: expected a divisor of '
        f'{self.batch_size // mesh.size} images per device, got '
        f'{self.accumulate}'
      )

  def make_update(
    self, trained: tuple[str, ...], frozen: tuple[str, ...] = ()
  ) -> 'Update':
    """Builds the update of these top-level parts of the parameters.

    Args:
      trained: names of the parts.
      frozen: paths of modules that are not updated, as 'encoder/block1'.
    """
    groups = tuple(
      (f'^{re.escape(path)}/', 0.0, 0.0)
      for path in frozen
      if path.partition('/')[0] in trained
    )
    optimizer = dataclasses.replace(
      self.optimizer, groups=(*groups, *self.optimizer.groups)
    )
    return Update(trained, optimizer, self.num_steps, self.accumulate)


@dataclasses.dataclass(frozen=True)
class Update:
  """Gradient step for a loss that is a sum of terms, divided by their number.

  Attributes:
    trained: top-level parts of the parameters that are differentiated and have
      optimizer state; all others are constants.
    optimizer: rule, schedule and parameter groups.
    num_steps: length of the schedule.
    accumulate: number of equal microbatches; must divide the rows on every
      device.
  """

  trained: tuple[str, ...]
  optimizer: optimizers.OptimizerOptions
  num_steps: int
  accumulate: int = 1

  def init(
    self,
    segmenter: 'nn.Module',
    rng: Array,
    image_shape: tuple[int, ...],
    loaded: types.Params | None,
  ) -> 'train_state.TrainState':
    """Initializes the state at step 0, and replaces the parts that were loaded.

    Args:
      segmenter: a `Segmenter`.
      rng: PRNG key of the run.
      image_shape: shape [B, H, W, 3] of the training images.
      loaded: {'params': {part: tree}, 'batch_stats': {part: tree}}, or None.
        Each part replaces the initialized one completely, except heads, which
        are replaced one by one.
    """
    init_rng, run_rng = jax.random.split(rng)
    images = jnp.zeros((1, *image_shape[1:]), jnp.float32)
    variables = segmenter.init(init_rng, images)
    loaded = loaded or {}
    params = _replace_parts(variables['params'], loaded.get('params', {}))
    return train_state.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=_replace_parts(
        variables.get('batch_stats', {}), loaded.get('batch_stats', {})
      ),
      opt_state=self._transformation(params).init(self._trained(params)),
      rng=run_rng,
    )

  def __call__(
    self, loss: Loss, state: 'train_state.TrainState', batch: batch_lib.Batch
  ) -> 'tuple[train_state.TrainState, types.Metrics]':
    """Computes one training step.

    Sums and counts are accumulated over the microbatches and divided once. So
    the step equals that of the whole batch, except where rows interact inside
    the network (batch normalization) or share a key (dropout).

    Args:
      loss: function that returns the sum and the count of a microbatch.
      state: training state, whose step selects the random draws.
      batch: a global batch.

    Returns:
      The state after the step; 'loss', the scalars of the loss, 'grad_norm'.
    """
    rng = jax.random.fold_in(state.rng, state.step)
    row_rng, network_rng = jax.random.split(rng)

    def gradient_of(microbatch, rows_rng, index):
      keys = ForwardKeys(rows_rng, jax.random.fold_in(network_rng, index))

      # Differentiates the trained parts alone: of a frozen encoder no gradient
      # is computed, and the optimizer has no state.
      def total(trained):
        params = {**state.params, **trained}
        output = loss(params, state.batch_stats, microbatch, keys)
        return output.total, output

      return jax.grad(total, has_aux=True)(self._trained(state.params))

    microbatches = self._split(batch, row_rng)
    # The first microbatch outside of the scan gives the carry its structure;
    # without accumulation there is no loop in the program.
    sums = gradient_of(*jax.tree.map(lambda x: x[0], microbatches))
    if self.accumulate > 1:
      sums, _ = jax.lax.scan(
        lambda sums, microbatch: (
          jax.tree.map(jnp.add, sums, gradient_of(*microbatch)),
          None,
        ),
        sums,
        jax.tree.map(lambda x: x[1:], microbatches),
      )
    gradient, output = sums
    count = jnp.maximum(output.count, 1)
    gradient = jax.tree.map(lambda g: g / count, gradient)
    # Each microbatch updates the same old statistics: the mean is taken.
    batch_stats = jax.tree.map(
      lambda s: s / self.accumulate, output.batch_stats
    )
    metrics = {
      'loss': output.total / count,
      **{n: v / self.accumulate for n, v in output.scalars.items()},
      'grad_norm': optax.global_norm(gradient),
    }
    return self.apply_gradients(state, gradient, batch_stats), metrics

  def _split(
    self, batch: batch_lib.Batch, row_rng: Array
  ) -> tuple[batch_lib.Batch, Array, Array]:
    """Splits a batch into stacked microbatches, row keys and indices."""
    rows = jax.tree.leaves(batch)[0].shape[0]
    # Microbatches are strided, so that each has rows on every device.
    microbatches, keys = jax.tree.map(
      lambda x: jnp.moveaxis(
        x.reshape(rows // self.accumulate, self.accumulate, *x.shape[1:]), 1, 0
      ),
      (dict(batch), row_prng_keys(row_rng, rows)),
    )
    return microbatches, keys, jnp.arange(self.accumulate)

  def apply_gradients(
    self,
    state: 'train_state.TrainState',
    gradient: types.Params,
    batch_stats: types.Params,
  ) -> 'train_state.TrainState':
    """Applies the optimizer to a gradient; returns the state one step later.

    For methods that compute the gradient themselves.

    Args:
      state: the state before the step; fields of a subclass stay as they are.
      gradient: gradient of the loss with respect to the trained parts.
      batch_stats: batch statistics after the forward pass.
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

  def _transformation(self, params) -> 'optax.GradientTransformation':
    return optimizers.build_optimizer(
      self.optimizer, self.num_steps, self._trained(params)
    )


def _replace_parts(fresh: types.Params, loaded: types.Params) -> types.Params:
  """Replaces the parts that were loaded; heads are replaced one by one."""
  heads = {**fresh.get('heads', {}), **loaded.get('heads', {})}
  return {**fresh, **loaded, **({'heads': heads} if heads else {})}
