import json

import pytest

from runtime import console, metrics_file


def test_a_restart_drops_later_lines_and_a_cut_off_one(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  first = metrics_file.MetricsFile(path, step=0)
  for step in (10, 20, 30):
    first.write(step, {'train/loss': step / 3})
  with open(path, 'a') as file:
    file.write('{"step": 40, "tra')  # Killed while writing.
  second = metrics_file.MetricsFile(path, step=20)
  second.write(30, {'train/loss': 10.0})
  assert [line['step'] for line in metrics_file.read(path)] == [10, 20, 30]
  assert json.loads(path.read_text().splitlines()[0]) == {
    'step': 10,
    'train/loss': 10 / 3,
  }


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0.4, '0s'),
    (59, '59s'),
    (75, '1m15s'),
    (3599, '59m59s'),
    (3700, '1h01m'),
    (86399, '23h59m'),
    (200000, '2d07h'),
  ],
)
def test_durations(seconds, text):
  assert console.format_duration(seconds) == text


def test_progress_counts_speed_without_pauses(capsys, monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(console.time, 'monotonic', lambda: clock[0])
  progress = console.ProgressLine('denoise', 0, 100, batch_size=8)
  clock[0] += 5  # Ten steps in five seconds …
  with progress.paused():
    clock[0] += 1000  # … and an evaluation.
  speed = progress.report(10, {'loss': 0.5})
  assert speed == {'steps_per_second': 2.0, 'images_per_second': 16.0}
  assert 'denoise 10/100  loss 0.5  2 steps/s  16 images/s  ETA 45s' in (
    capsys.readouterr().out
  )


def test_there_is_no_speed_right_after_a_restart(capsys):
  progress = console.ProgressLine('denoise', 0, 100, 8)
  progress.restart(1)
  assert progress.report(1, {'loss': 0.5}) == {}
  assert capsys.readouterr().out == 'denoise 1/100  loss 0.5\n'
