"""Ctrl-C in two steps: the first asks a process to stop, the second ends it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from runtime import console, exit_status


@contextlib.contextmanager
def stopping_gently(request: Callable[[], None], notice: str) -> Iterator[None]:
  """Makes the first Ctrl-C call `request`; the second ends the process at once.

  Signals are read by a thread: Python's own handlers wait for the main thread,
  which may be in a compiler for minutes. Where Ctrl-C is ignored (`nohup`) or
  handled by others, and in other threads than the main one, nothing changes.

  Args:
    request: function that asks for the stop; called in another thread than the
      main one.
    notice: line that is printed at the first Ctrl-C.
  """
  if (
    threading.current_thread() is not threading.main_thread()
    or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
  ):
    yield
    return
  incoming, outgoing = os.pipe()
  os.set_blocking(outgoing, False)

  def listen() -> None:
    interrupts = 0
    while number := os.read(incoming, 1):  # Empty once the other end is closed.
      if number[0] != signal.SIGINT:
        continue
      interrupts += 1
      if interrupts > 1:
        os._exit(exit_status.INTERRUPTED)
      else:
        console.print_line(notice)
        request()

  listener = threading.Thread(target=listen, name='Ctrl-C', daemon=True)
  listener.start()
  # A handler of Python's is what writes the number of the signal to the pipe.
  signal.signal(signal.SIGINT, lambda *_: None)
  before = signal.set_wakeup_fd(outgoing, warn_on_full_buffer=False)
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(outgoing)
    listener.join()
    os.close(incoming)
