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
  """What devices exchange at one point of a program.

  Attributes:
    kind: 'all-reduce', 'all-gather', …
    size: bytes of the result, on each device.
    source: where in the program it comes from, as jax names it.
  """

  kind: str
  size: int
  source: str


def list_collectives(compiled: jax.stages.Compiled) -> list[Collective]:
  """All exchanges of a compiled program, in its order."""
  found = []
  for line in compiled.as_text().splitlines():
    match = re.search(rf'= (.*) ({"|".join(KINDS)})(?:-start)?\(', line)
    if match:
      shapes, kind = match.groups()
      size = sum(
        math.prod(int(n) for n in sides.split(',') if n) * _size_of(dtype)
        for dtype, sides in re.findall(r'(\w+)\[([\d,]*)\]', shapes)
      )
      name = re.search(r'op_name="([^"]*)"', line)
      parts = name[1].split('/') if name else []
      source = '/'.join(p for p in parts if not p.startswith('jit('))
      found.append(Collective(kind, size, source))
  return found


def count_collectives(compiled: jax.stages.Compiled) -> dict[str, int]:
  """How often each kind of collective occurs in a compiled program.

  >>> step = jax.jit(lambda x: 2 * x).lower(1.0).compile()
  >>> count_collectives(step)['all-gather']
  0
  """
  found = collections.Counter(c.kind for c in list_collectives(compiled))
  return {name: found[name] for name in KINDS}


def _size_of(dtype: str) -> int:
  """Bytes of one value of a type of XLA: 'f32', 's32', 'pred'."""
  bits = re.search(r'\d+', dtype)
  return int(bits[0]) // 8 if bits else 1
