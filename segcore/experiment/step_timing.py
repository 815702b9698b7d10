"""A few real steps of a training, timed on the devices at hand.

The images are random: nothing is read, and the time of a step does not depend
on what it is given.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from segcore import types
from segcore.distributed import sharding
from segcore.train import loop, method

# Steps that are timed, after one that compiles.
NUM_STEPS = 3


class StepTimes(NamedTuple):
  """Durations on the devices at hand, in seconds.

  Attributes:
    compiling: duration of the initialization and the first step.
    step: mean duration of the steps after it.
  """

  compiling: float
  step: float


class CompiledStep:
  """A compiled step of a training, from random parameters on a random batch.

  Attributes:
    operations: arithmetic operations of the program, as XLA counts them.
  """

  def __init__(
    self,
    trained: method.Method,
    mesh: Mesh,
    spec: types.BatchSpec,
    first_step: int = 0,
  ):
    """Initializes the state, and compiles.

    Args:
      trained: method to train.
      mesh: mesh of the devices.
      spec: shapes and types of a global batch.
      first_step: number of the step, for a method whose first ones differ.

    Raises:
      JaxRuntimeError: the devices have too little memory.
    """
    state = loop.init_train_state(trained, mesh, spec, seed=0)
    step = jax.device_put(np.int32(first_step), state.step.sharding)
    state = state.replace(step=step)
    step_fn, checks = loop.build_jitted_train_step(trained, mesh, state, spec)
    checks = jax.device_put(checks, sharding.replicated_sharding(mesh))
    self._batch = sharding.make_batch_sharder(mesh)(_random_batch(spec))
    self._state = state, checks
    self._step = step_fn.trace(*self._state, self._batch).lower().compile()
    self.operations = self._step.cost_analysis()['flops']

  def run(self) -> float:
    """Runs a step; returns its duration in seconds."""
    start = time.monotonic()
    *self._state, metrics = self._step(*self._state, self._batch)
    jax.block_until_ready(metrics)
    return time.monotonic() - start


def time_training_steps(
  trained: method.Method,
  mesh: Mesh,
  spec: types.BatchSpec,
  first_step: int = 0,
) -> StepTimes:
  """Times steps of a method on a random batch; see `CompiledStep`."""
  start = time.monotonic()
  step = CompiledStep(trained, mesh, spec, first_step)
  step.run()
  compiling = time.monotonic() - start
  return StepTimes(
    compiling, sum(step.run() for _ in range(NUM_STEPS)) / NUM_STEPS
  )


def _random_batch(spec: types.BatchSpec) -> Any:
  """Draws the rows of a global batch that belong to this process."""
  rng = np.random.default_rng(0)

  def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    shape = (leaf.shape[0] // jax.process_count(), *leaf.shape[1:])
    if leaf.dtype == np.bool_:
      return np.ones(shape, bool)
    if leaf.dtype == np.uint8:
      return rng.integers(0, 256, shape, np.uint8)
    if np.issubdtype(leaf.dtype, np.integer):
      return rng.integers(0, 2, shape).astype(leaf.dtype)  # Class ids.
    return rng.random(shape).astype(leaf.dtype)

  return jax.tree.map(draw, spec)
