"""Weak scaling: the same work and the same collectives on more devices.

The collectives of U2PL and PASS are compared with the lists of docs/scaling.md
in tests/u2pl/semi/test_mean_teacher.py and
tests/pass_luss/pretrain/test_method.py; `benchmarks/scaling.py` compiles for
256 devices.
"""

import dataclasses

import jax
import pytest

from input_pipeline import batch as batch_lib
from segcore.distributed import sharding
from segcore.experiment import dry_run
from tests.segcore.experiment import test_dry_run


@pytest.fixture(scope='module')
def compiled():
  """DDeP's step on 2 and on 8 devices, two images a device."""
  plan = test_dry_run.plan_of()
  return [
    dry_run.compile_dry_run_step(
      dataclasses.replace(
        plan,
        mesh=sharding.make_mesh(devices=jax.devices()[:count]),
        batch_spec=batch_lib.batch_spec(2 * count, (16, 16)),
        batch_size=2 * count,
      ),
      remat=False,
    )
    for count in (2, 8)
  ]


@pytest.mark.slow
def test_a_device_computes_the_same(compiled):
  few, many = compiled
  assert many.operations == pytest.approx(few.operations, rel=0.01)
  assert many.peak == pytest.approx(few.peak, rel=0.01)


@pytest.mark.slow
def test_ddep_exchanges_its_gradients_and_nothing_else(compiled):
  few, many = compiled
  assert len(many.exchanged) == len(few.exchanged)
  assert {each.kind for each in many.exchanged} == {'all-reduce'}
  parameters = dry_run.count_dry_run_cost(test_dry_run.plan_of()).parameters
  gradients = 4 * (parameters['decoder'] + parameters['heads'])
  reduced = sum(each.size for each in many.exchanged)
  assert reduced == pytest.approx(gradients, rel=0.05)
