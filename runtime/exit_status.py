"""How each command line of this project ends its process."""

import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn

USER_ERROR = 2
PREEMPTED = 75  # EX_TEMPFAIL: launchers run the same command again.
INTERRUPTED = 130
BROKEN_PIPE = 141  # As of a process that is ended by SIGPIPE.


def run(main: Callable[[], int]) -> NoReturn:
  """Ends this process with the exit status that `main` returns.

  When nobody reads what is printed any longer (`… --dry_run | head`), work ends
  there, without a word, and the exit status is 141.
  """
  try:
    code = main()
    sys.stdout.flush()
  except BrokenPipeError:
    out = sys.stdout.fileno()
    if not _unread(out):
      raise  # It was another pipe.
    # What is left to print would fail again when the process ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    code = BROKEN_PIPE
  sys.exit(code)


def _unread(descriptor: int) -> bool:
  """Whether this is a pipe or socket whose other end is closed."""
  poll = select.poll()
  poll.register(descriptor, 0)  # Errors are always told.
  return bool(poll.poll(0))
