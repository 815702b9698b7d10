"""What a training would compute and cost, before any data is read.

  for line in dry_run.report(plan, compiles=False):
    print(line)

Everything follows from shapes: nothing is initialised, nothing is run, and a
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

from segcore import flops, journal, method, train_loop, types
from segcore.models import segmenter

# Dense bfloat16 operations per second of a chip, as its vendor states them.
CHIPS = {'TPU v4': 275e12, 'TPU v5e': 197e12, 'TPU v5p': 459e12, 'H100': 989e12}
# Parts of them that trainings get out of a chip.
EFFICIENCIES = (0.3, 0.4, 0.5)

_PARTS = segmenter.PARTS


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
    state_bytes: parameters, statistics and optimiser's slots on a device.
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
  """

  operations: float
  arguments: int
  temporaries: int
  peak: int


def cost(plan: Plan) -> Cost:
  """Counts by the shapes.

  Raises:
    UserError: a parameter group matches nothing.
  """
  trained = plan.build(False)
  state = train_loop.state_spec(trained, plan.mesh, plan.batch_spec)
  image = jax.ShapeDtypeStruct((1, *plan.image_size, 3), jnp.float32)
  step = flops.count(_traced(plan, trained, state).jaxpr)
  return Cost(
    parameters={
      part: sum(x.size for x in jax.tree.leaves(state.params.get(part, ())))
      for part in _PARTS
    },
    forward=flops.count_of(trained.predict, state, image).by_part(_PARTS),
    step=step.by_part(_PARTS),
    in_while=step.in_while,
    state_bytes=bytes_per_device(state),
  )


def compile_step(plan: Plan, remat: bool) -> Compiled:
  """Compiles the step of training for the devices of the mesh."""
  trained = plan.build(remat)
  state = train_loop.state_spec(trained, plan.mesh, plan.batch_spec)
  compiled = _traced(plan, trained, state).lower().compile()
  memory = compiled.memory_analysis()
  arguments = memory.argument_size_in_bytes
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Compiled(
    operations=compiled.cost_analysis()['flops'],
    arguments=arguments,
    temporaries=memory.temp_size_in_bytes,
    peak=arguments + results + memory.temp_size_in_bytes,
  )


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


def report(plan: Plan, compiles: bool) -> Iterator[str]:
  """Lines, as they become known.

  Args:
    plan: the training.
    compiles: whether XLA is asked too, which takes its time.
  """
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
    f'parameters, statistics and optimiser: {_bytes(found.state_bytes)} a '
    'device'
  )
  yield ''
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
        *(journal.duration(t) if t >= 1 else '< 1s' for t in times),
      )
    )
  yield (
    f'{total:.3g} FLOPs in all; without remat, evaluations and waiting for '
    'data:'
  )
  yield from _table((f'{_many(chips, "chip")}, bfloat16', *head), rows)


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
        *map(_bytes, said[1:]),
      )
    )
  yield from _table(
    ('a device', 'GFLOPs an image', *Compiled._fields[1:]), rows
  )
  if plan.accumulate > 1:
    yield 'XLA counts a loop over the parts of a batch as one round.'


def _traced(
  plan: Plan, trained: method.Method, state: method.TrainState
) -> jax.stages.Traced:
  """The step of training, as a program for the mesh."""
  step, watch = train_loop.jitted_step(
    trained, plan.mesh, state, plan.batch_spec
  )
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
