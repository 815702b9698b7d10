"""Goodput, utilization and memory of a running training.

  meter = GoodputMeter()
  with meter.timed('input'):
    batch = next(batches)
  …
  meter.read()     # {'goodput': 0.97, 'input_wait': 0.01, …}

Times are measured on the host. Devices go on with the steps that are queued
while it waits, so they lose at most the time that the host waits.
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

# Work of the host other than starting steps. 'start': restoring or
# initializing, and compiling; 'checkpoint': copying the state, which is then
# written while the training goes on.
Kind = Literal['start', 'input', 'checkpoint', 'evaluate', 'refresh']

# Dense bfloat16 operations per second, by jax's name of a device; names of GPUs
# have more words before and after.
_PEAKS = {
  **{
    kind: topology.CHIPS[name].peak_flops
    for kind, name in topology.DEVICE_KINDS.items()
  },
  # cloud.google.com/tpu/docs/{v6e,tpu7x}; a chip of the latter is two devices.
  'TPU v6 lite': 918e12,
  'TPU7x': 2307e12 / 2,
  'H100': 989e12,
  'H200': 989e12,
}
# Linux: memory of this process in pages; the second field is the resident part.
_STATM = pathlib.Path('/proc/self/statm')
_PAGE_BYTES = resource.getpagesize()


class GoodputMeter:
  """Measures the shares of time that are not spent on training steps."""

  def __init__(self):
    self._created = self._last_read = time.monotonic()
    self._times: dict[Kind, float] = {}
    self._times_at_last_read: dict[Kind, float] = {}

  @contextlib.contextmanager
  def timed(self, kind: Kind) -> Iterator[None]:
    """Counts the time spent in the `with` block as time of this kind."""
    start = time.monotonic()
    try:
      yield
    finally:
      spent = time.monotonic() - start
      self._times[kind] = self._times.get(kind, 0.0) + spent

  def read(self) -> dict[str, float]:
    """Returns the shares of time, and starts a new window.

    Returns:
      seconds: length of the window, since the last call.
      input_wait: share of the window spent waiting for batches.
      checkpoint_stall: share of the window spent copying the state to save it.
      goodput: share of the time since the meter was created that was spent on
        steps and logging, that is on no `Kind` of other work.
    """
    now = time.monotonic()
    window = max(now - self._last_read, 1e-9)

    def share(kind: Kind) -> float:
      before = self._times_at_last_read.get(kind, 0.0)
      return (self._times.get(kind, 0.0) - before) / window

    lost = sum(self._times.values())
    shares = {
      'seconds': window,
      'input_wait': share('input'),
      'checkpoint_stall': share('checkpoint'),
      'goodput': 1.0 - lost / max(now - self._created, 1e-9),
    }
    self._last_read, self._times_at_last_read = now, dict(self._times)
    return shares


def peak_flops(mesh: Mesh) -> float | None:
  """Returns the peak FLOP/s of all devices together; None if unknown."""
  device = mesh.devices.flat[0]
  peak = _PEAKS.get(device.device_kind)
  if peak is None and device.platform == 'gpu':
    peak = next((v for k, v in _PEAKS.items() if k in device.device_kind), None)
  return None if peak is None else peak * mesh.size


def model_flops_utilization(
  steps_per_second: float, operations: int, peak_speed: float
) -> float:
  """Computes the model FLOPs utilization: the used share of the peak speed.

  Args:
    steps_per_second: speed of the training.
    operations: number of operations of a step, on all devices (see `flops`).
    peak_speed: peak operations per second of all devices (see `peak_flops`).

  >>> model_flops_utilization(2.0, 10**12, 8e12)
  0.25
  """
  return steps_per_second * operations / peak_speed


def arithmetic_seconds(
  operations: int, speed: float, chips: int, part: float
) -> float:
  """Computes the time of a number of operations, in seconds.

  Args:
    operations: number of operations of all chips together.
    speed: peak speed of a chip, in operations per second.
    chips: number of chips that share them.
    part: fraction of the peak speed that is reached, in (0, 1].
  """
  return operations / (speed * chips * part)


def memory_usage(mesh: Mesh) -> Mapping[str, float]:
  """Measures the memory of this process on its host and its first device.

  Returns:
    Sizes in GB by name; without those that the platform does not report.
  """
  usage = {}
  if _STATM.exists():
    pages = int(_STATM.read_text().split()[1])
    usage['host_memory_gb'] = pages * _PAGE_BYTES / 1e9
  local_devices = [
    d for d in mesh.devices.flat if d.process_index == jax.process_index()
  ]
  stats = local_devices[0].memory_stats() or {}
  for name, key in (
    ('device_memory_gb', 'bytes_in_use'),
    ('device_memory_peak_gb', 'peak_bytes_in_use'),
  ):
    if key in stats:
      usage[name] = stats[key] / 1e9
  return usage
