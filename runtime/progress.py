"""Progress of long work: bars, and the last activity of this process.

A bar is drawn on a terminal and printed once a minute to a log. The time of the
last activity lets other hosts notice that this process stalls (see
`segcore.distributed.heartbeat`).
"""

import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import tqdm

# Seconds between two lines of a log; work that is shorter prints nothing.
_LOG_INTERVAL = 60


class Activity(NamedTuple):
  """A moment at which this process made progress.

  Attributes:
    time: time of the progress on this process's monotonic clock, in seconds.
    what: description of the progress, such as 'step 7 of denoise'.
  """

  time: float
  what: str


# The latest activity. A list of one element and the only module state here: a
# process stalls as a whole, so code at any depth (reading files, k-means, the
# training loop) records to one place without being passed an object. The
# assignment of an element is atomic; threads need no lock.
_latest = [Activity(time.monotonic(), 'its start')]


def record_activity(what: str) -> None:
  """Records that this process made progress just now.

  Args:
    what: description of the progress, such as 'step 7 of denoise'.
  """
  _latest[0] = Activity(time.monotonic(), what)


def last_activity() -> Activity:
  """Returns the latest recorded activity of this process."""
  return _latest[0]


class _Bar(tqdm.tqdm):
  """A progress bar that records an activity at each update."""

  def update(self, n: int | float | None = 1) -> bool | None:
    """Advances the bar by `n`, as `tqdm.tqdm.update` does."""
    record_activity(f'{self.desc or self.unit} {self.n}'.replace(': ', ' '))
    return super().update(n)


def progress_bar(
  items: Iterable[Any] | None = None, *, unit: str = 'image', **options: Any
) -> tqdm.tqdm:
  """Returns a tqdm bar on stderr, with the estimated time left.

  Args:
    items: the items over which the bar iterates; None for a bar that the caller
      advances with `update`.
    unit: name of one item, shown after the count.
    **options: further arguments of `tqdm.tqdm`.
  """
  if not sys.stderr.isatty():
    options |= {
      'delay': _LOG_INTERVAL,
      'mininterval': _LOG_INTERVAL,
      'ascii': True,
    }
  return _Bar(items, unit=unit, **options)
