"""Dry runs for devices of other machines."""

import importlib.util

import jax
import pytest

from ddep import main as ddep_main
from runtime import errors
from segcore.cost import communication, topology
from segcore.experiment import cli, hosts
from tests.support import runs

SHAPES = f'--config={runs.ROOT}/configs/ddep_shapes.py:tiny'
SMALL = runs.SMALL_NETWORK


def test_parse():
  parsed = topology.parse_topology('v5e:16x16')
  assert (parsed.num_devices, parsed.chip.name) == (256, 'TPU v5e')
  assert str(parsed) == 'v5e:16x16'
  assert topology.parse_topology('v4:2x2x4').num_devices == 16
  assert topology.parse_topology('cpu:8') == topology.Topology('cpu', (8,))
  assert topology.parse_topology('cpu:8').chip is None


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('v6e:4x4', 'got v6e:4x4, on which libtpu 0.0.42 crashes: use v5e'),
    ('v4:2x2', 'expected a kind and sides, as v4:2x2x1, .* got v4:2x2'),
    ('v5e:16', 'cpu:8, got v5e:16$'),
    ('cpu:0', 'cpu:8, got cpu:0$'),
    ('cpu', 'cpu:8, got cpu$'),
    ('h100:8', 'cpu:8, got h100:8$'),
  ],
)
def test_parse_refuses_other_devices(text, message):
  with pytest.raises(errors.UserError, match=message):
    topology.parse_topology(text)


def test_devices_need_libtpu(monkeypatch):
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match='v4:2x2x1 needs libtpu'):
    topology.parse_topology('v4:2x2x1').devices()


def test_more_simulated_devices_than_jax_has_started():
  assert len(jax.devices()) == 8
  with pytest.raises(errors.UserError) as caught:
    topology.parse_topology('cpu:256').start_simulated_devices(1)
  assert str(caught.value).startswith(
    '--topology: expected at least 256 simulated devices for cpu:256, got 8, '
    'with which jax has already started'
  )


def test_time_of_a_ring():
  chip = topology.Chip(
    '', peak_flops=1.0, link_bandwidth=50.0, memory=1.0, max_slice_chips=16
  )

  def exchange(kind, count):
    sizes = [communication.Collective(kind, size, '') for size in (700, 100)]
    return communication.collective_seconds(sizes, chip, 4, count)

  # Two links of 50 bytes a second send 100; of 800 bytes a device sends 2·3/4.
  assert exchange('all-reduce', 4) == pytest.approx(12)
  assert exchange('all-reduce', 8) == pytest.approx(14)
  # With twice the devices twice as much is gathered, of which 7/8 are missing.
  assert exchange('all-gather', 4) == pytest.approx(6)
  assert exchange('all-gather', 8) == pytest.approx(14)
  # A part of 800 bytes remains of 3,200.
  assert exchange('reduce-scatter', 4) == pytest.approx(24)
  assert exchange('collective-permute', 4) == pytest.approx(8)
  assert exchange('all-reduce', 1) == 0
  sizes = [communication.Collective('all-reduce', 800, '')]
  # Two seconds of arithmetic; the largest slice has 16.
  times = communication.weak_scaling_seconds(
    2.0, sizes, chip, 4, (1, 4, 16, 17)
  )
  assert times == [2.0, pytest.approx(14), pytest.approx(17), None]


@pytest.fixture
def dry_run_of(capsys, monkeypatch, tmp_path):
  """Runs a command line in an empty folder; joins no hosts."""

  def refuse():
    raise AssertionError('a dry run for other devices starts none')

  monkeypatch.setattr(hosts, 'joined_hosts', refuse)
  monkeypatch.chdir(tmp_path)

  def run(*arguments):
    status = cli.run_command_line(ddep_main.PROGRAM, ['main', *arguments])
    assert not list(tmp_path.iterdir())
    return status, capsys.readouterr()

  return run


@pytest.mark.slow
def test_a_dry_run_for_eight_devices(dry_run_of):
  status, printed = dry_run_of(
    SHAPES, '--dry_run', '--topology=cpu:8', '--stage=denoise', *SMALL
  )
  assert status == 0, printed.err
  lines = [' '.join(line.split()) for line in printed.out.splitlines()]
  assert any('(8 devices x 1 part x 2)' in line for line in lines)
  assert 'compiled for cpu:8, without remat' in lines
  assert any(line.startswith('memory a device: arguments') for line in lines)
  # Gradients of 19,931 parameters, and some scalars.
  assert 'all-reduce 2 0.1 MB' in lines
  (row,) = (i for i, line in enumerate(lines) if line.startswith('devices 1'))
  assert lines[row] == 'devices 1 4 8 64 256 1,024'
  shares = [float(x.rstrip('%')) for x in lines[row + 2].split()[3:]]
  assert shares[0] == 100 and shares == sorted(shares, reverse=True)


def test_devices_that_do_not_divide_the_batch(dry_run_of):
  # Nothing is compiled before this is checked, and other stages may fit.
  status, printed = dry_run_of(SHAPES, '--dry_run', '--topology=cpu:3', *SMALL)
  assert (status, printed.out) == (2, '')
  assert printed.err == (
    'error: --topology=cpu:3: a batch of 32 images does not divide among 3 '
    'devices: name fewer devices, or another --stage\n'
  )


def test_a_topology_is_for_dry_runs(dry_run_of):
  status, printed = dry_run_of(SHAPES, '--topology=cpu:8')
  assert status == 2
  assert '--topology is for --dry_run' in printed.err
