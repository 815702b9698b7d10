import subprocess
import sys

import pytest

from runtime import console
from segcore.experiment import cli
from tests.support import runs


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
def test_durations_are_formatted_in_two_units(seconds, text):
  assert console.format_duration(seconds) == text


def test_speed_excludes_pauses(capsys, monkeypatch):
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


def test_no_speed_right_after_a_restart(capsys):
  progress = console.ProgressLine('denoise', 0, 100, 8)
  progress.restart(1)
  assert progress.report(1, {'loss': 0.5}) == {}
  assert capsys.readouterr().out == 'denoise 1/100  loss 0.5\n'


ALARM = """
E0000 00:00:17 123 slow_operation_alarm.cc:73]
********************************
[Compiling module jit_step for CPU] Very slow compile? If you want to file a bug
********************************
E0000 00:00:19 123 slow_operation_alarm.cc:140] The operation took 2m31s
"""


def test_the_alarm_of_a_slow_compilation_is_hidden():
  program = f"""
import os, sys
from runtime import console
console.hide_stderr_lines({cli._HIDDEN_LINES!r})
os.write(2, {ALARM.encode()!r} + b'failed call to cuInit\\n')
print('error: x', file=sys.stderr)
os._exit(3)
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 3
  lines = [line for line in done.stderr.splitlines() if line]
  assert sorted(lines) == ['error: x', 'failed call to cuInit']
