"""Logs of a training: what its files and lines say."""

import jax
import jax.numpy as jnp
import numpy as np

from runtime import metrics_file
from segcore.cost import throughput
from segcore.distributed import sharding
from segcore.train import run_log, tensorboard


def open_log(directory):
  (directory / run_log.PARAMETERS_FILE).write_text('')
  return run_log.RunLog(
    directory,
    0,
    10,
    4,
    sharding.make_mesh(),
    throughput.GoodputMeter(),
    {},
    zero_terms_until=0,
  )


def test_operations_of_a_step_are_counted_where_the_peak_is_known(tmp_path):
  step = jax.jit(lambda x, y: x @ y)
  shapes = [jax.ShapeDtypeStruct((3, 3), jnp.float32)] * 2
  with open_log(tmp_path) as log:
    log.count_step_flops(step, *shapes)
    assert log.step_flops == 0  # The peak of a CPU is unknown.
    log.peak_flops = 1e12
    log.count_step_flops(step, *shapes)
    assert log.step_flops == 2 * 3**3


def test_an_evaluation_without_labels_is_null_and_explained(tmp_path, capsys):
  with open_log(tmp_path) as log:
    scalars = {'val/miou': float('nan'), 'train/miou': np.float64(0.5)}
    log.log_evaluation(5, tensorboard.Summaries(scalars, {}))
  [line] = metrics_file.read_metrics_file(tmp_path / 'metrics.jsonl')
  reason = 'val/miou: undefined, no label was counted for it'
  assert line == {
    'step': 5,
    'val/miou': None,
    'train/miou': 0.5,
    'undefined': reason,
  }
  out = capsys.readouterr().out
  assert f' 5  {reason}\n' in out
  assert 'nan' not in out
