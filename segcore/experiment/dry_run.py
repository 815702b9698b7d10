"""What a training would compute and cost, before any data is read.

  for line in dry_run.report(plan, compiles=False):
    print(line)

Everything follows from shapes: nothing is initialized, nothing is run, and a
network of any size takes seconds and little memory. Only XLA's own figures need
the program to be compiled, which for a large network takes minutes.
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
from segcore.cost import communication, flops
from segcore.cost import topology as topology_lib
from segcore.distributed import sharding
from segcore.models import segmenter
from segcore.train import loop, method, train_state

# Dense bfloat16 operations per second of a chip, as its vendor states them.
CHIPS = {
  **{chip.name: chip.peak_flops for chip in topology_lib.CHIPS.values()},
  'H100': 989e12,
}
# Parts of them that trainings get out of a chip.
EFFICIENCIES = (0.3, 0.4, 0.5)
# The part that a predicted step is based on.
EFFICIENCY = 0.4
# Numbers of devices for which weak scaling is predicted.
_GROWING = (1, 4, 8, 64, 256, 1024)

_PARTS = segmenter.SUBMODULES


@dataclasses.dataclass(frozen=True)
class Plan:
  """A training without its data.

  Attributes:
    build: the method; given True, recomputing in the backward pass (remat).
    remat: whether the training itself does so.
    batch_spec: shapes and types of a global batch.
    batch_size: images of a step, globally.
    num_steps: length of the training.
    image_size: height and width of an image of the forward pass.
    mesh: the devices.
    accumulate: equal parts in which a batch is looked at.
    notes: what else is to be said, a line each.
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


class Cost(NamedTuple):
  """What a training costs by the shapes alone.

  Attributes:
    parameters: how many, by part.
    forward: nominal operations of a prediction of one image, by part.
    step: nominal operations of a step, by part, without what remat adds.
    in_while: operations of a step of which only one round is counted.
    state_bytes: parameters, statistics and optimizer's slots on a device.
  """

  parameters: Mapping[str, int]
  forward: Mapping[str, int]
  step: Mapping[str, int]
  in_while: int
  state_bytes: int


class Compiled(NamedTuple):
  """What XLA says of a compiled step, on one device.

  Attributes:
    operations: all arithmetic; without padded taps, a loop's body once.
    arguments: bytes of the state and the batch.
    temporaries: bytes of all that lives within a step only.
    peak: bytes of arguments, results and temporaries; results that take the
      place of arguments count once.
    exchanged: what devices exchange.
  """

  operations: float
  arguments: int
  temporaries: int
  peak: int
  exchanged: tuple[communication.Collective, ...] = ()


def cost(plan: Plan) -> Cost:
  """Counts by the shapes.

  Raises:
    UserError: a parameter group matches nothing.
  """
  trained = plan.build(False)
  state = loop.state_spec(trained, plan.mesh, plan.batch_spec)
  image = jax.ShapeDtypeStruct((1, *plan.image_size, 3), jnp.float32)
  step = flops.count_jaxpr(_traced(plan, trained, state).jaxpr)
  return Cost(
    parameters={
      part: sum(x.size for x in jax.tree.leaves(state.params.get(part, ())))
      for part in _PARTS
    },
    forward=flops.count(trained.predict, state, image).by_part(_PARTS),
    step=step.by_part(_PARTS),
    in_while=step.in_while,
    state_bytes=bytes_per_device(state),
  )


def compile_step(plan: Plan, remat: bool) -> Compiled:
  """Compiles the step of training for the devices of the mesh."""
  trained = plan.build(remat)
  state = loop.state_spec(trained, plan.mesh, plan.batch_spec)
  compiled = _traced(plan, trained, state).lower().compile()
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


def placed_on(plan: Plan, topology: topology_lib.Topology) -> Plan:
  """The same training on other devices; the global batch stays.

  Raises:
    UserError: the batch, or a part of it, does not divide among them.
  """
  mesh = sharding.make_mesh(plan.mesh.shape['fsdp'], topology.devices())
  parts = mesh.size * plan.accumulate
  if plan.batch_size % parts:
    among = f'{mesh.size} devices' + (
      f' x {plan.accumulate} parts' if plan.accumulate > 1 else ''
    )
    raise errors.UserError(
      f'--topology: found {topology}, but a batch of {plan.batch_size} images '
      f'does not divide among {among}: name fewer, or another stage by --stage'
    )
  return dataclasses.replace(plan, mesh=mesh)


def exchange_seconds(
  exchanged: Sequence[communication.Collective],
  chip: topology_lib.Chip,
  compiled_for: int,
  devices: int,
) -> float:
  """Time of exchanges around a ring, which uses two links of each chip.

  An all-reduce of B bytes among n devices sends 2·(n-1)/n·B from each, the
  others half of that or less. Latency and what is hidden behind arithmetic are
  left out. At a constant batch a device, what is summed stays as large as it
  is; what is gathered grows with the devices.

  Args:
    exchanged: by the program.
    chip: of all devices.
    compiled_for: devices of the program.
    devices: for which the time is wanted.
  """
  if devices == 1:
    return 0.0
  share = (devices - 1) / devices
  growth = devices / compiled_for
  sent = {
    'all-reduce': 2 * share,
    'all-gather': share * growth,
    'all-to-all': share,
    'reduce-scatter': devices - 1,  # Sizes are those of the result.
    'collective-permute': 1,
  }
  return sum(sent[c.kind] * c.size for c in exchanged) / (
    2 * chip.link_bandwidth
  )


def growing(
  compute: float,
  exchanged: Sequence[communication.Collective],
  chip: topology_lib.Chip,
  compiled_for: int,
  counts: Sequence[int],
) -> list[float | None]:
  """Time of a step on so many devices; None where no slice is that large.

  Args:
    compute: time of arithmetic, which stays.
    exchanged: by the program.
    chip: of all devices.
    compiled_for: devices of the program.
    counts: devices for which the times are wanted.
  """
  return [
    compute + exchange_seconds(exchanged, chip, compiled_for, n)
    if n <= chip.max_slice_chips
    else None
    for n in counts
  ]


def seconds(operations: int, speed: float, chips: int, part: float) -> float:
  """Time of so many operations.

  Args:
    operations: of all chips together.
    speed: of a chip, in operations per second.
    chips: that share them.
    part: of the speed that is reached, in (0, 1].
  """
  return operations / (speed * chips * part)


def bytes_per_device(state: Any) -> int:
  """Bytes of the leaves, or of the parts of them, that one device keeps."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(state)
  )


def report(
  plan: Plan,
  compiles: bool,
  topology: topology_lib.Topology | None = None,
) -> Iterator[str]:
  """Lines, as they become known.

  Args:
    plan: the training.
    compiles: whether XLA is asked too, which takes its time.
    topology: devices to compile for, instead of those of the plan.

  Raises:
    UserError: the batch does not divide among the devices.
  """
  return _report(
    placed_on(plan, topology) if topology else plan, compiles, topology
  )


def _report(
  plan: Plan, compiles: bool, topology: topology_lib.Topology | None
) -> Iterator[str]:
  found = cost(plan)
  yield from plan.notes
  devices, parts = plan.mesh.size, plan.accumulate
  yield (
    f'{plan.num_steps:,} steps of {plan.batch_size:,} images of '
    f'{"x".join(map(str, plan.image_size))} ({_many(devices, "device")} x '
    f'{_many(parts, "part")} x {plan.batch_size // (devices * parts)}): '
    f'{plan.num_steps * plan.batch_size:,} images seen'
  )
  yield ''
  step = sum(found.step.values())
  unit, size = ('G', 1e9) if sum(found.forward.values()) > 1e9 else ('M', 1e6)
  yield from _table(
    ('', *_PARTS, 'other', 'all'),
    [
      _row('parameters', found.parameters, '{:,.0f}'),
      _row(f'forward, {unit}FLOPs an image', found.forward, '{:,.1f}', size),
      _row(
        f'step, {unit}FLOPs an image',
        found.step,
        '{:,.1f}',
        size * plan.batch_size,
      ),
    ],
  )
  yield ''
  yield 'FLOPs are nominal: 2 a multiply-add, the same with and without remat'
  if found.in_while:
    share = found.in_while / step
    yield f'{share:.0%} of them are one round of a loop that may have more'
  yield (
    f'parameters, statistics and optimizer: {_bytes(found.state_bytes)} a '
    'device'
  )
  yield ''
  if topology:
    yield from _elsewhere(plan, step, topology)
    return
  yield from _times(plan, step)
  if compiles:
    yield ''
    yield from _compiler(plan)


def _times(plan: Plan, step: int) -> Iterator[str]:
  """How long all steps take on some chips."""
  total, chips = step * plan.num_steps, plan.mesh.size
  head = [f'at {part:.0%}' for part in EFFICIENCIES]
  rows = []
  for name, speed in CHIPS.items():
    times = (seconds(total, speed, chips, part) for part in EFFICIENCIES)
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


def _elsewhere(
  plan: Plan, step: int, topology: topology_lib.Topology
) -> Iterator[str]:
  """What the compiler and the sheets say of devices that are not here."""
  with topology_lib.without_compilation_cache():
    said = compile_step(plan, plan.remat)
  count, chip = topology.num_devices, topology.chip
  room = f' of {_bytes(int(chip.memory))}' if chip else ''
  yield f'compiled for {topology}, {"with" if plan.remat else "without"} remat'
  yield (
    f'memory a device: arguments {_bytes(said.arguments)}, temporaries '
    f'{_bytes(said.temporaries)}, peak {_bytes(said.peak)}{room}'
  )
  if chip and said.peak > chip.memory:
    yield 'this does not fit: more devices, remat or accumulate'
  yield (
    f'FLOPs a device: {step / count:.4g} nominal, {said.operations:.4g} by XLA'
  )
  yield ''
  yield from _table(
    ('exchanged a step', 'number', 'bytes a device'),
    [
      (kind, f'{len(sizes):,}', _bytes(sum(sizes)))
      for kind, sizes in by_kind(said.exchanged).items()
    ]
    or [('nothing', '-', '-')],
  )
  if plan.accumulate > 1:
    yield 'XLA shows a loop over the parts of a batch as one round.'
  yield ''
  chips = [chip] if chip else topology_lib.CHIPS.values()
  counts = sorted({*_GROWING, count})
  rows = []
  for each in chips:
    compute = seconds(step // count, each.peak_flops, 1, EFFICIENCY)
    times = growing(compute, said.exchanged, each, count, counts)
    rows.append(
      (f'{each.name}, a step', *(_time(t) if t else '-' for t in times))
    )
    rows.append(
      ('  speed a device', *(f'{compute / t:.1%}' if t else '-' for t in times))
    )
    here = compute + exchange_seconds(said.exchanged, each, count, count)
    yield (
      f'{each.name}: a step takes {_time(compute)} of arithmetic at '
      f'{EFFICIENCY:.0%} of {each.peak_flops / 1e12:.0f} TFLOP/s and '
      f'{_time(here - compute)} of exchanges over two links of '
      f'{each.link_bandwidth / 1e9:.0f} GB/s, so all steps '
      f'{console.format_duration(here * plan.num_steps)}'
    )
  yield ''
  yield (
    f'weak scaling, {plan.batch_size / count:g} images a device '
    '(predicted; no overlap, no latency):'
  )
  yield from _table(('devices', *(f'{n:,}' for n in counts)), rows)


def by_kind(
  exchanged: Sequence[communication.Collective],
) -> dict[str, list[int]]:
  """Sizes of exchanges by their kind, in bytes."""
  found: dict[str, list[int]] = {}
  for each in exchanged:
    found.setdefault(each.kind, []).append(each.size)
  return found


def _time(duration: float) -> str:
  return f'{duration:.3g} s' if duration >= 1 else f'{duration * 1e3:.3g} ms'


def _compiler(plan: Plan) -> Iterator[str]:
  """XLA's figures, without and with remat."""
  devices = plan.mesh.size
  platform = plan.mesh.devices.flat[0].platform
  yield f"XLA's figures for {platform}; other devices take other memory:"
  rows = []
  for remat in (False, True):
    said = compile_step(plan, remat)
    here = ' (here)' if remat == plan.remat else ''
    an_image = said.operations * devices / plan.batch_size
    rows.append(
      (
        f'{"with" if remat else "without"} remat{here}',
        f'{an_image / 1e9:,.3f}',
        *map(_bytes, said[1:4]),
      )
    )
  yield from _table(
    ('a device', 'GFLOPs an image', *Compiled._fields[1:4]), rows
  )
  if plan.accumulate > 1:
    yield 'XLA counts a loop over the parts of a batch as one round.'


def _traced(
  plan: Plan, trained: method.Method, state: train_state.TrainState
) -> jax.stages.Traced:
  """The step of training, as a program for the mesh."""
  step, watch = loop.build_step(trained, plan.mesh, state, plan.batch_spec)
  return step.trace(state, watch, plan.batch_spec)


def _bytes(size: int) -> str:
  return f'{size / 1e9:,.2f} GB' if size >= 1e8 else f'{size / 1e6:.1f} MB'


def _many(number: int, thing: str) -> str:
  return f'{number} {thing}{"s" * (number > 1)}'


def _row(
  name: str, values: Mapping[str, int], form: str, unit: float = 1
) -> tuple[str, ...]:
  """A row of the table of parts."""
  columns = [values.get(part, 0) for part in (*_PARTS, 'other')]
  shown = (
    form.format(number / unit) if number else '-'
    for number in (*columns, sum(columns))
  )
  return name, *shown


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
  """Aligned columns: the first to the left, numbers to the right."""
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  for row in (head, *rows):
    name, *values = (
      text.ljust(width) if i == 0 else text.rjust(width)
      for i, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    yield '   '.join((name, *values))
