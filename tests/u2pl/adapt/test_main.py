"""Adapts from the command line, as a user does."""

import jax
import numpy as np
import pytest

from segcore.weights import checkpoint_reader
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
  '--config.operation.save_every=4',
  '--config.operation.log_every=1',
  '--config.operation.record_ids=True',
)
STATE = (
  *('step', 'params', 'batch_stats', 'opt_state', 'rng', 'teacher_params'),
  *('teacher_batch_stats', 'frozen', 'bank', 'prototypes'),
)


def read_state(workdir):
  return checkpoint_reader.read_checkpoint_fields(
    workdir / 'adapt' / 'checkpoints', STATE
  )


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
  """Compares teacher, frozen encoder, bank and the images drawn as well."""
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  runs.complete(None, whole, *SHORT, method='u2pl')
  for step in (5, 9):  # Before contrast, and with a bank.
    process = runs.start(None, killed, *SHORT, method='u2pl')
    due = runs.step_logged(killed / 'adapt', step)
    assert runs.signal_when(process, due)
  runs.complete(None, killed, *SHORT, method='u2pl')
  states = [read_state(workdir) for workdir in (whole, killed)]
  jax.tree.map(np.testing.assert_array_equal, *states)
  assert np.any(states[0]['bank']['rows'])
  for name in ('metrics', 'ids'):
    lines = [
      runs.read_metrics(workdir / 'adapt', name) for workdir in (whole, killed)
    ]
    assert lines[0] == lines[1]
  assert runs.read_results(whole) == runs.read_results(killed)
  assert runs.read_results(whole)['val']['num_images'] == 400
