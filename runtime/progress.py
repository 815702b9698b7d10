"""How far something long has come: a bar on a terminal, else now and then.

And when this process has last come further at all: so others notice that it
stalls (see `segcore.distributed.heartbeat`).
"""

import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import tqdm

# Seconds between two lines of a log; what is done before that says nothing.
_PAUSE = 60


class Activity(NamedTuple):
  """A record_activity of life.

  Attributes:
    time: of this process's monotonic clock, in seconds.
    what: how far it had come.
  """

  time: float
  what: str


# A process has one life, and everything in it may show signs of it.
_signs = [Activity(time.monotonic(), 'its start')]


def record_activity(what: str) -> None:
  """Says that this process has come further.

  Args:
    what: to where: 'step 7 of denoise'.
  """
  _signs[0] = Activity(time.monotonic(), what)


def last_activity() -> Activity:
  """When this process has last come further, and to where."""
  return _signs[0]


class _Bar(tqdm.tqdm):
  """A bar whose moves are signs of life."""

  def update(self, n: int | float | None = 1) -> bool | None:
    """See `tqdm`."""
    record_activity(f'{self.desc or self.unit} {self.n}'.replace(': ', ' '))
    return super().update(n)


def bar(
  items: Iterable[Any] | None = None, *, unit: str = 'image', **options: Any
) -> tqdm.tqdm:
  """A bar with the time that is left, as tqdm's; it goes to stderr."""
  if not sys.stderr.isatty():
    options |= {'delay': _PAUSE, 'mininterval': _PAUSE, 'ascii': True}
  return _Bar(items, unit=unit, **options)
