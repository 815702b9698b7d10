"""TPU slices by name: number of hosts and chips, topology, types of the APIs.

accelerators.parse_accelerator('v5e-64').hosts  # 16
"""

import dataclasses

from runtime import errors


@dataclasses.dataclass(frozen=True)
class Generation:
  """A generation of TPUs.

  Attributes:
    type_prefix: prefix of the accelerator types in the Cloud TPU API.
    runtime: default software version of its VMs in the Cloud TPU API; '' if
      that API does not offer the generation.
    gke_accelerator: value of GKE's node selector.
    cores_per_chip: quotient of the number in the name of a slice and the number
      of its chips.
    topologies: number of chips along each axis, '4x8', by the number in the
      name of a slice.
    single_host_sizes: sizes of the slices that are one VM with all the chips.
  """

  type_prefix: str
  runtime: str
  gke_accelerator: str
  cores_per_chip: int
  topologies: dict[int, str]
  single_host_sizes: tuple[int, ...] = ()


_TOPOLOGIES_2D = {
  1: '1x1',
  4: '2x2',
  8: '2x4',
  16: '4x4',
  32: '4x8',
  64: '8x8',
  128: '8x16',
  256: '16x16',
}
_TOPOLOGIES_3D = {
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
  'v4': Generation(
    'v4', 'tpu-ubuntu2204-base', 'tpu-v4-podslice', 2, _TOPOLOGIES_3D
  ),
  'v5e': Generation(
    'v5litepod',
    'v2-alpha-tpuv5-lite',
    'tpu-v5-lite-podslice',
    1,
    _TOPOLOGIES_2D,
    (1, 4, 8),
  ),
  'v5p': Generation(
    'v5p', 'v2-alpha-tpuv5', 'tpu-v5p-slice', 2, _TOPOLOGIES_3D
  ),
  'v6e': Generation(
    'v6e', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', 1, _TOPOLOGIES_2D, (1, 4, 8)
  ),
  'tpu7x': Generation('tpu7x', '', 'tpu7x', 2, _TOPOLOGIES_3D),
}

_CHIPS_PER_HOST = 4
# Other names of the same generations.
_ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v7x': 'tpu7x'}


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """A TPU slice: chips of one generation in a topology.

  Attributes:
    name: name of the slice as users write it: 'v5e-64', 'v4-8'.
    generation: generation of the chips.
    size: number in the name of the slice.
  """

  name: str
  generation: Generation
  size: int

  @property
  def chips(self) -> int:
    """Returns the number of chips of the slice.

    >>> parse_accelerator('v4-8').chips, parse_accelerator('v5e-64').chips
    (4, 64)
    """
    return self.size // self.generation.cores_per_chip

  @property
  def hosts(self) -> int:
    """Returns the number of machines, each of which runs one process.

    >>> names = 'v4-8', 'v4-32', 'v5e-8', 'v5e-64'
    >>> [parse_accelerator(name).hosts for name in names]
    [1, 4, 1, 16]
    """
    if self.size in self.generation.single_host_sizes:
      return 1
    return self.chips // _CHIPS_PER_HOST

  @property
  def chips_per_host(self) -> int:
    """Returns the number of chips of each machine."""
    return self.chips // self.hosts

  @property
  def type(self) -> str:
    """Returns the accelerator type in the Cloud TPU API.

    >>> parse_accelerator('v5e-64').type
    'v5litepod-64'
    """
    return f'{self.generation.type_prefix}-{self.size}'

  @property
  def topology(self) -> str:
    """Returns the number of chips along each axis: '8x8', '2x2x4'."""
    return self.generation.topologies[self.size]


def parse_accelerator(name: str) -> Accelerator:
  """Parses the name of a TPU slice, such as 'v5e-16'.

  Raises:
    UserError: there is no slice of this name.
  """
  text, _, size = name.rpartition('-')
  generation = GENERATIONS.get(_ALIASES.get(text, text))
  if generation is None or not size.isdigit():
    raise errors.UserError(
      f'--accelerator: expected one of {_name_ranges()}, got {name!r}'
    )
  if int(size) not in generation.topologies:
    sizes = ', '.join(map(str, generation.topologies))
    raise errors.UserError(
      f'--accelerator: expected {text}- and one of {sizes}, got {name!r}'
    )
  return Accelerator(name, generation, int(size))


def _name_ranges() -> str:
  ranges = []
  for name, generation in GENERATIONS.items():
    sizes = list(generation.topologies)
    ranges.append(f'{name}-{sizes[0]} to {name}-{sizes[-1]}')
  return ', '.join(ranges)
