"""Trains on tags from the command line, as a user does."""

import jax
import numpy as np
import pytest

from segcore.weights import checkpoint_reader
from tests.support import runs

# Save, evaluation and log intervals all differ, and all of them occur; step 4
# is the first with all losses.
SHORT = (
  f'--config={runs.ROOT}/configs/u2pl_weak_shapes.py:tiny',
  '--config.weak.recipe.num_steps=12',
  '--config.weak.recipe.evaluate_every=9',
  '--config.weak.recipe.batch_size=4',
  '--config.weak.crop.size=(32, 32)',
  '--config.weak.learn.class_steps=3',
  '--config.weak.learn.refined_steps=6',
  '--config.weak.heads.width=8',
  '--config.weak.heads.representation=8',
  '--config.evaluate.splits=("val",)',
  '--config.operation.save_every=4',
  '--config.operation.log_every=1',
  '--config.operation.record_ids=True',
)
STATE = (
  *('step', 'params', 'batch_stats', 'opt_state', 'rng'),
  *('bank', 'prototypes'),
)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
  """Compares bank, prototypes and the images drawn as well."""
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  runs.complete(None, whole, *SHORT, method='u2pl')
  process = runs.start(None, killed, *SHORT, method='u2pl')
  due = runs.step_logged(killed / 'weak', 9)
  assert runs.signal_when(process, due)
  runs.complete(None, killed, *SHORT, method='u2pl')
  states = [
    checkpoint_reader.read_checkpoint_fields(
      workdir / 'weak' / 'checkpoints', STATE
    )
    for workdir in (whole, killed)
  ]
  jax.tree.map(np.testing.assert_array_equal, *states)
  assert np.any(states[0]['bank']['rows'])
  for name in ('metrics', 'ids'):
    lines = [
      runs.read_metrics(workdir / 'weak', name) for workdir in (whole, killed)
    ]
    assert lines[0] == lines[1]
  assert runs.read_results(whole) == runs.read_results(killed)
