"""Nominal operations of a program: 2 for each multiply-add of a matrix product.

  found = flops.count(train_step, state, batch)    # arrays or their shapes
  found.total, found.by_part(('encoder', 'decoder', 'heads'))

Products and convolutions are counted by walking the jaxpr, padded taps included
and all else (norms, activations, resizing by shifts) left out, as tables of
networks do. So the numbers are those of the network, whatever compiles it.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class FlopCount:
  """The operations of a program.

  Attributes:
    by_name: operations by name stack, as flax and `jax.named_scope` write it:
      'transpose(jvp(Segmenter))/Segmenter.features/decoder/block0/conv1'.
    in_while: those of them that stand in the body of a `while`, of which one
      round is counted, since only running it shows how many there are.
  """

  by_name: Mapping[str, int]
  in_while: int = 0

  @property
  def total(self) -> int:
    """All operations."""
    return sum(self.by_name.values())

  def by_part(self, parts: Sequence[str]) -> dict[str, int]:
    """Operations of each part, and of 'other'; see `part_of`."""
    found = dict.fromkeys((*parts, 'other'), 0)
    for name, operations in self.by_name.items():
      found[part_of(name, parts)] += operations
    return found


def part_of(name: str, parts: Sequence[str]) -> str:
  """The first word of a name stack that is one of the parts, or 'other'.

  Operations of a gradient bear the name of what they are the gradient of.

  >>> part_of('transpose(jvp(Net))/decoder/block0/conv1', ('encoder', 'decoder'))
  'decoder'
  """  # noqa: E501
  words = re.findall(r'[\w.]+', name)
  return next((word for word in words if word in parts), 'other')


def count(function: Callable[..., Any], *arguments: Any) -> FlopCount:
  """Operations of a function of arrays or of their shapes; runs nothing."""
  return count_jaxpr(jax.make_jaxpr(function)(*arguments))


def count_jaxpr(program: core.ClosedJaxpr) -> FlopCount:
  """Operations of a traced program.

  A `scan` counts as often as it is long, of a `cond` the branch with the most,
  of a `while` one round, a `shard_map` on all of its devices. What a `remat`
  computes again is counted again.
  """
  by_name: dict[str, int] = {}
  in_while = 0
  for operation in _walk(program.jaxpr, ''):
    by_name[operation.name] = by_name.get(operation.name, 0) + operation.number
    in_while += operation.number * operation.in_while
  return FlopCount(by_name, in_while)


@dataclasses.dataclass(frozen=True)
class _Operations:
  """How many an equation has, and whether there may be more rounds of it."""

  name: str
  number: int
  in_while: bool = False


def _walk(jaxpr: core.Jaxpr, prefix: str) -> Iterator[_Operations]:
  """The operations of each equation, those inside of equations included."""
  for eqn in jaxpr.eqns:
    name = f'{prefix}/{eqn.source_info.name_stack}'.strip('/')
    number = _COUNTED.get(eqn.primitive.name)
    if number is not None:
      yield _Operations(name, number(eqn))
      continue
    bodies = [list(_walk(inner, name)) for inner in _jaxprs(eqn.params)]
    match eqn.primitive.name:
      case 'cond':
        yield from max(bodies, key=_total)
      case 'while':
        for operation in itertools.chain(*bodies):
          yield dataclasses.replace(operation, in_while=True)
      case _:
        times = _times(eqn)
        for operation in itertools.chain(*bodies):
          number = times * operation.number
          yield dataclasses.replace(operation, number=number)


def _total(operations: Sequence[_Operations]) -> int:
  return sum(operation.number for operation in operations)


def _jaxprs(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
  """The programs among an equation's parameters."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item


def _times(eqn: core.JaxprEqn) -> int:
  """How often the equation runs its body."""
  if eqn.primitive.name == 'scan':
    return eqn.params['length']
  if eqn.primitive.name == 'shard_map':
    shape = eqn.params['mesh'].shape
    # 'newly_manual_axes' in some versions of jax, 'manual_axes' in others.
    axes = next(v for k, v in eqn.params.items() if k.endswith('manual_axes'))
    return math.prod(shape[axis] for axis in axes)
  return 1


def _dot(eqn: core.JaxprEqn) -> int:
  (contracted, _), _ = eqn.params['dimension_numbers']
  shape = eqn.invars[0].aval.shape
  taps = math.prod(shape[axis] for axis in contracted)
  return 2 * taps * math.prod(eqn.outvars[0].aval.shape)


def _conv(eqn: core.JaxprEqn) -> int:
  """Those of the layer, also where this is one of its gradients.

  Each cell of a kernel meets each cell of the smaller of two maps: what the
  layer reads and what it gives, of which the larger is strided over or has
  zeros put between its cells. In a gradient by the kernel, which shows in that
  its result has the "batch" not in front, these two are convolved and the
  result is the kernel; in others the second argument is.
  """
  lhs, rhs = (var.aval.shape for var in eqn.invars)
  out = eqn.outvars[0].aval.shape
  lhs_axes, rhs_axes, out_axes = eqn.params['dimension_numbers']
  read, slid, made = (
    math.prod(shape[axis] for axis in axes[2:])
    for shape, axes in ((lhs, lhs_axes), (rhs, rhs_axes), (out, out_axes))
  )
  of_kernel = out_axes[0] != 0
  cells = made * min(read, slid) if of_kernel else slid * min(read, made)
  channels = out[out_axes[0]] * out[out_axes[1]] * rhs[rhs_axes[1]]
  return 2 * cells * channels


_COUNTED: Mapping[str, Callable[[core.JaxprEqn], int]] = {
  'dot_general': _dot,
  'conv_general_dilated': _conv,
}
