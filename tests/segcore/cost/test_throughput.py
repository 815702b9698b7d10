"""Goodput, utilization and memory."""

import types

import numpy as np
import pytest

from runtime import metrics_file
from segcore.cost import throughput
from segcore.distributed import sharding
from tests.segcore.train import test_loop as loop


def test_shares_of_time(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(throughput.time, 'monotonic', lambda: now[0])
  meter = throughput.GoodputMeter()

  def spend(kind, seconds):
    with meter.timed(kind):
      now[0] += seconds

  def check(**shares):
    assert meter.read() == pytest.approx(shares)

  spend('start', 10)
  spend('input', 1)
  now[0] += 9
  check(seconds=20, input_wait=0.05, checkpoint_stall=0, goodput=0.45)
  with pytest.raises(ZeroDivisionError), meter.timed('checkpoint'):
    now[0] += 2
    raise ZeroDivisionError  # The time until a failure counts, too.
  spend('evaluate', 8)
  now[0] += 10
  # Shares are those since the last reading, goodput is that of all 40 seconds.
  check(seconds=20, input_wait=0, checkpoint_stall=0.1, goodput=19 / 40)


def mesh_of(kind, platform):
  device = types.SimpleNamespace(
    device_kind=kind,
    platform=platform,
    process_index=0,
    memory_stats=lambda: {'bytes_in_use': 2 * 10**9},
  )
  return types.SimpleNamespace(devices=np.array([[device]] * 4), size=4)


def unchecked(function):
  """Returns the function without type checks, for fake devices."""
  return getattr(function, '__wrapped__', function)


def test_peak_flops_of_known_devices():
  assert (
    unchecked(throughput.peak_flops)(mesh_of('TPU v5 lite', 'tpu'))
    == 4 * 197e12
  )
  assert (
    unchecked(throughput.peak_flops)(mesh_of('TPU v5', 'tpu')) == 4 * 459e12
  )
  assert (
    unchecked(throughput.peak_flops)(mesh_of('TPU v6 lite', 'tpu'))
    == 4 * 918e12
  )
  # Four devices are two chips.
  assert (
    unchecked(throughput.peak_flops)(mesh_of('TPU7x', 'tpu')) == 2 * 2307e12
  )
  h100 = mesh_of('NVIDIA H100 80GB HBM3', 'gpu')
  assert unchecked(throughput.peak_flops)(h100) == 4 * 989e12
  assert unchecked(throughput.peak_flops)(mesh_of('TPU v9', 'tpu')) is None
  assert throughput.peak_flops(sharding.make_mesh()) is None


def test_memory_of_host_and_device():
  usage = throughput.memory_usage(sharding.make_mesh())
  assert set(usage) == {'host_memory_gb'}
  assert 0.1 < usage['host_memory_gb'] < 100
  known = unchecked(throughput.memory_usage)(mesh_of('TPU v4', 'tpu'))
  assert known['device_memory_gb'] == 2


def test_a_run_logs_its_goodput(tmp_path, monkeypatch):
  monkeypatch.setattr(throughput, 'peak_flops', lambda mesh: 1e3)
  loop.run(tmp_path, loop.training())
  lines = metrics_file.read_metrics_file(tmp_path / 'speed.jsonl')
  assert [line['step'] for line in lines] == [3, 6, 9, 11]
  for line in lines:
    assert 0 <= line['speed/goodput'] <= 1
    assert 0 <= line['speed/input_wait'] <= 1
    assert 0 <= line['speed/checkpoint_stall'] <= 1
    # The method has no matrix products.
    assert line['speed/mfu'] == 0
  # metrics.jsonl is equal for equal runs, so times are not in it.
  names = {name for line in loop.metrics_lines(tmp_path) for name in line}
  assert not [name for name in names if name.startswith('speed')]


def test_time_at_an_efficiency():
  # 275 TFLOP/s on 4 chips at half their speed: 550 TFLOP a second.
  assert throughput.arithmetic_seconds(
    55 * 10**14, 275e12, 4, 0.5
  ) == pytest.approx(10)
