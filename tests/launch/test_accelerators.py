"""Names of TPU slices and what they consist of."""

import math

import pytest

from launch import accelerators


@pytest.mark.parametrize(
  ('name', 'expected'),
  [  # Hosts, chips per host, topology, type: from each generation's manual.
    ('v4-8', (1, 4, '2x2x1', 'v4-8')),
    ('v4-32', (4, 4, '2x2x4', 'v4-32')),
    ('v5e-1', (1, 1, '1x1', 'v5litepod-1')),
    ('v5e-8', (1, 8, '2x4', 'v5litepod-8')),
    ('v5litepod-16', (4, 4, '4x4', 'v5litepod-16')),
    ('v5e-64', (16, 4, '8x8', 'v5litepod-64')),
    ('v5e-256', (64, 4, '16x16', 'v5litepod-256')),
    ('v5p-128', (16, 4, '4x4x4', 'v5p-128')),
    ('v6e-256', (64, 4, '16x16', 'v6e-256')),
    ('tpu7x-8', (1, 4, '2x2x1', 'tpu7x-8')),
  ],
)
def test_slices(name, expected):
  parsed = accelerators.parse_accelerator(name)
  assert expected == (
    parsed.hosts,
    parsed.chips_per_host,
    parsed.topology,
    parsed.type,
  )


def test_every_topology_has_as_many_chips_as_its_slice():
  for name, generation in accelerators.GENERATIONS.items():
    for size in generation.topologies:
      parsed = accelerators.parse_accelerator(f'{name}-{size}')
      chips = math.prod(map(int, parsed.topology.split('x')))
      assert parsed.chips == chips
      assert parsed.hosts * parsed.chips_per_host == chips
