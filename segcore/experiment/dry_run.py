"""The cost of a training, computed before any data is read.

  for line in dry_run.report_dry_run(workload, compiles=False):
    print(line)

The costs follow from shapes, so that a network of any size takes seconds and
little memory. Then a few steps are timed on the devices at hand, unless they
would take a CPU minutes. XLA's own figures need the compiled program, which
takes minutes for a large network.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from runtime import console, errors
from segcore import types
from segcore.cost import communication, flops, throughput
from segcore.cost import topology as topology_lib
from segcore.distributed import sharding
from segcore.experiment import step_timing
from segcore.models import segmenter
from segcore.train import loop, method, train_state

# Dense bfloat16 operations per second of a chip, as its vendor states them.
CHIPS = {
  **{chip.name: chip.peak_flops for chip in topology_lib.CHIPS.values()},
  'H100': 989e12,
}
# Shares of that speed that trainings typically reach.
EFFICIENCIES = (0.3, 0.4, 0.5)
# The share assumed for the predicted time of a step.
EFFICIENCY = 0.4
# Operations of a step, on all devices, above which a CPU does not try it.
_MAX_CPU_FLOPS = 5e11
# Numbers of devices for which weak scaling is predicted.
_WEAK_SCALING = (1, 4, 8, 64, 256, 1024)

_PARTS = segmenter.SUBMODULES


@dataclasses.dataclass(frozen=True)
class Workload:
  """A training, described without its data.

  Attributes:
    build: function that builds the method; its argument is whether activations
      are recomputed in the backward pass (remat).
    remat: whether the training itself uses remat.
    batch_spec: shapes and types of a global batch.
    batch_size: global number of images of a step.
    num_steps: number of steps of the training.
    image_size: (height, width) of an image of the forward pass, in pixels.
    mesh: mesh of the devices.
    accumulate: number of parts of a batch whose gradients are accumulated.
    notes: further lines of the report.
    first_step: step that is timed, after a warm-up of cheaper steps.
  """

  build: Callable[[bool], method.Method]
  remat: bool
  batch_spec: types.BatchSpec
  batch_size: int
  num_steps: int
  image_size: tuple[int, int]
  mesh: Mesh
  accumulate: int = 1
  notes: tuple[str, ...] = ()
  first_step: int = 0


class Cost(NamedTuple):
  """The cost of a training that follows from shapes alone.

  Attributes:
    parameters: number of parameters by part.
    forward: nominal operations of a forward pass of one image, by part.
    step: nominal operations of a step by part, without those that remat adds.
    in_while: operations of a step in loops, counted for one iteration.
    state_bytes: size of parameters, batch statistics and optimizer slots on a
      device, in bytes.
  """

  parameters: Mapping[str, int]
  forward: Mapping[str, int]
  step: Mapping[str, int]
  in_while: int
  state_bytes: int


class Compiled(NamedTuple):
  """XLA's figures of a compiled step, for one device.

  Attributes:
    operations: number of all arithmetic operations, without those on padding;
      the body of a loop counts once.
    arguments: size of state and batch in bytes.
    temporaries: size of the values that exist within a step only, in bytes.
    peak: size of arguments, results and temporaries in bytes; results in
      donated buffers count once.
    exchanged: collectives of a step.
  """

  operations: float
  arguments: int
  temporaries: int
  peak: int
  exchanged: tuple[communication.Collective, ...] = ()


def count_dry_run_cost(workload: Workload) -> Cost:
  """Counts parameters, operations and bytes from the shapes.

  Raises:
    UserError: a parameter group matches nothing.
  """
  trained = workload.build(False)
  state = loop.train_state_spec(trained, workload.mesh, workload.batch_spec)
  image = jax.ShapeDtypeStruct((1, *workload.image_size, 3), jnp.float32)
  step = flops.count_jaxpr_flops(_traced(workload, trained, state).jaxpr)
  return Cost(
    parameters={
      part: sum(x.size for x in jax.tree.leaves(state.params.get(part, ())))
      for part in _PARTS
    },
    forward=flops.count_flops(trained.predict, state, image).by_part(_PARTS),
    step=step.by_part(_PARTS),
    in_while=step.in_while,
    state_bytes=state_bytes_per_device(state),
  )


def compile_dry_run_step(workload: Workload, remat: bool) -> Compiled:
  """Compiles the training step for the devices of the mesh.

  Args:
    workload: the training.
    remat: whether activations are recomputed in the backward pass.
  """
  trained = workload.build(remat)
  state = loop.train_state_spec(trained, workload.mesh, workload.batch_spec)
  compiled = _traced(workload, trained, state).lower().compile()
  memory = compiled.memory_analysis()
  arguments = memory.argument_size_in_bytes
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Compiled(
    operations=compiled.cost_analysis()['flops'],
    arguments=arguments,
    temporaries=memory.temp_size_in_bytes,
    peak=arguments + results + memory.temp_size_in_bytes,
    exchanged=tuple(communication.list_collectives(compiled)),
  )


def place_dry_run_on(
  workload: Workload, topology: topology_lib.Topology
) -> Workload:
  """Describes the same training, of the same global batch, on other devices.

  Args:
    workload: the training, on the devices at hand.
    topology: the other devices.

  Raises:
    UserError: the batch, or a part of it, does not divide among them.
  """
  mesh = sharding.make_mesh(workload.mesh.shape['fsdp'], topology.devices())
  parts = mesh.size * workload.accumulate
  if workload.batch_size % parts:
    among = f'{mesh.size} devices' + (
      f' x {workload.accumulate} parts' if workload.accumulate > 1 else ''
    )
    raise errors.UserError(
      f'--topology={topology}: a batch of {workload.batch_size} images does '
      f'not divide among {among}: name fewer devices, or another --stage'
    )
  return dataclasses.replace(workload, mesh=mesh)


def state_bytes_per_device(state: Any) -> int:
  """Computes the size of a state on one device, in bytes.

  Args:
    state: tree of arrays, or of their shapes and shardings.
  """
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(state)
  )


def report_dry_run(
  workload: Workload,
  compiles: bool,
  topology: topology_lib.Topology | None = None,
) -> Iterator[str]:
  """Yields the lines of the report on a workload, as they become known.

  Args:
    workload: training to report on.
    compiles: whether XLA's figures are reported, too, which takes minutes.
    topology: devices to compile for, instead of those of the workload.

  Raises:
    UserError: the batch does not divide among the devices.
  """
  return _report(
    place_dry_run_on(workload, topology) if topology else workload,
    compiles,
    topology,
  )


def _report(
  workload: Workload, compiles: bool, topology: topology_lib.Topology | None
) -> Iterator[str]:
  costs = count_dry_run_cost(workload)
  yield from workload.notes
  devices, parts = workload.mesh.size, workload.accumulate
  yield (
    f'{workload.num_steps:,} steps of {workload.batch_size:,} images of '
    f'{"x".join(map(str, workload.image_size))} ({_many(devices, "device")} x '
    f'{_many(parts, "part")} x {workload.batch_size // (devices * parts)}): '
    f'{workload.num_steps * workload.batch_size:,} images seen'
  )
  yield ''
  step = sum(costs.step.values())
  unit, size = ('G', 1e9) if sum(costs.forward.values()) > 1e9 else ('M', 1e6)
  yield from _table(
    ('', *_PARTS, 'other', 'all'),
    [
      _row('parameters', costs.parameters, '{:,.0f}'),
      _row(f'forward, {unit}FLOPs an image', costs.forward, '{:,.1f}', size),
      _row(
        f'step, {unit}FLOPs an image',
        costs.step,
        '{:,.1f}',
        size * workload.batch_size,
      ),
    ],
  )
  yield ''
  yield 'FLOPs are nominal: 2 a multiply-add, the same with and without remat'
  if costs.in_while:
    share = costs.in_while / step
    yield f'{share:.0%} of them are one iteration of loops that may have more'
  yield (
    f'parameters, statistics and optimizer: {_bytes(costs.state_bytes)} a '
    'device'
  )
  yield ''
  if topology:
    yield from _elsewhere(workload, step, topology)
    return
  yield from _times(workload, step)
  yield ''
  yield from _timed(workload, step)
  if compiles:
    yield ''
    yield from _compiler(workload)


def _times(workload: Workload, step: int) -> Iterator[str]:
  """Yields the time of all steps on some chips."""
  total, chips = step * workload.num_steps, workload.mesh.size
  head = [f'at {part:.0%}' for part in EFFICIENCIES]
  rows = []
  for name, speed in CHIPS.items():
    times = (
      throughput.arithmetic_seconds(total, speed, chips, part)
      for part in EFFICIENCIES
    )
    rows.append(
      (
        f'{name}, {speed / 1e12:.0f} TFLOP/s',
        *(console.format_duration(t) if t >= 1 else '< 1s' for t in times),
      )
    )
  yield (
    f'{total:.3g} FLOPs in all; without remat, evaluations and waiting for '
    'data:'
  )
  yield from _table((f'{_many(chips, "chip")}, bfloat16', *head), rows)


def _timed(workload: Workload, step: int) -> Iterator[str]:
  """Yields the time of steps on the devices at hand, and of all steps."""
  device = workload.mesh.devices.flat[0]
  if device.platform == 'cpu' and step > _MAX_CPU_FLOPS:
    yield f'not timed here: {step:.3g} FLOPs a step take a CPU minutes'
    return
  yield f'timing {step_timing.NUM_STEPS} steps here: compiling, about a minute'
  try:
    times = step_timing.time_training_steps(
      workload.build(workload.remat),
      workload.mesh,
      workload.batch_spec,
      workload.first_step,
    )
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    yield 'this does not fit into memory: more devices, remat or accumulate'
    return
  yield (
    f'timed here on {workload.mesh.size} x {device.device_kind}: '
    f'{times.step:.3g} s a step, {console.format_duration(times.compiling)} of '
    f'compiling; all {workload.num_steps:,} steps '
    f'{console.format_duration(times.step * workload.num_steps)}, without '
    'evaluations and waiting for data'
  )


def _elsewhere(
  workload: Workload, step: int, topology: topology_lib.Topology
) -> Iterator[str]:
  """Yields the figures of the compiler and the data sheets for a topology."""
  with topology_lib.without_compilation_cache():
    compiled = compile_dry_run_step(workload, workload.remat)
  count, chip = topology.num_devices, topology.chip
  room = f' of {_bytes(int(chip.memory))}' if chip else ''
  remat = 'with' if workload.remat else 'without'
  yield f'compiled for {topology}, {remat} remat'
  yield (
    f'memory a device: arguments {_bytes(compiled.arguments)}, temporaries '
    f'{_bytes(compiled.temporaries)}, peak {_bytes(compiled.peak)}{room}'
  )
  if chip and compiled.peak > chip.memory:
    yield 'this does not fit: more devices, remat or accumulate'
  yield (
    f'FLOPs a device: {step / count:.4g} nominal, '
    f'{compiled.operations:.4g} by XLA'
  )
  yield ''
  yield from _table(
    ('exchanged a step', 'number', 'bytes a device'),
    [
      (kind, f'{len(sizes):,}', _bytes(sum(sizes)))
      for kind, sizes in communication.collective_bytes_by_kind(
        compiled.exchanged
      ).items()
    ]
    or [('nothing', '-', '-')],
  )
  if workload.accumulate > 1:
    yield 'XLA counts the loop over the parts of a batch as one iteration.'
  yield ''
  yield from _weak_scaling(workload, step, topology, compiled)


def _weak_scaling(
  workload: Workload,
  step: int,
  topology: topology_lib.Topology,
  compiled: Compiled,
) -> Iterator[str]:
  """Yields the predicted time of a step on several numbers of devices."""
  count, chip = topology.num_devices, topology.chip
  chips = [chip] if chip else topology_lib.CHIPS.values()
  counts = sorted({*_WEAK_SCALING, count})
  rows = []
  for each in chips:
    compute = throughput.arithmetic_seconds(
      step // count, each.peak_flops, 1, EFFICIENCY
    )
    times = communication.weak_scaling_seconds(
      compute, compiled.exchanged, each, count, counts
    )
    rows.append(
      (f'{each.name}, a step', *(_time(t) if t else '-' for t in times))
    )
    rows.append(
      ('  speed a device', *(f'{compute / t:.1%}' if t else '-' for t in times))
    )
    here = compute + communication.collective_seconds(
      compiled.exchanged, each, count, count
    )
    yield (
      f'{each.name}: a step takes {_time(compute)} of arithmetic at '
      f'{EFFICIENCY:.0%} of {each.peak_flops / 1e12:.0f} TFLOP/s and '
      f'{_time(here - compute)} of exchanges over two links of '
      f'{each.link_bandwidth / 1e9:.0f} GB/s, so all steps '
      f'{console.format_duration(here * workload.num_steps)}'
    )
  yield ''
  yield (
    f'weak scaling, {workload.batch_size / count:g} images a device '
    '(predicted; no overlap, no latency):'
  )
  yield from _table(('devices', *(f'{n:,}' for n in counts)), rows)


def _time(duration: float) -> str:
  return f'{duration:.3g} s' if duration >= 1 else f'{duration * 1e3:.3g} ms'


def _compiler(workload: Workload) -> Iterator[str]:
  """Yields XLA's figures, without and with remat."""
  devices = workload.mesh.size
  platform = workload.mesh.devices.flat[0].platform
  yield f"XLA's figures for {platform}; other devices take other memory:"
  rows = []
  for remat in (False, True):
    compiled = compile_dry_run_step(workload, remat)
    here = ' (here)' if remat == workload.remat else ''
    an_image = compiled.operations * devices / workload.batch_size
    rows.append(
      (
        f'{"with" if remat else "without"} remat{here}',
        f'{an_image / 1e9:,.3f}',
        *map(_bytes, compiled[1:4]),
      )
    )
  yield from _table(
    ('a device', 'GFLOPs an image', *Compiled._fields[1:4]), rows
  )
  if workload.accumulate > 1:
    yield 'XLA counts the loop over the parts of a batch as one iteration.'


def _traced(
  workload: Workload, trained: method.Method, state: train_state.TrainState
) -> jax.stages.Traced:
  """Traces the training step for the mesh."""
  step, checks = loop.build_jitted_train_step(
    trained, workload.mesh, state, workload.batch_spec
  )
  return step.trace(state, checks, workload.batch_spec)


def _bytes(size: int) -> str:
  return f'{size / 1e9:,.2f} GB' if size >= 1e8 else f'{size / 1e6:.1f} MB'


def _many(number: int, thing: str) -> str:
  return f'{number} {thing}{"s" * (number > 1)}'


def _row(
  name: str, values: Mapping[str, int], form: str, unit: float = 1
) -> tuple[str, ...]:
  """Formats a row of the table of parts."""
  columns = [values.get(part, 0) for part in (*_PARTS, 'other')]
  shown = (
    form.format(number / unit) if number else '-'
    for number in (*columns, sum(columns))
  )
  return name, *shown


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
  """Yields aligned lines: the first column to the left, numbers right."""
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  for row in (head, *rows):
    name, *values = (
      text.ljust(width) if i == 0 else text.rjust(width)
      for i, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    yield '   '.join((name, *values))
