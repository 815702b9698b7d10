"""Exit statuses of command lines, which launchers and schedulers read, too."""

import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn

SUCCESS = 0
FAILURE = 1  # Of Python after an exception, and of most programs.
USER_ERROR = 2
PREEMPTED = 75  # EX_TEMPFAIL: launchers run the same command again.
# 128 + the number of a signal, as a shell reports a process that it ended.
INTERRUPTED = 130  # SIGINT, after Ctrl-C.
KILLED = 137  # SIGKILL, also for lack of memory.
BROKEN_PIPE = 141  # SIGPIPE.
TERMINATED = 143  # SIGTERM.


def exit_with_status(main: Callable[[], int]) -> NoReturn:
  """Runs `main` and ends this process with the exit status that it returns.

  When the reader of standard output closes it (`… --dry_run | head`), the
  process ends without a message and with exit status 141.
  """
  try:
    code = main()
    sys.stdout.flush()
  except BrokenPipeError:
    out = sys.stdout.fileno()
    if not _is_closed_by_reader(out):
      raise  # Another pipe is broken.
    # Otherwise Python flushes the rest at exit, fails again and reports it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    code = BROKEN_PIPE
  sys.exit(code)


def _is_closed_by_reader(descriptor: int) -> bool:
  """Returns whether the other end of a pipe or socket is closed."""
  poll = select.poll()
  poll.register(descriptor, 0)  # POLLERR is reported even if not asked for.
  return bool(poll.poll(0))
