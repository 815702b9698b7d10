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
  *runs.RECORDED,
)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
  """Compares bank, prototypes and the images drawn as well."""
  whole = runs.check_killed_run(tmp_path, SHORT, 'weak', [9], method='u2pl')
  assert np.any(runs.read_state(whole / 'weak')['bank']['rows'])
