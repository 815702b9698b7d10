"""How far something long has come: a bar on a terminal, else now and then."""

import sys
from collections.abc import Iterable
from typing import Any

import tqdm

# Seconds between two lines of a log; what is done before that says nothing.
_PAUSE = 60


def bar(
  items: Iterable[Any] | None = None, *, unit: str = 'image', **options: Any
) -> tqdm.tqdm:
  """A bar with the time that is left, as tqdm's; it goes to stderr."""
  if not sys.stderr.isatty():
    options |= {'delay': _PAUSE, 'mininterval': _PAUSE, 'ascii': True}
  return tqdm.tqdm(items, unit=unit, **options)
