"""Memory of the process: blocks kept for reuse, and garbage collection."""

import contextlib
import ctypes
import functools
import gc
from collections.abc import Iterator

# Parameters of mallopt in glibc's malloc.h, and their values in bytes: freed
# memory up to the first is kept, and blocks up to the second come from it.
_TRIM_THRESHOLD, _KEPT = -1, 2**30
_MMAP_THRESHOLD, _LARGEST_BLOCK = -3, 2**25


@functools.cache
def keep_freed_memory() -> None:
  """Keeps freed memory in this process for its next arrays.

  glibc returns the memory of large arrays to the operating system, which has to
  clear it again for the next ones: a quarter of the time of reading batches.
  Other allocators than glibc's are left as they are.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # Another C library.
    return
  mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
  mallopt(_TRIM_THRESHOLD, _KEPT)


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
  """Collects no garbage until the context ends.

  Imports allocate many objects that stay: searching them for garbage again and
  again takes an eighth of the time of a start.
  """
  enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if enabled:
      gc.enable()
