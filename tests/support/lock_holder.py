"""Holds a lock file in another process, until it is killed."""

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator

_HOLD = """
import pathlib, sys, time
from runtime import process_lock
with process_lock.locking(pathlib.Path(sys.argv[1]), 'a test'):
  print('holding', flush=True)
  time.sleep(600)
"""


@contextlib.contextmanager
def holding(path: pathlib.Path) -> Iterator[int]:
  """Yields the id of a process that holds the lock; kills it in the end."""
  command = [sys.executable, '-c', _HOLD, path]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    try:
      assert process.stdout.readline() == 'holding\n'
      yield process.pid
    finally:
      process.kill()
