"""Adapts from the command line, as a user does."""

import numpy as np
import pytest

from tests.support import runs

# Save, evaluation and log intervals all differ, and all of them occur; step 6
# is the first with contrast.
SHORT = (
  f'--config={runs.ROOT}/configs/u2pl_adapt_shapes.py:fd=on,tiny',
  '--config.adapt.recipe.num_steps=14',
  '--config.adapt.recipe.evaluate_every=10',
  '--config.adapt.recipe.batch_size=4',
  '--config.adapt.learn.start_step=6',
  '--config.adapt.heads.width=8',
  '--config.adapt.heads.representation=8',
  '--config.evaluate.splits=("val",)',
  *runs.SMALL_NETWORK,
  *runs.RECORDED,
)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
  """Compares teacher, frozen encoder, bank and the images drawn as well."""
  # Before contrast, and with a bank.
  steps = 5, 9
  whole = runs.check_killed_run(tmp_path, SHORT, 'adapt', steps, method='u2pl')
  assert np.any(runs.read_state(whole / 'adapt')['bank']['rows'])
  assert runs.read_results(whole)['val']['num_images'] == 400
