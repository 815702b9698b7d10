"""Trains on tags from the command line, as a user does."""

import numpy as np
import pytest

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


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
  """Compares bank, prototypes and the images drawn as well."""
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  runs.complete(None, whole, *SHORT, method='u2pl')
  process = runs.start(None, killed, *SHORT, method='u2pl')
  due = runs.step_logged(killed / 'weak', 9)
  assert runs.signal_when(process, due)
  runs.complete(None, killed, *SHORT, method='u2pl')
  runs.assert_same_runs(whole, killed, 'weak')
  assert np.any(runs.read_state(whole / 'weak')['bank']['rows'])
  assert runs.read_results(whole) == runs.read_results(killed)
