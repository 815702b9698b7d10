"""Processes exit with the status of main, or silently at a closed stdout."""

import subprocess
import sys

import pytest

_PROGRAM = """
import os
from runtime import exit_status

def main():
  {body}
  return 3

exit_status.exit_with_status(main)
"""
_PRINTS = 'for n in range(100_000): print(n, flush={flush})'
# A pipe of the program's own, whose reader has gone.
_WRITES = 'ends = os.pipe(); os.close(ends[0]); os.write(ends[1], b"x")'


def _run(body, tail='| cat', **environ):
  return subprocess.run(
    [
      *('bash', '-c', f'"$0" -c "$1" {tail}; echo "${{PIPESTATUS[0]}}"'),
      *(sys.executable, _PROGRAM.format(body=body)),
    ],
    env=environ,
    capture_output=True,
    text=True,
  )


def test_the_process_exits_with_the_status_of_main():
  done = _run('print("all")')
  assert (done.stdout, done.stderr) == ('all\n3\n', '')


@pytest.mark.parametrize('flush', [False, True])
@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_a_closed_stdout_ends_the_process_silently(unbuffered, flush):
  body = _PRINTS.format(flush=flush)
  done = _run(body, '| head -1', PYTHONUNBUFFERED=unbuffered)
  assert (done.stdout, done.stderr) == ('0\n141\n', '')


def test_another_closed_pipe_is_an_error():
  done = _run(_WRITES)
  assert done.stdout == '1\n'
  assert 'BrokenPipeError' in done.stderr
