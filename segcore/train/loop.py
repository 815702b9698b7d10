"""The training loop: restore, then step, log, evaluate and save.

The loop does not know which method it trains. Everything at step k depends on
the state and on k alone, so a run that was killed and restarted ends with the
same bits as an uninterrupted one.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epy
from jax.sharding import Mesh

from input_pipeline import loader as loader_lib
from runtime import console, errors, interrupts, progress
from segcore import types
from segcore.cost import throughput
from segcore.distributed import sharding
from segcore.train import (
  callbacks,
  checkpoint,
  feed,
  run_log,
  tensorboard,
  train_state,
)
from segcore.train import method as method_lib
from segcore.train import workspace as workspace_lib
from segcore.train.operation_options import OperationOptions

with epy.lazy_imports():
  from clu import parameter_overview

# An evaluation: from the state to scalars and pictures, tagged
# '<split>/<name>'.
EvaluateFn = Callable[[train_state.TrainState], tensorboard.Summaries]

# Steps after a start that are printed whatever the interval of the log.
_NUM_FIRST_STEPS = 3
# Step of a scalar that has always been finite, in `nonfinite_steps`.
_NEVER = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class BestMetric:
  """Scalar of the evaluation by which the best state is chosen.

  Attributes:
    metric: tag of the scalar: 'val/miou'.
    higher_is_better: whether the largest value is the best; else the smallest.
  """

  metric: str
  higher_is_better: bool = True

  def improves(self, value: float, best: float | None) -> bool:
    """Returns whether a value is better than the best one so far."""
    if best is None:
      return not math.isnan(value)
    return value > best if self.higher_is_better else value < best


@dataclasses.dataclass(frozen=True)
class TrainingSpec:
  """A method, its data and the length of its training.

  Attributes:
    method: the method to train.
    loader: loader of the training batches.
    num_steps: length of the training.
    seed: seed of the state's PRNG key.
    evaluate: function from a state to scalars and pictures, or None.
    evaluate_every: steps between evaluations; 0: only after the last step.
    best: metric of the best state, or None to keep only the latest ones.
    loaded: subtrees of parameters to start from (see `Method.init`).
    summary: text for the first line of the log: the optimizer.
    hparams: settings that TensorBoard shows beside the curves.
    zero_terms_until: last step at which a term of the loss may be 0 by design.
    refresh: part of the state that is computed anew between steps, or None.
  """

  method: method_lib.Method
  loader: loader_lib.Loader
  num_steps: int
  seed: int
  evaluate: EvaluateFn | None = None
  evaluate_every: int = 0
  best: BestMetric | None = None
  loaded: types.Params | None = None
  summary: str = ''
  hparams: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  zero_terms_until: int = 0
  refresh: callbacks.Refresh | None = None


def run_training_loop(
  training: TrainingSpec,
  workspace: workspace_lib.Workspace,
  operation: OperationOptions,
  mesh: Mesh,
) -> train_state.TrainState:
  """Trains to the last step, from the newest checkpoint if there is one.

  Args:
    training: method, data and length of the training.
    workspace: workspace of the stage.
    operation: options of logging, saving and hardware.
    mesh: the devices.

  Raises:
    UserError: a loss term is no longer finite, or the disk is full.
    Preempted: the machine or the user asked to stop; the state is saved.
  """
  meter = throughput.GoodputMeter()
  with checkpoint.Checkpoints(workspace.directory) as checkpoints:
    with meter.timed('start'):
      spec = training.loader.element_spec()
      start, state = _restore_or_init(training, spec, mesh, checkpoints)
    _log_start(training, state, workspace, start, mesh)
    with (
      run_log.RunLog(
        workspace.directory,
        start,
        training.num_steps,
        training.loader.batch_size,
        mesh,
        meter,
        training.hparams,
        training.zero_terms_until,
      ) as log,
      feed.BatchFeed(
        training.loader,
        training.num_steps,
        sharding.make_batch_sharder(mesh),
        log.record_ids if operation.record_ids else None,
      ) as batches,
    ):
      step_fn, nonfinite_steps = build_jitted_train_step(
        training.method, mesh, state, spec
      )
      # The first step reuses this trace.
      log.count_step_flops(step_fn, state, nonfinite_steps, spec)
      run = _Run(training, workspace, operation, checkpoints, log)
      with interrupts.stopping_gently(
        workspace.preemption.request,
        f'{workspace.directory.name}: stopping after this step, which is '
        'saved; Ctrl-C again quits at once',
      ):
        return run.train(
          state,
          step_fn,
          jax.device_put(nonfinite_steps, sharding.replicated_sharding(mesh)),
          batches,
          start,
        )


@dataclasses.dataclass
class _Run:
  """The steps of one training and its callbacks."""

  training: TrainingSpec
  workspace: workspace_lib.Workspace
  operation: OperationOptions
  checkpoints: checkpoint.Checkpoints
  log: run_log.RunLog
  save_timer: callbacks.IntervalTimer = dataclasses.field(init=False)

  def __post_init__(self):
    operation = self.operation
    self.save_timer = callbacks.IntervalTimer(
      operation.save_minutes, compare_every=operation.log_every
    )

  def train(self, state, step_fn, nonfinite_steps, batches, start: int):
    """Runs the steps after `start`; returns the last state."""
    periodic = self._callbacks()
    for step in range(start + 1, self.training.num_steps + 1):
      with self.log.meter.timed('input'):
        batch = batches.next(state, step - 1)
      state = self._refresh(state, step - 1)
      is_first = step == start + 1
      with self._timing_start(step) if is_first else contextlib.nullcontext():
        state, nonfinite_steps, metrics = step_fn(state, nonfinite_steps, batch)
        del batch  # Or one more would be kept on the devices.
        if is_first:
          jax.block_until_ready(metrics)
      # A collective of all hosts: it is called after every step.
      stopping = self.workspace.preemption.reached()
      name = self.workspace.directory.name
      progress.record_activity(f'step {step} of {name}')
      is_last = step == self.training.num_steps
      due = [c for c in periodic if c.is_due(step, is_last, stopping)]
      if due:
        self._check_finite(nonfinite_steps)
      elif step - start <= _NUM_FIRST_STEPS:
        self._print(step, metrics)
      for callback in due:
        callback.run(callbacks.StepResult(step, state, metrics))
      if stopping:
        self.checkpoints.wait()
        raise workspace_lib.Preempted(
          f'{self.workspace.directory} saved at step {step}'
        )
    self.checkpoints.wait()
    return state

  def _refresh(self, state: train_state.TrainState, num_finished: int):
    """Returns the state with the part computed anew that is due, if one is."""
    refresh = self.training.refresh
    if refresh is None or not refresh.is_due(num_finished):
      return state
    with self.log.progress.paused(), self.log.meter.timed('refresh'):
      return refresh.compute(state)

  @contextlib.contextmanager
  def _timing_start(self, step: int) -> Iterator[None]:
    """Counts the first step, which compiles, as start-up time."""
    console.print_line(
      f'{self.workspace.directory.name}: compiling the training step, about a '
      'minute; more for a large network'
    )
    with self.log.meter.timed('start'):
      yield
      self.log.progress.restart(step)

  def _callbacks(self) -> list[callbacks.Callback]:
    """Builds the callbacks, in the order in which they run."""
    periodic = [callbacks.Callback(self._log, self.operation.log_every)]
    if self.training.evaluate is not None:
      every = self.training.evaluate_every
      periodic.append(callbacks.Callback(self._evaluate, every))
    periodic.append(
      callbacks.Callback(
        self._save,
        self.operation.save_every,
        on_preemption=True,
        timer=self.save_timer,
      )
    )
    return periodic

  def _print(self, step: int, metrics: types.Metrics) -> None:
    """Prints one of the first steps, which shows that the training runs."""
    values = jax.device_get(metrics)
    self.log.print_step(step, {n: float(v) for n, v in values.items()})

  def _log(self, result: callbacks.StepResult) -> None:
    values = jax.device_get(result.metrics)
    self.log.log_step(result.step, {n: float(v) for n, v in values.items()})

  def _evaluate(self, result: callbacks.StepResult) -> None:
    timed = self.log.meter.timed
    with self.log.progress.paused(), timed('evaluate'):
      summaries = self.training.evaluate(result.state)
    self.log.log_evaluation(result.step, summaries)
    best = self.training.best
    if best and best.improves(
      summaries.scalars[best.metric],
      self.checkpoints.best_value(before=result.step),
    ):
      with timed('checkpoint'):
        self.checkpoints.save_best(
          result.step, result.state, summaries.scalars[best.metric]
        )

  def _save(self, result: callbacks.StepResult) -> None:
    # Logs up to this step must survive a kill: a resumed run will not write
    # them again.
    self.log.flush()
    with self.log.meter.timed('checkpoint'):
      self.checkpoints.save(result.step, result.state)
    self.save_timer.restart()

  def _check_finite(self, nonfinite_steps: Mapping[str, jax.Array]) -> None:
    """Raises UserError if a scalar of any step so far was not finite."""
    first = {
      name: int(step)
      for name, step in jax.device_get(nonfinite_steps).items()
      if step < _NEVER
    }
    if not first:
      return
    step = min(first.values())
    names = [name for name in first if first[name] == step]
    # 'loss' and 'grad_norm' follow from a term: name the term if there is one.
    terms = [n for n in names if n not in ('loss', 'grad_norm')] or names
    self.checkpoints.wait()
    directory = self.workspace.directory
    raise errors.UserError(
      f'{", ".join(terms)} was not finite at step {step} of {directory.name}: '
      f'the checkpoint before it is kept in {directory}; lower the learning '
      'rate or clip the gradient'
    )


def train_state_spec(
  method: method_lib.Method,
  mesh: Mesh,
  spec: types.BatchSpec,
  loaded: types.Params | None = None,
) -> train_state.TrainState:
  """Returns shapes, types and shardings of the state; computes nothing.

  Args:
    method: the method to train.
    mesh: the devices.
    spec: shapes and types of a global batch.
    loaded: subtrees to start from, or their shapes.

  Raises:
    UserError: a parameter group matches nothing.
  """
  rng = jax.eval_shape(jax.random.PRNGKey, 0)
  try:
    shapes = jax.eval_shape(
      lambda rng, loaded: method.init(rng, spec, loaded), rng, loaded
    )
  except ValueError as error:
    raise errors.UserError(' '.join(str(error).split())) from error
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    sharding.state_shardings(mesh, shapes),
  )


def build_jitted_train_step(
  method: method_lib.Method, mesh: Mesh, state: Any, spec: types.BatchSpec
) -> tuple[Callable[..., Any], dict[str, np.int32]]:
  """Builds the jitted step, which also records when a scalar was not finite.

  Non-finite scalars are recorded on the devices, so that a step need not wait
  for a check on the host.

  Args:
    method: the method to train.
    mesh: the devices.
    state: arrays, or what `train_state_spec` returns.
    spec: shapes and types of a global batch.

  Returns:
    step_fn: (state, nonfinite_steps, batch) -> (state, nonfinite_steps,
      metrics); the state is donated.
    nonfinite_steps: int32 by name of a scalar, the first step at which it was
      not finite; to be replicated on the devices before the first step, so that
      one program serves all steps.
  """
  shardings = jax.tree.map(lambda x: x.sharding, state)
  whole, rows = (
    sharding.replicated_sharding(mesh),
    sharding.batch_sharding(mesh),
  )
  # Types include the mesh: only with it is the step traced just once.
  train_step = jax.jit(method.train_step)
  batch = jax.tree.map(lambda x: x.update(sharding=rows), spec)
  _, scalars = jax.eval_shape(train_step, state, batch)
  nonfinite_steps = dict.fromkeys(scalars, np.int32(_NEVER))

  def recording_step(state, nonfinite_steps, batch):
    new_state, metrics = train_step(state, batch)
    nonfinite_now = {
      name: jnp.where(jnp.isfinite(value), _NEVER, new_state.step)
      for name, value in metrics.items()
    }
    nonfinite_steps = jax.tree.map(jnp.minimum, nonfinite_steps, nonfinite_now)
    return new_state, nonfinite_steps, metrics

  step_fn = jax.jit(
    recording_step,
    in_shardings=(shardings, whole, rows),
    out_shardings=(shardings, whole, whole),
    donate_argnums=0,
  )
  return step_fn, nonfinite_steps


def _restore_or_init(
  training: TrainingSpec,
  spec: types.BatchSpec,
  mesh: Mesh,
  checkpoints: checkpoint.Checkpoints,
) -> tuple[int, train_state.TrainState]:
  """Returns the step and state to start from."""
  abstract_state = train_state_spec(
    training.method, mesh, spec, training.loaded
  )
  restored = checkpoints.restore(abstract_state)
  if restored is not None:
    return restored
  return 0, init_train_state(
    training.method, mesh, spec, training.seed, training.loaded
  )


def init_train_state(
  method: method_lib.Method,
  mesh: Mesh,
  spec: types.BatchSpec,
  seed: int,
  loaded: types.Params | None = None,
) -> train_state.TrainState:
  """Initializes the state of a method on the devices.

  Args:
    method: method to train.
    mesh: mesh of the devices.
    spec: shapes and types of a global batch.
    seed: seed of the state's PRNG key.
    loaded: subtrees of parameters to start from.

  Raises:
    UserError: a parameter group matches nothing.
  """
  abstract_state = train_state_spec(method, mesh, spec, loaded)

  def init(rng, loaded):
    return method.init(rng, spec, loaded)

  # Inside one jit: no leaf may share memory with an input or another leaf,
  # since the step donates them all.
  jitted = jax.jit(
    init,
    out_shardings=jax.tree.map(lambda x: x.sharding, abstract_state),
    compiler_options=train_state.init_compiler_options(),
  )
  return jitted(jax.random.PRNGKey(seed), loaded)


def _log_start(
  training: TrainingSpec,
  state: train_state.TrainState,
  workspace: workspace_lib.Workspace,
  start: int,
  mesh: Mesh,
) -> None:
  """Logs what is trained, and writes the table of parameters."""
  sizes = {
    name: sum(x.size for x in jax.tree.leaves(tree))
    for name, tree in state.params.items()
  }
  console.print_line(
    f'{workspace.directory.name}: '
    + ('' if start == 0 else f'resuming from step {start}; ')
    + f'{training.num_steps} steps of {training.loader.batch_size} images on '
    f'{mesh.size} {mesh.devices.flat[0].device_kind} device(s); '
    'parameters: '
    + ', '.join(f'{name} {size:,}' for name, size in sizes.items())
    + (f'; {training.summary}' if training.summary else '')
  )
  if jax.process_index() == 0:
    table = parameter_overview.get_parameter_overview(state.params)
    path = workspace.directory / run_log.PARAMETERS_FILE
    path.write_text(table + '\n')
