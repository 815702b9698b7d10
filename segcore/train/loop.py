"""The one training loop: restore, step, log, evaluate, save.

It does not know which method it runs. Whatever happens at step k is decided by
the state and by k, so a run that was killed and started again ends bit for bit
as if nothing had happened.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from input_pipeline import batch as batch_lib
from input_pipeline import loader as loader_lib
from runtime import console, errors, metrics_file, progress
from segcore import types
from segcore.cost import flops, throughput
from segcore.distributed import sharding
from segcore.train import checkpoint, tensorboard, train_state
from segcore.train import method as method_lib
from segcore.train import workspace as workspace_lib

# An evaluator: the state to scalars and pictures, tagged '<split>/<what>'.
EvaluateFn = Callable[[train_state.TrainState], tensorboard.Summaries]


@dataclasses.dataclass(frozen=True)
class OperationOptions:
  """How a run is carried out; changes nothing of what it computes.

  Attributes:
    log_every: steps between progress lines, lines of metrics.jsonl and
      TensorBoard points.
    save_every: steps between checkpoints.
    fsdp: devices over which large leaves of the state are split.
    record_ids: write the ids of each step's images (host 0's rows) to
      `ids.jsonl`.
    reading: threads and worker processes of the input pipeline.
  """

  log_every: int = 50
  save_every: int = 500
  fsdp: int = 1
  record_ids: bool = False
  reading: loader_lib.ReadOptions = loader_lib.ReadOptions()

  def __post_init__(self):
    for name in ('log_every', 'save_every', 'fsdp'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}: found {getattr(self, name)}, expected >= 1')


@dataclasses.dataclass(frozen=True)
class BestMetric:
  """Which of the evaluator's scalars says what the best state is."""

  metric: str
  higher_is_better: bool = True

  def improves(self, value: float, best: float | None) -> bool:
    """Whether the value beats the best one so far."""
    if best is None:
      return not math.isnan(value)
    return value > best if self.higher_is_better else value < best


@dataclasses.dataclass(frozen=True)
class TrainingSpec:
  """A method, its data, and how long.

  Attributes:
    method: what is trained.
    loader: its batches.
    num_steps: length of the training.
    seed: of the state's key.
    evaluate: scalars and pictures of a state, or None.
    evaluate_every: steps between evaluations; the last step always is one.
    best: what the best state is, or None to keep only the latest.
    loaded: subtrees to start from (see `Method.init`).
    summary: what else to say at the start: the optimizer in one line.
    hparams: settings that TensorBoard shows beside the curves.
    zero_terms_until: last step at which a term of the loss may be 0 by design.
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


def train(
  training: TrainingSpec,
  place: workspace_lib.Workspace,
  operation: OperationOptions,
  mesh: Mesh,
) -> train_state.TrainState:
  """Trains to the last step, from the newest checkpoint if there is one.

  Raises:
    UserError: a loss term is no longer finite, or the disk is full.
    Preempted: the machine asked to stop; the state is saved.
  """
  meter = throughput.GoodputMeter()
  with checkpoint.Checkpoints(place.directory) as checkpoints:
    with meter.timed('start'):
      spec = training.loader.element_spec()
      start, state = _restore_or_init(training, spec, mesh, checkpoints)
    _report(training, state, place, start, mesh)
    with (
      _Log(training, place, start, mesh, meter) as log,
      training.loader.start(start) as batches,
    ):
      batches = itertools.islice(batches, training.num_steps - start)
      if operation.record_ids:
        batches = _recorded(batches, log.ids, start)
      run = _Run(training, place, operation, checkpoints, log)
      step, watch = build_step(training.method, mesh, state, spec)
      if log.peak:
        # The call below is traced but once.
        log.operations = flops.count_jaxpr(
          step.trace(state, watch, spec).jaxpr
        ).total
      return run.steps(
        state,
        step,
        jax.device_put(watch, sharding.replicated(mesh)),
        loader_lib.prefetch(batches, sharding.make_put_batch(mesh)),
        start,
      )


def _recorded(
  batches: Iterator[batch_lib.Batch], seen: metrics_file.MetricsFile, start: int
) -> Iterator[batch_lib.Batch]:
  """Writes down the ids of each batch on its way, before it is used."""
  for step, batch in enumerate(batches, start + 1):
    streams = batch if 'id' not in batch else {'': batch}
    seen.write(
      step,
      {
        f'{name}/ids'.lstrip('/'): [i.decode() for i in stream['id'].tolist()]
        for name, stream in streams.items()
      },
    )
    yield batch


class _Log:
  """Everything that is written along the way, from host 0."""

  def __init__(
    self,
    training: TrainingSpec,
    place: workspace_lib.Workspace,
    start: int,
    mesh: Mesh,
    meter: throughput.GoodputMeter,
  ):
    self.mesh = mesh
    self.meter = meter
    self.peak = throughput.peak_flops(mesh)
    self.operations = 0
    # Beside the metrics, which are the same for the same steps.
    self.speeds = metrics_file.MetricsFile(
      place.directory / 'speed.jsonl', step=start
    )
    self.metrics_file = metrics_file.MetricsFile(
      place.directory / 'metrics.jsonl', step=start
    )
    self.ids = metrics_file.MetricsFile(
      place.directory / 'ids.jsonl', step=start
    )
    self.progress = console.ProgressLine(
      place.directory.name,
      start,
      training.num_steps,
      training.loader.batch_size,
    )
    self.silent = ZeroTermMonitor(training.zero_terms_until)
    self.writer = tensorboard.open_writer(
      place.directory / 'tensorboard', start
    )
    self.writer.write_hparams(training.hparams)
    if start == 0 and jax.process_index() == 0:
      # Indented, so that TensorBoard's Markdown keeps its columns.
      table = (place.directory / _PARAMETERS).read_text().splitlines()
      text = '\n'.join(f'    {line}' for line in table)
      self.writer.write_texts(0, {'parameters': text})

  def __enter__(self) -> '_Log':
    return self

  def __exit__(self, *exception) -> None:
    self.writer.close()
    self.metrics_file.flush()
    self.ids.flush()
    self.speeds.flush()

  def flush(self) -> None:
    """Returns when everything is where it will be found."""
    self.writer.flush()
    self.metrics_file.flush()
    self.ids.flush()
    self.speeds.flush()

  def train(self, step: int, values: Mapping[str, float]) -> None:
    shown = {name: v for name, v in values.items() if '/' not in name}
    found = {
      **self.progress.report(step, shown),
      **self.meter.read(),
      **throughput.memory_usage(self.mesh),
    }
    if self.peak and 'steps_per_second' in found:
      found['mfu'] = throughput.model_flops_utilization(
        found['steps_per_second'], self.operations, self.peak
      )
    for line in self.silent.see(step, values):
      console.log(line)
    named = {f'train/{name}': value for name, value in values.items()}
    self.metrics_file.write(step, named)
    timed = {f'speed/{name}': value for name, value in found.items()}
    self.speeds.write(step, timed)
    self.writer.write_scalars(step, {**named, **timed})

  def evaluation(self, step: int, found: tensorboard.Summaries) -> None:
    shown = '  '.join(f'{n} {value:.4g}' for n, value in found.scalars.items())
    console.log(f'{self.progress.name} {step}  evaluated  {shown}')
    self.metrics_file.write(step, found.scalars)
    self.writer.write_scalars(step, found.scalars)
    self.writer.write_images(
      step, {tag: picture[None] for tag, picture in found.images.items()}
    )


class ZeroTermMonitor:
  """Notices terms of a loss that are 0 again and again, and tells of each once.

  A term is a scalar named 'loss_…'. Something that is learned from is never
  exactly 0 for long, unless nothing reaches it: a mask that is always empty, a
  bank that stays so.
  """

  def __init__(self, first_step: int):
    self._first_step = first_step
    self._times: dict[str, int] = {}

  def see(self, step: int, values: Mapping[str, float]) -> list[str]:
    """What is to be said after these values were logged."""
    said = []
    for name, value in values.items():
      if not name.startswith('loss_') or step <= self._first_step:
        continue
      self._times[name] = self._times.get(name, 0) + 1 if value == 0 else 0
      if self._times[name] == _MANY_ZEROS:
        self._times[name] = -(10**9)  # Never again.
        said.append(
          f'warning: {name} was exactly 0 whenever it was logged, for the last '
          f'{_MANY_ZEROS} times: nothing is learned from it'
        )
    return said


@dataclasses.dataclass
class _Run:
  """The steps of one training, and what is due after each."""

  training: TrainingSpec
  place: workspace_lib.Workspace
  operation: OperationOptions
  checkpoints: checkpoint.Checkpoints
  log: _Log

  def steps(self, state, step_fn, watch, batches, start: int):
    """Runs from `start` to the end; returns the last state."""
    timed = self.log.meter.timed
    for step in range(start + 1, self.training.num_steps + 1):
      with timed('input'):
        batch = next(batches)
      first = step == start + 1
      with timed('start') if first else contextlib.nullcontext():
        state, watch, metrics = step_fn(state, watch, batch)
        del batch  # Or one more would be kept on the devices.
        if first:
          jax.block_until_ready(metrics)
          self.log.progress.restart(step)
      last = step == self.training.num_steps
      stopping = self.place.preemption.reached()
      progress.record_activity(f'step {step} of {self.place.directory.name}')
      log_due = last or step % self.operation.log_every == 0
      save_due = last or stopping or step % self.operation.save_every == 0
      evaluate_due = self._evaluate_due(step)
      if log_due or save_due or evaluate_due:
        self._check_finite(watch)
      if log_due:
        self.log.train(step, _floats(metrics))
      if evaluate_due:
        self._evaluate(step, state)
      if save_due:
        # What is logged up to here must outlive a kill: it will not come again.
        self.log.flush()
        with timed('checkpoint'):
          self.checkpoints.save(step, state)
      if stopping:
        self.checkpoints.wait()
        raise workspace_lib.Preempted(
          f'{self.place.directory} saved at step {step}'
        )
    self.checkpoints.wait()
    return state

  def _evaluate_due(self, step: int) -> bool:
    every = self.training.evaluate_every
    if self.training.evaluate is None:
      return False
    return step == self.training.num_steps or (every and step % every == 0)

  def _evaluate(self, step: int, state: train_state.TrainState) -> None:
    timed = self.log.meter.timed
    with self.log.progress.paused(), timed('evaluate'):
      found = self.training.evaluate(state)
    self.log.evaluation(step, found)
    best = self.training.best
    if best and best.improves(
      found.scalars[best.metric], self.checkpoints.best_value(before=step)
    ):
      with timed('checkpoint'):
        self.checkpoints.save_best(step, state, found.scalars[best.metric])

  def _check_finite(self, watch: Mapping[str, jax.Array]) -> None:
    first = {
      name: int(step)
      for name, step in jax.device_get(watch).items()
      if step < _NEVER
    }
    if not first:
      return
    step = min(first.values())
    names = [name for name in first if first[name] == step]
    # 'loss' and 'grad_norm' follow from a term: name the term if there is one.
    terms = [n for n in names if n not in ('loss', 'grad_norm')] or names
    self.checkpoints.wait()
    raise errors.UserError(
      f'{", ".join(terms)} was not finite at step {step} of '
      f'{self.place.directory.name}: the checkpoint before it is kept in '
      f'{self.place.directory}; lower the learning rate or clip the gradient'
    )


# Logged values of a term that are 0, one after the other, before it is told.
_MANY_ZEROS = 10
# The table of parameters, in a stage's folder.
_PARAMETERS = 'parameters.txt'

# Value of the watch of a scalar that has always been finite.
_NEVER = np.iinfo(np.int32).max


def state_spec(
  method: method_lib.Method,
  mesh: Mesh,
  spec: types.BatchSpec,
  loaded: types.Params | None = None,
) -> train_state.TrainState:
  """Shape, type and place of all that a training changes; computes nothing.

  Args:
    method: what is trained.
    mesh: the devices.
    spec: of a global batch.
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


def build_step(
  method: method_lib.Method, mesh: Mesh, state, spec: types.BatchSpec
):
  """The method's step, which also notes when a scalar was not finite.

  Args:
    method: what is trained.
    mesh: the devices.
    state: arrays, or what `state_spec` returns.
    spec: of a global batch.

  Returns:
    The step, and the watch to start with, which is to be put on the devices:
    then one program serves all steps.
  """
  shardings = jax.tree.map(lambda x: x.sharding, state)
  whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  # Types include the mesh: only with it is the step traced just once.
  train_step = jax.jit(method.train_step)
  batch = jax.tree.map(lambda x: x.update(sharding=rows), spec)
  _, scalars = jax.eval_shape(train_step, state, batch)
  watch = dict.fromkeys(scalars, np.int32(_NEVER))

  def watched(state, watch, batch):
    new_state, metrics = train_step(state, batch)
    now = {
      name: jnp.where(jnp.isfinite(value), _NEVER, new_state.step)
      for name, value in metrics.items()
    }
    return new_state, jax.tree.map(jnp.minimum, watch, now), metrics

  step = jax.jit(
    watched,
    in_shardings=(shardings, whole, rows),
    out_shardings=(shardings, whole, whole),
    donate_argnums=0,
  )
  return step, watch


def _restore_or_init(
  training: TrainingSpec,
  spec: types.BatchSpec,
  mesh: Mesh,
  checkpoints: checkpoint.Checkpoints,
) -> tuple[int, train_state.TrainState]:
  placed = state_spec(training.method, mesh, spec, training.loaded)
  found = checkpoints.restore(placed)
  if found is not None:
    return found

  def init(rng, loaded):
    return training.method.init(rng, spec, loaded)

  # Inside one jit: no leaf may share memory with an input or another leaf,
  # since the step donates them all.
  jitted = jax.jit(
    init,
    out_shardings=jax.tree.map(lambda x: x.sharding, placed),
    compiler_options=_init_compiler_options(),
  )
  return 0, jitted(jax.random.PRNGKey(training.seed), training.loaded)


def _init_compiler_options() -> dict[str, int] | None:
  # On a CPU, optimizing a program that runs once takes four times as long as
  # compiling and running it plainly: 22 s against 6 s for a small network.
  if jax.default_backend() == 'cpu':
    return {'xla_backend_optimization_level': 0}
  return None


def _report(
  training: TrainingSpec,
  state,
  place: workspace_lib.Workspace,
  start: int,
  mesh: Mesh,
) -> None:
  """Says at the start what is trained, and keeps the table of parameters."""
  parts = {
    name: sum(x.size for x in jax.tree.leaves(tree))
    for name, tree in state.params.items()
  }
  console.log(
    f'{place.directory.name}: '
    + ('' if start == 0 else f'going on from step {start}; ')
    + f'{training.num_steps} steps of {training.loader.batch_size} images on '
    f'{mesh.size} {mesh.devices.flat[0].device_kind} device(s); '
    'parameters: '
    + ', '.join(f'{name} {size:,}' for name, size in parts.items())
    + (f'; {training.summary}' if training.summary else '')
  )
  if jax.process_index() == 0:
    table = parameter_overview.get_parameter_overview(state.params)
    (place.directory / _PARAMETERS).write_text(table + '\n')


def _floats(metrics: types.Metrics) -> dict[str, float]:
  return {name: float(v) for name, v in jax.device_get(metrics).items()}
