"""Devices that are not here: for these a program can be compiled all the same.

  found = topology.parse('v5e:16x16')
  with topology.without_compilation_cache():
    mesh = sharding.make_mesh(devices=found.devices())

TPU programs are compiled by libtpu (the extra `tpu`), which needs no TPU for
that. `cpu:N` is N simulated devices of this machine.
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
  """What a kind of chip is able to do.

  Attributes:
    name: as people say it.
    peak_flops: dense bfloat16 operations per second, as stated by its vendor.
    link_bandwidth: bytes per second over one link to a neighbor, in one
      direction.
    memory: bytes.
    max_slice_chips: chips of the largest slice; slices are joined by a slower
      network.
  """

  name: str
  peak_flops: float
  link_bandwidth: float
  memory: float
  max_slice_chips: int


# Speed, memory, slices: cloud.google.com/tpu/docs/{v4,v5e,v5p}. Links: their
# vendor states 400 GB/s for v5e and 1,200 GB/s for v5p, both directions and all
# links (4 and 6) together, so 50 and 100 GB/s. What a program gets is less:
# "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus) has 45 GB/s for
# v4 and v5e and 90 GB/s for v5p, and these are taken.
CHIPS = {
  'v4': Chip('TPU v4', 275e12, 45e9, 32 * 2.0**30, 4096),
  'v5e': Chip('TPU v5e', 197e12, 45e9, 16 * 2.0**30, 256),
  'v5p': Chip('TPU v5p', 459e12, 90e9, 95 * 2.0**30, 6144),
}
# As jax names a device, to what it is here.
DEVICE_KINDS = {'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5': 'v5p'}

# libtpu would ask the machine it runs on for what is known already.
_OFF_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v4-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices by their kind and number.

  Attributes:
    kind: one of `CHIPS`, or 'cpu'.
    shape: of the slice, in chips; of simulated devices how many.
  """

  kind: str
  shape: tuple[int, ...]

  def __str__(self) -> str:
    return f'{self.kind}:{"x".join(map(str, self.shape))}'

  @property
  def num_devices(self) -> int:
    """Number of devices."""
    return math.prod(self.shape)

  @property
  def chip(self) -> Chip | None:
    """What each of them is able to do; None of simulated ones."""
    return CHIPS.get(self.kind)

  def start_simulated_devices(self, min_devices: int) -> list[jax.Device]:
    """Starts simulated devices, before jax has started any.

    Args:
      min_devices: how many are needed whatever the topology.

    Raises:
      UserError: jax has started with fewer.
    """
    count = max(min_devices, self.num_devices if self.kind == 'cpu' else 1)
    # A process that has started its devices keeps them.
    with contextlib.suppress(RuntimeError):
      jax.config.update('jax_num_cpu_devices', count)
      jax.config.update('jax_platforms', 'cpu')
    found = jax.devices('cpu')
    if len(found) < count:
      raise errors.UserError(
        f'--topology: found {self}, but jax has started with {len(found)} '
        f'simulated devices already: set XLA_FLAGS='
        f'--xla_force_host_platform_device_count={count}'
      )
    return found

  def devices(self) -> list:
    """The devices, which need not be there.

    Raises:
      UserError: there is no such slice, or no libtpu.
    """
    if self.kind == 'cpu':
      return jax.devices('cpu')[: self.num_devices]
    if not _has_libtpu():
      raise errors.UserError(
        f'--topology: {self} needs libtpu, which needs no TPU to compile: '
        "pip install 'jax[tpu]', or use cpu:N"
      )
    for name, value in _OFF_TPU.items():
      os.environ.setdefault(name, value)
    # The two cores of a v4 chip are one device, as they are on real ones.
    more = {'chip_config_name': 'megacore'} if self.kind == 'v4' else {}
    try:
      found = topologies.get_topology_desc(
        platform='tpu', topology_name=str(self), **more
      )
    except (RuntimeError, ValueError) as error:
      line = str(error).splitlines()[0]
      raise errors.UserError(f'--topology: found {self}: {line}') from error
    return list(found.devices)


def parse(text: str) -> Topology:
  """A topology from what people write.

  >>> parse('v5e:16x16')
  Topology(kind='v5e', shape=(16, 16))

  Raises:
    UserError: it is none, or none that can be compiled for.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', text)
  kind = match[1] if match else ''
  if kind == 'v6e':
    raise errors.UserError(
      f'--topology: found {text}, but libtpu 0.0.42 crashes on v6e: use v5e or '
      'v5p'
    )
  shape = tuple(map(int, match[2].split('x'))) if match else ()
  sides = {'cpu': 1, 'v4': 3, 'v5p': 3, 'v5e': 2}.get(kind)
  if sides != len(shape) or 0 in shape:
    raise errors.UserError(
      f'--topology: found {text}, expected such as v4:2x2x1, v5p:4x4x4, '
      'v5e:16x16 or cpu:8'
    )
  return Topology(kind, shape)


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
  """Keeps programs for absent devices out of the cache: it cannot read them."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)


def _has_libtpu() -> bool:
  return (
    importlib.util.find_spec('libtpu') is not None
    or 'TPU_LIBRARY_PATH' in os.environ
  )
