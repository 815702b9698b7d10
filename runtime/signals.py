"""Handlers of signals for a while; needs the standard library only."""

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any


@contextlib.contextmanager
def handling_signals(
  numbers: Iterable[int], handler: Callable[[int, Any], None]
) -> Iterator[None]:
  """Handles signals by a function until the context ends.

  Args:
    numbers: numbers of the signals.
    handler: called in the main thread with the number and the stack frame.
  """
  before = {number: signal.signal(number, handler) for number in numbers}
  try:
    yield
  finally:
    for number, earlier in before.items():
      signal.signal(number, earlier)
