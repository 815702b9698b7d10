import json

from runtime import metrics_file


def test_resuming_drops_later_lines_and_a_truncated_one(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  first = metrics_file.MetricsFile(path, step=0)
  for step in (10, 20, 30):
    first.write(step, {'train/loss': step / 3})
  with open(path, 'a') as file:
    file.write('{"step": 40, "tra')  # Killed while writing.
  second = metrics_file.MetricsFile(path, step=20)
  second.write(30, {'train/loss': 10.0})
  assert [line['step'] for line in metrics_file.read_metrics_file(path)] == [
    10,
    20,
    30,
  ]
  assert json.loads(path.read_text().splitlines()[0]) == {
    'step': 10,
    'train/loss': 10 / 3,
  }
