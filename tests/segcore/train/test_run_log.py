"""Logs of a training: what its files and lines say."""

import numpy as np

from runtime import metrics_file
from segcore.cost import throughput
from segcore.distributed import sharding
from segcore.train import run_log, tensorboard


def test_an_evaluation_without_labels_is_null_and_explained(tmp_path, capsys):
  (tmp_path / run_log.PARAMETERS_FILE).write_text('')
  log = run_log.RunLog(
    tmp_path,
    0,
    10,
    4,
    sharding.make_mesh(),
    throughput.GoodputMeter(),
    {},
    zero_terms_until=0,
  )
  with log:
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
