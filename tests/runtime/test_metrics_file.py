import json

from runtime import json_files, metrics_file


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


def test_what_is_not_finite_is_null(tmp_path):
  values = {'val/miou': float('nan'), 'loss': [1.0, float('inf')]}
  file = metrics_file.MetricsFile(tmp_path / 'metrics.jsonl', step=0)
  file.write(3, values)
  json_files.write_json(tmp_path / 'results.json', {'a': {'b': values}})
  expected = {'val/miou': None, 'loss': [1.0, None]}
  for path in ('metrics.jsonl', 'results.json'):
    assert 'NaN' not in (tmp_path / path).read_text()
  assert metrics_file.read_metrics_file(tmp_path / 'metrics.jsonl') == [
    {'step': 3, **expected}
  ]
  assert json_files.read_json(tmp_path / 'results.json') == {
    'a': {'b': expected}
  }
