"""TPU slices by the names people use: how many hosts, chips, which topology.

accelerators.parse('v5e-64').hosts  # 16
"""

import dataclasses

from runtime import errors


@dataclasses.dataclass(frozen=True)
class Generation:
  """A generation of TPUs.

  Attributes:
    type_prefix: of its accelerator types, as the Cloud TPU API names them.
    runtime: software of its machines, for the Cloud TPU API; '' if that does
      not serve it.
    gke: its name in GKE's node selector.
    cores: how many a name counts for one chip.
    topologies: of the slices, by the number in their name.
    alone: slices of one machine that has all their chips.
  """

  type_prefix: str
  runtime: str
  gke: str
  cores: int
  topologies: dict[int, str]
  alone: tuple[int, ...] = ()


_FLAT = {
  1: '1x1',
  4: '2x2',
  8: '2x4',
  16: '4x4',
  32: '4x8',
  64: '8x8',
  128: '8x16',
  256: '16x16',
}
_CUBES = {
  8: '2x2x1',
  16: '2x2x2',
  32: '2x2x4',
  64: '2x4x4',
  128: '4x4x4',
  256: '4x4x8',
  512: '4x8x8',
  1024: '8x8x8',
  2048: '8x8x16',
  4096: '8x16x16',
}

GENERATIONS = {
  'v4': Generation('v4', 'tpu-ubuntu2204-base', 'tpu-v4-podslice', 2, _CUBES),
  'v5e': Generation(
    'v5litepod',
    'v2-alpha-tpuv5-lite',
    'tpu-v5-lite-podslice',
    1,
    _FLAT,
    (1, 4, 8),
  ),
  'v5p': Generation('v5p', 'v2-alpha-tpuv5', 'tpu-v5p-slice', 2, _CUBES),
  'v6e': Generation(
    'v6e', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', 1, _FLAT, (1, 4, 8)
  ),
  'tpu7x': Generation('tpu7x', '', 'tpu7x', 2, _CUBES),
}

_CHIPS_PER_HOST = 4
# How the same generations are called elsewhere.
_ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v7x': 'tpu7x'}


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """A TPU slice.

  Attributes:
    name: as people write it: 'v5e-64', 'v4-8'.
    generation: what it is a slice of.
    size: the number in its name.
  """

  name: str
  generation: Generation
  size: int

  @property
  def chips(self) -> int:
    """How many chips it has.

    >>> parse('v4-8').chips, parse('v5e-64').chips
    (4, 64)
    """
    return self.size // self.generation.cores

  @property
  def hosts(self) -> int:
    """How many machines, each of which runs one process.

    >>> [parse(name).hosts for name in ('v4-8', 'v4-32', 'v5e-8', 'v5e-64')]
    [1, 4, 1, 16]
    """
    if self.size in self.generation.alone:
      return 1
    return self.chips // _CHIPS_PER_HOST

  @property
  def chips_per_host(self) -> int:
    """How many chips each machine has."""
    return self.chips // self.hosts

  @property
  def type(self) -> str:
    """Its accelerator type of the Cloud TPU API.

    >>> parse('v5e-64').type
    'v5litepod-64'
    """
    return f'{self.generation.type_prefix}-{self.size}'

  @property
  def topology(self) -> str:
    """How its chips are laid out: '8x8', '2x2x4'."""
    return self.generation.topologies[self.size]


def parse(name: str) -> Accelerator:
  """The slice of a name.

  Raises:
    UserError: there is none of this name.
  """
  text, _, size = name.rpartition('-')
  generation = GENERATIONS.get(_ALIASES.get(text, text))
  if generation is None or not size.isdigit():
    raise errors.UserError(
      f'--accelerator: found {name!r}, expected one of {_listed()}'
    )
  if int(size) not in generation.topologies:
    sizes = ', '.join(map(str, generation.topologies))
    raise errors.UserError(
      f'--accelerator: found {name!r}, expected {text}- and one of {sizes}'
    )
  return Accelerator(name, generation, int(size))


def _listed() -> str:
  ends = []
  for name, generation in GENERATIONS.items():
    sizes = list(generation.topologies)
    ends.append(f'{name}-{sizes[0]} to {name}-{sizes[-1]}')
  return ', '.join(ends)
