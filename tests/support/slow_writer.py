"""A writer of empty shards, for processes that need not import pytest."""

import os
import signal
import time


class SlowWriter:
  """Writes an empty file per shard, after some time.

  Attributes:
    folder: folder of the files.
    failures: exception that writing a shard raises, by its name.
    killed: name of a shard at which the process is killed.
    stuck: name of a shard at which the process does not go on.
  """

  def __init__(self, folder, failures=None, killed='', stuck=''):
    self.folder = folder
    self.failures = failures or {}
    self.killed = killed
    self.stuck = stuck

  def write_shard(self, name, advance, num_threads):
    assert num_threads >= 1
    if name == self.killed:
      os.kill(os.getpid(), signal.SIGKILL)
    if name == self.stuck:
      time.sleep(600)
    if name in self.failures:
      raise self.failures[name]
    partial = self.folder / f'{name}.partial'
    partial.touch()
    try:
      for _ in range(3):
        advance()
        time.sleep(0.1)
    except BaseException:
      partial.unlink()
      raise
    partial.rename(self.folder / name)
