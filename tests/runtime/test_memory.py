"""Freed memory is kept for the next arrays; collections wait for the end."""

import gc
import subprocess
import sys

from runtime import memory
from tests.support import runs

# Prints the page faults of 50 arrays of 16 MiB, after the first one.
_COUNT_FAULTS = """
import resource
import numpy as np
from runtime import memory

memory.keep_freed_memory()

def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

np.ones(2**24, np.uint8)
before = faults()
for _ in range(50):
  np.ones(2**24, np.uint8)
print(faults() - before)
"""


def test_arrays_reuse_the_memory_of_freed_ones():
  done = subprocess.run(
    [sys.executable, '-c', _COUNT_FAULTS],
    cwd=runs.ROOT,
    stdout=subprocess.PIPE,
    check=True,
  )
  assert int(done.stdout) < 4096  # The pages of one array.


def test_garbage_is_collected_after_the_context_as_before():
  with memory.without_garbage_collection():
    assert not gc.isenabled()
    with memory.without_garbage_collection():
      assert not gc.isenabled()
    assert not gc.isenabled()
  assert gc.isenabled()
