"""Collectives of a compiled program: what its devices exchange, and how much.

communication.count_collectives(step.lower(state, batch).compile())
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax

from segcore.cost import topology as topology_lib

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
    kind: kind of the collective, one of `KINDS`.
    size: size of the result on each device, in bytes.
    source: name that jax gives to the operation of the traced program from
      which the compiler made the collective.
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


def collective_bytes_by_kind(
  exchanged: Sequence[Collective],
) -> dict[str, list[int]]:
  """Returns the sizes of collectives by kind, in bytes."""
  sizes: dict[str, list[int]] = {}
  for each in exchanged:
    sizes.setdefault(each.kind, []).append(each.size)
  return sizes


def collective_seconds(
  exchanged: Sequence[Collective],
  chip: topology_lib.Chip,
  compiled_for: int,
  devices: int,
) -> float:
  """Computes the time of collectives on a ring over two links of each chip.

  An all-reduce of B bytes among n devices sends 2·(n-1)/n·B from each, the
  other collectives half of that or less. Latency and overlap with arithmetic
  are left out. At a constant batch a device, reduced arrays keep their size and
  gathered ones grow with the number of devices.

  Args:
    exchanged: collectives of the program.
    chip: kind of all devices.
    compiled_for: number of devices of the program.
    devices: number of devices that the time is for.
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


def weak_scaling_seconds(
  compute: float,
  exchanged: Sequence[Collective],
  chip: topology_lib.Chip,
  compiled_for: int,
  counts: Sequence[int],
) -> list[float | None]:
  """Computes the time of a step on several numbers of devices, in seconds.

  None where no slice of the chip is that large.

  Args:
    compute: time of the arithmetic on a device, which stays.
    exchanged: collectives of the program.
    chip: kind of all devices.
    compiled_for: number of devices of the program.
    counts: numbers of devices.
  """
  return [
    compute + collective_seconds(exchanged, chip, compiled_for, n)
    if n <= chip.max_slice_chips
    else None
    for n in counts
  ]


def _itemsize(dtype: str) -> int:
  """Returns the bytes of a value of one of XLA's types: 'f32', 's8', 'pred'."""
  bits = re.search(r'\d+', dtype)
  return int(bits[0]) // 8 if bits else 1
