"""Where the time of a training goes, and the memory it takes.

  meter = GoodputMeter()
  with meter.timed('input'):
    batch = next(batches)
  …
  meter.read()     # {'goodput': 0.97, 'input_wait': 0.01, …}, since last time

Times are the host's. Devices work while it waits: what it waits for is the most
that they can have lost by it.
"""

import contextlib
import pathlib
import resource
import time
from collections.abc import Iterator, Mapping
from typing import Literal

import jax
from jax.sharding import Mesh

from segcore.cost import topology

# What a host does instead of starting steps. 'start': restoring or initializing
# and compiling; 'checkpoint': until the state is copied and the training may
# go on, which writes it meanwhile.
Kind = Literal['start', 'input', 'checkpoint', 'evaluate']

# Dense bfloat16 operations per second, by a part of the device's name.
_PEAKS = {
  **{
    kind: topology.CHIPS[name].peak_flops
    for kind, name in topology.DEVICE_KINDS.items()
  },
  # cloud.google.com/tpu/docs/{v6e,tpu7x}; of the latter a chip is two devices.
  'TPU v6 lite': 918e12,
  'TPU7x': 2307e12 / 2,
  'H100': 989e12,
  'H200': 989e12,
}
_STATM = pathlib.Path('/proc/self/statm')
_PAGE = resource.getpagesize()


class GoodputMeter:
  """Adds up times by their kind, from its making on."""

  def __init__(self):
    self._began = self._last = time.monotonic()
    self._times: dict[Kind, float] = {}
    self._before: dict[Kind, float] = {}

  @contextlib.contextmanager
  def timed(self, kind: Kind) -> Iterator[None]:
    """Counts what happens inside as time of this kind."""
    start = time.monotonic()
    try:
      yield
    finally:
      spent = time.monotonic() - start
      self._times[kind] = self._times.get(kind, 0.0) + spent

  def read(self) -> dict[str, float]:
    """Shares of the time.

    Returns:
      seconds: since the last reading; of these, input_wait: the share of
      waiting for a batch, checkpoint_stall: that of waiting for a checkpoint.
      goodput: the share of all time so far that was none of the kinds above:
      steps, and logging.
    """
    now = time.monotonic()
    window = max(now - self._last, 1e-9)

    def share(kind: Kind) -> float:
      spent = self._times.get(kind, 0.0) - self._before.get(kind, 0.0)
      return spent / window

    lost = sum(self._times.values())
    found = {
      'seconds': window,
      'input_wait': share('input'),
      'checkpoint_stall': share('checkpoint'),
      'goodput': 1.0 - lost / max(now - self._began, 1e-9),
    }
    self._last, self._before = now, dict(self._times)
    return found


def peak_flops(mesh: Mesh) -> float | None:
  """Operations per second of all devices together, if their kind is known."""
  device = mesh.devices.flat[0]
  known = _PEAKS.get(device.device_kind)
  if known is None and device.platform == 'gpu':
    known = next(
      (v for k, v in _PEAKS.items() if k in device.device_kind), None
    )
  return known and known * mesh.size


def model_flops_utilization(
  steps_per_second: float, operations: int, peak_speed: float
) -> float:
  """MFU: the share of the devices' speed that a step's operations take.

  >>> model_flops_utilization(2.0, 10**12, 8e12)
  0.25
  """
  return steps_per_second * operations / peak_speed


def memory_usage(mesh: Mesh) -> Mapping[str, float]:
  """GB that this process has on its host, and on one of its devices.

  What the platform does not tell is left out.
  """
  found = {}
  if _STATM.exists():
    pages = int(_STATM.read_text().split()[1])
    found['host_memory_gb'] = pages * _PAGE / 1e9
  mine = [
    d for d in mesh.devices.flat if d.process_index == jax.process_index()
  ]
  stats = mine[0].memory_stats() or {}
  for name, key in (
    ('device_memory_gb', 'bytes_in_use'),
    ('device_memory_peak_gb', 'peak_bytes_in_use'),
  ):
    if key in stats:
      found[name] = stats[key] / 1e9
  return found
