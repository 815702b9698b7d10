"""Memory of the process: blocks kept for reuse, and garbage collection."""

import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable, Iterator

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
  mallopt = _malloc_function('mallopt')
  if mallopt:
    mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
    mallopt(_TRIM_THRESHOLD, _KEPT)


def return_freed_memory() -> None:
  """Returns what is kept to the operating system, for once.

  For after work that is seldom done and takes other blocks than the rest, as
  saving does: kept among the others, they would make the process grow.
  """
  trim = _malloc_function('malloc_trim')
  if trim:
    trim(0)


def _malloc_function(name: str) -> Callable[..., int] | None:
  """Returns a function of glibc's malloc.h; None with another C library."""
  try:
    return getattr(ctypes.CDLL(None), name)
  except (AttributeError, OSError, TypeError):
    return None


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
