"""Runs U2PL from the command line, as a user does."""

import numpy as np
import pytest

from tests.support import runs


@pytest.fixture(scope='module')
def whole(discs, tmp_path_factory):
  """Returns the folder of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  return runs.complete(discs, workdir, method='u2pl')


@pytest.mark.slow
def test_a_run_writes_metrics_state_and_results(whole):
  stage = whole / 'train'
  lines = [x for x in runs.read_metrics(stage) if 'train/loss' in x]
  assert [line['step'] for line in lines] == list(range(1, 15))
  unsupervised = [line['train/loss_unsupervised'] for line in lines]
  # An epoch of 3 steps is the warm-up.
  assert unsupervised[:3] == [0, 0, 0] and min(unsupervised[3:]) > 0
  assert lines[-1]['train/bank_fill/0'] > 0
  assert 0 < lines[-1]['train/pseudo_label_accuracy'] <= 1
  assert 0.8 < lines[3]['train/reliable_share'] < 1
  state = runs.read_state(stage)
  assert np.any(state['bank']['rows']) and np.all(state['bank']['count'] > 0)
  text = runs.read_log(whole)
  assert '4 labeled and 8 unlabeled images' in text
  assert 'bank_fill' not in text  # Too long for the progress line.
  results = runs.read_results(whole)['val']
  assert results['num_images'] == 4
  assert set(results['per_class']['iou']) == {'ground', 'disc'}


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(discs, whole, tmp_path):
  """Compares bank, prototypes and teacher as well."""
  workdir = tmp_path / 'run'
  for step in (2, 7):  # In the warm-up, and with a bank.
    process = runs.start(discs, workdir, method='u2pl')
    runs.signal_when(process, runs.step_logged(workdir / 'train', step))
  runs.complete(discs, workdir, method='u2pl')
  runs.assert_same_runs(workdir, whole, 'train')
  assert runs.read_results(workdir) == runs.read_results(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
  'system',
  [
    *('cps_cutmix', 'unimatch', 'unimatch_v2'),
    *('cct', 'gct', 'pseudoseg', 'pc2seg', 'ael', 'u2pl_ael'),
  ],
)
def test_a_killed_run_of_each_system_resumes_bit_for_bit(
  discs, tmp_path, system
):
  arguments = {'method': 'u2pl', 'options': f'system={system}'}
  whole = runs.complete(discs, tmp_path / 'whole', **arguments)
  workdir = tmp_path / 'run'
  process = runs.start(discs, workdir, **arguments)
  runs.signal_when(process, runs.step_logged(workdir / 'train', 7))
  runs.complete(discs, workdir, **arguments)
  runs.assert_same_runs(workdir, whole, 'train')
  assert runs.read_results(workdir) == runs.read_results(whole)


def test_missing_start_is_refused_in_one_line(discs, tmp_path):
  workdir = tmp_path / 'run'
  process = runs.start(
    *(discs, workdir, '--config.train.start.path=nowhere'),
    '--config.train.start.take=("encoder", "decoder")',
    method='u2pl',
  )
  assert runs.wait(process, workdir) == 2
  assert runs.read_log(workdir).count('error: ') == 1
  assert 'nowhere does not exist' in runs.read_log(workdir)
