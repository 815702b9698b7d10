"""Nominal operations of a program: 2 for each multiply-add of a matrix product.

  # The arguments are arrays or their shapes.
  flop_count = flops.count_flops(train_step, state, batch)
  flop_count.total, flop_count.by_part(('encoder', 'decoder', 'heads'))

Matrix products and convolutions are counted by walking the jaxpr, taps on
padding included; all else (norms, activations, resizing by shifts) is left out,
as in published tables of networks. The count depends on the network alone, not
on the compiler.
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
  """The number of operations of a program.

  Attributes:
    by_name: operations by name stack, as flax and `jax.named_scope` write it:
      'transpose(jvp(Segmenter))/Segmenter.features/decoder/block0/conv1'.
    in_while: number of those operations that are in bodies of `while` loops,
      each counted for one iteration, as the number of iterations is unknown.
  """

  by_name: Mapping[str, int]
  in_while: int = 0

  @property
  def total(self) -> int:
    """Returns the sum over all names."""
    return sum(self.by_name.values())

  def by_part(self, parts: Sequence[str]) -> dict[str, int]:
    """Returns the operations of each part, and of 'other'."""
    totals = dict.fromkeys((*parts, 'other'), 0)
    for name, operations in self.by_name.items():
      totals[part_of_name_stack(name, parts)] += operations
    return totals


def part_of_name_stack(name: str, parts: Sequence[str]) -> str:
  """Returns the part that a name stack belongs to, or 'other'.

  The part is the first word of the stack that is one of `parts`. Operations of
  a gradient have the name of the operation they differentiate.

  >>> part_of_name_stack('jvp(Net)/decoder/block0', ('encoder', 'decoder'))
  'decoder'
  """
  words = re.findall(r'[\w.]+', name)
  return next((word for word in words if word in parts), 'other')


def count_flops(function: Callable[..., Any], *arguments: Any) -> FlopCount:
  """Counts the operations of a function, which is traced and not run.

  Args:
    function: function of arrays.
    *arguments: arrays, or their shapes, or trees of them.
  """
  return count_jaxpr_flops(jax.make_jaxpr(function)(*arguments))


def count_jaxpr_flops(program: core.ClosedJaxpr) -> FlopCount:
  """Counts the operations of a traced program.

  The body of a `scan` counts once an iteration, that of a `while` once; of a
  `cond`, the branch with the most operations counts; of a `shard_map`, the
  operations on all of its devices. What `remat` recomputes counts again.
  """
  by_name: dict[str, int] = {}
  in_while = 0
  for each in _walk(program.jaxpr, ''):
    by_name[each.name] = by_name.get(each.name, 0) + each.number
    in_while += each.number * each.in_while
  return FlopCount(by_name, in_while)


@dataclasses.dataclass(frozen=True)
class _Operations:
  """The operations of one equation.

  Attributes:
    name: name stack of the equation.
    number: number of operations.
    in_while: whether the equation is inside of a `while`.
  """

  name: str
  number: int
  in_while: bool = False


def _walk(jaxpr: core.Jaxpr, prefix: str) -> Iterator[_Operations]:
  """Yields the operations of each equation, those of inner jaxprs included."""
  for eqn in jaxpr.eqns:
    # The name stack of an inner equation starts at the jaxpr it belongs to.
    name = f'{prefix}/{eqn.source_info.name_stack}'.strip('/')
    count_operations = _COUNTERS.get(eqn.primitive.name)
    if count_operations is not None:
      yield _Operations(name, count_operations(eqn))
      continue
    bodies = [list(_walk(inner, name)) for inner in _inner_jaxprs(eqn.params)]
    if eqn.primitive.name == 'cond':
      yield from max(bodies, key=_total)
    elif eqn.primitive.name == 'while':
      for each in itertools.chain(*bodies):
        yield dataclasses.replace(each, in_while=True)
    else:
      times = _num_iterations(eqn)
      for each in itertools.chain(*bodies):
        yield dataclasses.replace(each, number=times * each.number)


def _total(operations: Sequence[_Operations]) -> int:
  return sum(each.number for each in operations)


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
  """Yields the jaxprs among an equation's parameters."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item


def _num_iterations(eqn: core.JaxprEqn) -> int:
  """Returns the number of times that an equation runs its inner jaxpr."""
  if eqn.primitive.name == 'scan':
    return eqn.params['length']
  if eqn.primitive.name == 'shard_map':
    # Shapes inside of a shard_map are those on one device.
    shape = eqn.params['mesh'].shape
    # 'newly_manual_axes' in some versions of jax, 'manual_axes' in others.
    axes = next(v for k, v in eqn.params.items() if k.endswith('manual_axes'))
    return math.prod(shape[axis] for axis in axes)
  return 1


def _count_dot(eqn: core.JaxprEqn) -> int:
  (contracted, _), _ = eqn.params['dimension_numbers']
  shape = eqn.invars[0].aval.shape
  taps = math.prod(shape[axis] for axis in contracted)
  return 2 * taps * math.prod(eqn.outvars[0].aval.shape)


def _count_conv(eqn: core.JaxprEqn) -> int:
  """Counts the operations of a convolution, or of one of its two gradients.

  A gradient costs as much as the convolution itself: each cell of the kernel
  is multiplied with each cell of the smaller of the layer's input and output.
  The larger of the two is visited with a stride, or is the smaller one with
  zeros between its cells (a transposed convolution), which cost nothing.

  In the gradient with respect to the kernel, input and output are convolved
  and the result is the kernel; jax then puts the "batch" axis of the result
  not in front. In all others the second operand is the kernel.
  """
  lhs, rhs = (var.aval.shape for var in eqn.invars)
  out = eqn.outvars[0].aval.shape
  lhs_axes, rhs_axes, out_axes = eqn.params['dimension_numbers']
  lhs_cells, rhs_cells, out_cells = (
    math.prod(shape[axis] for axis in axes[2:])
    for shape, axes in ((lhs, lhs_axes), (rhs, rhs_axes), (out, out_axes))
  )
  if out_axes[0] != 0:
    cells = out_cells * min(lhs_cells, rhs_cells)
  else:
    cells = rhs_cells * min(lhs_cells, out_cells)
  # Batch and output channels, and input channels of one group.
  channels = out[out_axes[0]] * out[out_axes[1]] * rhs[rhs_axes[1]]
  return 2 * cells * channels


_COUNTERS: Mapping[str, Callable[[core.JaxprEqn], int]] = {
  'dot_general': _count_dot,
  'conv_general_dilated': _count_conv,
}
