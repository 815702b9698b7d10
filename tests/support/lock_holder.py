"""Holds a lock file in another process, until it is killed.

A process that it has forked lives on until the block ends.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

_HOLD = """
import os, pathlib, sys, time
from runtime import process_lock
with process_lock.locking(pathlib.Path(sys.argv[1]), 'a test'):
  child = os.fork()
  if child:
    print(child, flush=True)
  time.sleep(600)
"""


@contextlib.contextmanager
def holding(path: pathlib.Path) -> Iterator[subprocess.Popen]:
  """Yields a process that holds the lock; kills it and its child in the end."""
  command = [sys.executable, '-c', _HOLD, path]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    child = int(process.stdout.readline())
    try:
      yield process
    finally:
      process.kill()
      os.kill(child, signal.SIGKILL)
