"""A map over items in threads, which keeps the order of the items."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')


def count_usable_cpus() -> int:
  """Returns the number of processors that this process may run on."""
  if hasattr(os, 'sched_getaffinity'):  # Linux.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def map_in_threads(
  function: Callable[[Item], Result],
  items: Iterable[Item],
  num_threads: int | None = None,
) -> Iterator[Result]:
  """Yields `function(item)` in the order of the items, computed in threads.

  At most four results per thread are computed ahead of the one that is
  consumed, so that memory stays bounded for endless `items`.

  Args:
    function: function of one item, called in a thread; an exception that it
      raises is raised again by this iterator.
    items: the items, which are read in the thread of the caller.
    num_threads: number of threads; None for one per usable processor. One is
      that of the caller, which computes nothing ahead.
  """
  threads = num_threads or count_usable_cpus()
  if threads == 1:
    yield from map(function, items)
    return
  pending = collections.deque()
  # Threads suffice: PIL, OpenCV and NumPy release the GIL in their C code.
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    try:
      for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > 4 * threads:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    finally:
      for future in pending:
        future.cancel()
