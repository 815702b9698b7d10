"""The benchmarks run to their end at their smallest sizes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support import runs

TINY = {
  'u2pl_loss': '--images=2 --side=9 --dim=8 --threads=1 --rounds=1',
  'pass_evaluate': '--images=2 --classes=9 --rounds=1 --files=4',
  'pass_kmeans': '--rows=200 --dim=8 --clusters=3 --iterations=2 --rounds=1',
  'pass_sinkhorn': '--batch=8 --queue=16 --prototypes=6 --dim=4 --rounds=1',
  'depthwise': '--images=1 --side=16 --threads=1 --rounds=1',
  'input': '--rounds=1 --seconds=0.1 --batches=20 --threads=1',
  'semi_steps': '--systems cps_cutmix --network=small+unet --side=32 --batch=2 '
  '--threads=1 --rounds=1',
  'prepare': '--images=4 --rounds=1',
  'train_step': '--images=2 --side=32 --rounds=1 --threads=1',
  'predict': '--images=3 --sizes=2 --side=48 --rounds=1 --threads=1',
  'natural_data': '--images=20 --tested=10',
  'start_up': '--rounds=1',
}


@pytest.mark.slow
@pytest.mark.parametrize('name', TINY)
def test_a_benchmark_writes_its_results(name, tmp_path):
  out = tmp_path / 'results.json'
  command = [sys.executable, f'benchmarks/{name}.py', *TINY[name].split()]
  done = subprocess.run(
    [*command, f'--out={out}'], cwd=runs.ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads(out.read_text())['summary']
  for line in summary:
    assert line['name'] and line['value']
    assert (line['share'] is None) == (line['other'] == '')
  assert summary or name == 'natural_data'


@pytest.mark.slow
def test_clusters_are_compared_with_classes_and_backgrounds(tmp_path):
  out = tmp_path / 'results.json'

  def compare(count):
    # Classes take turns, and 70 % lie on the background that is theirs.
    clusters = np.arange(count, dtype=np.int32) % 10
    np.save(tmp_path / 'assignments.npy', clusters)
    return subprocess.run(
      [
        *(sys.executable, 'benchmarks/natural_data.py'),
        *(f'--clusters={tmp_path}', f'--out={out}'),
      ],
      cwd=runs.ROOT,
      capture_output=True,
      text=True,
    )

  other = compare(30)
  assert other.returncode == 1
  assert other.stderr.endswith(
    '--clusters: expected a cluster of each of 4,000 images, got 30\n'
  )
  done = compare(4000)
  assert done.returncode == 0, done.stderr
  results = json.loads(out.read_text())
  perfect = {'nmi': pytest.approx(1), 'accuracy': 1}
  assert results['clusters and classes'] == perfect
  backgrounds = results['clusters and backgrounds']
  assert backgrounds['purity'] == pytest.approx(0.7, abs=0.03)
  assert backgrounds['nmi'] < 0.5
