"""Devices of other machines, for which programs are compiled but not run.

  target = topology.parse_topology('v5e:16x16')
  with topology.without_compilation_cache():
    mesh = sharding.make_mesh(devices=target.devices())

TPU programs are compiled by libtpu (the extra `tpu`), which needs no TPU for
that. `cpu:N` is N simulated devices on this machine.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator

import jax
from jax.experimental import topologies

from runtime import errors


@dataclasses.dataclass(frozen=True)
class Chip:
  """The data sheet of a kind of chip.

  Attributes:
    name: name in tables: 'TPU v4'.
    peak_flops: dense bfloat16 operations per second, as stated by the vendor.
    link_bandwidth: bytes per second over one link to a neighbor, in one
      direction.
    memory: size of the memory in bytes.
    max_slice_chips: number of chips of the largest slice; a slower network
      joins several slices.
  """

  name: str
  peak_flops: float
  link_bandwidth: float
  memory: float
  max_slice_chips: int


# FLOP/s, memory, slices: cloud.google.com/tpu/docs/{v4,v5e,v5p}. Links: the
# vendor states 400 GB/s for v5e and 1,200 GB/s for v5p, both directions and all
# links (4 and 6) together, so 50 and 100 GB/s. Programs get less of it: "How to
# Scale Your Model" (jax-ml.github.io/scaling-book/tpus) measures 45 GB/s on v4
# and v5e and 90 GB/s on v5p, which are the values here.
CHIPS = {
  'v4': Chip('TPU v4', 275e12, 45e9, 32 * 2.0**30, 4096),
  'v5e': Chip('TPU v5e', 197e12, 45e9, 16 * 2.0**30, 256),
  'v5p': Chip('TPU v5p', 459e12, 90e9, 95 * 2.0**30, 6144),
}
# jax's name of a device, to the kind of its chip.
DEVICE_KINDS = {'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5': 'v5p'}

# Outside of a TPU VM there is no metadata server to give libtpu these values.
_OFF_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v4-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of TPU chips, or a number of simulated devices.

  Attributes:
    kind: key of `CHIPS`, or 'cpu' for simulated devices.
    shape: number of chips along each side of the slice; for 'cpu', the number
      of simulated devices.
  """

  kind: str
  shape: tuple[int, ...]

  def __str__(self) -> str:
    return f'{self.kind}:{"x".join(map(str, self.shape))}'

  @property
  def num_devices(self) -> int:
    """Returns the number of devices."""
    return math.prod(self.shape)

  @property
  def chip(self) -> Chip | None:
    """Returns the data sheet of a device; None if they are simulated."""
    return CHIPS.get(self.kind)

  def start_simulated_devices(self, min_devices: int) -> list[jax.Device]:
    """Starts simulated devices, before jax has started any devices.

    Args:
      min_devices: smallest number of devices to start; a topology of more
        simulated devices starts as many as it has.

    Raises:
      UserError: jax has already started with fewer.
    """
    count = max(min_devices, self.num_devices if self.kind == 'cpu' else 1)
    # jax refuses new numbers once it has started; there may be enough devices.
    with contextlib.suppress(RuntimeError):
      jax.config.update('jax_num_cpu_devices', count)
      jax.config.update('jax_platforms', 'cpu')
    devices = jax.devices('cpu')
    if len(devices) < count:
      raise errors.UserError(
        f'--topology: expected at least {count} simulated devices for {self}, '
        f'got {len(devices)}, with which jax has already started: set '
        f'XLA_FLAGS=--xla_force_host_platform_device_count={count}'
      )
    return devices

  def devices(self) -> list:
    """Returns descriptions of the devices, for which jax can compile.

    Raises:
      UserError: there is no such slice, or libtpu is not installed.
    """
    if self.kind == 'cpu':
      return jax.devices('cpu')[: self.num_devices]
    if not _has_libtpu():
      raise errors.UserError(
        f'--topology: {self} needs libtpu (but no TPU): run '
        "pip install 'jax[tpu]', or use cpu:N"
      )
    for name, value in _OFF_TPU.items():
      os.environ.setdefault(name, value)
    # The two cores of a v4 chip are one device, as in jax on a TPU VM.
    options = {'chip_config_name': 'megacore'} if self.kind == 'v4' else {}
    try:
      description = topologies.get_topology_desc(
        platform='tpu', topology_name=str(self), **options
      )
    except (RuntimeError, ValueError) as error:
      reason = str(error).splitlines()[0]
      raise errors.UserError(
        f'--topology: libtpu refuses {self}: {reason}'
      ) from error
    return list(description.devices)


def parse_topology(text: str) -> Topology:
  """Parses a topology: a kind and a shape, or a number of devices.

  >>> parse_topology('v5e:16x16')
  Topology(kind='v5e', shape=(16, 16))

  Raises:
    UserError: the text is no topology, or programs cannot be compiled for it.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', text)
  kind = match[1] if match else ''
  if kind == 'v6e':
    raise errors.UserError(
      f'--topology: expected v4, v5e, v5p or cpu, got {text}, on which libtpu '
      '0.0.42 crashes: use v5e or v5p'
    )
  shape = tuple(map(int, match[2].split('x'))) if match else ()
  num_sides = {'cpu': 1, 'v4': 3, 'v5p': 3, 'v5e': 2}.get(kind)
  if num_sides != len(shape) or 0 in shape:
    raise errors.UserError(
      '--topology: expected a kind and sides, as v4:2x2x1, v5p:4x4x4, '
      f'v5e:16x16 or cpu:8, got {text}'
    )
  return Topology(kind, shape)


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
  """Disables jax's cache of compiled programs in the `with` block.

  Reading a program from the cache needs the devices it was compiled for.
  """
  enabled = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', enabled)


def _has_libtpu() -> bool:
  return (
    importlib.util.find_spec('libtpu') is not None
    or 'TPU_LIBRARY_PATH' in os.environ
  )
