"""Collectives of a compiled program: what its devices exchange, and how much.

communication.count_collectives(step.lower(state, batch).compile())
"""

import collections
import math
import re
from typing import NamedTuple

import jax

KINDS = (
  'all-reduce',
  'all-gather',
  'all-to-all',
  'reduce-scatter',
  'collective-permute',
)


class Collective(NamedTuple):
  """One collective operation of a compiled program.

  Attributes:
    kind: one of `KINDS`.
    size: bytes of the result, on each device.
    source: the operation of the traced program that it belongs to, by the
      name that jax gives it.
  """

  kind: str
  size: int
  source: str


def list_collectives(compiled: jax.stages.Compiled) -> list[Collective]:
  """Lists the collectives of a compiled program, in its order."""
  result = []
  # XLA has no interface for this: its text has a line for each operation, as
  # '%name = f32[8,4]{1,0} all-reduce(…), …, metadata={op_name="…"}'. Of an
  # asynchronous one ('all-reduce-start', 'all-reduce-done') the start counts.
  for line in compiled.as_text().splitlines():
    match = re.search(rf'= (.*) ({"|".join(KINDS)})(?:-start)?\(', line)
    if match:
      shapes, kind = match.groups()
      # Several small arrays may be exchanged together: the result is a tuple.
      size = sum(
        math.prod(int(n) for n in sides.split(',') if n) * _itemsize(dtype)
        for dtype, sides in re.findall(r'(\w+)\[([\d,]*)\]', shapes)
      )
      name = re.search(r'op_name="([^"]*)"', line)
      scopes = name[1].split('/') if name else []
      source = '/'.join(s for s in scopes if not s.startswith('jit('))
      result.append(Collective(kind, size, source))
  return result


def count_collectives(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Counts the collectives of a compiled program, by kind.

  >>> step = jax.jit(lambda x: 2 * x).lower(1.0).compile()
  >>> count_collectives(step)['all-gather']
  0
  """
  counts = collections.Counter(c.kind for c in list_collectives(compiled))
  return {kind: counts[kind] for kind in KINDS}


def _itemsize(dtype: str) -> int:
  """Returns the bytes of a value of one of XLA's types: 'f32', 's8', 'pred'."""
  bits = re.search(r'\d+', dtype)
  return int(bits[0]) // 8 if bits else 1
