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


def _run(code: str) -> list[int]:
  """Runs code in a new process; returns the integers that it prints."""
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=runs.ROOT,
    stdout=subprocess.PIPE,
    check=True,
  )
  return [int(x) for x in done.stdout.split()]


def test_arrays_reuse_the_memory_of_freed_ones():
  (faults,) = _run(_COUNT_FAULTS)
  assert faults < 4096  # The pages of one array.


# Prints by how much 64 freed arrays of 4 MiB enlarge the process, before and
# after they are returned; one of 16 bytes that stays lies between two of them.
_MEASURE_RETURNED = """
import pathlib
import numpy as np
from runtime import memory

memory.keep_freed_memory()

def resident():
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096

start = resident()
arrays = [(np.ones(2**22, np.uint8), bytearray(16)) for _ in range(64)]
small = [kept for _, kept in arrays]
del arrays
kept = resident() - start
memory.return_freed_memory()
print(kept, resident() - start)
"""


def test_kept_memory_is_returned_on_request():
  kept, left = _run(_MEASURE_RETURNED)
  assert kept > 60 * 2**22
  assert left < 4 * 2**22


def test_garbage_is_collected_after_the_context_as_before():
  with memory.without_garbage_collection():
    assert not gc.isenabled()
    with memory.without_garbage_collection():
      assert not gc.isenabled()
    assert not gc.isenabled()
  assert gc.isenabled()
