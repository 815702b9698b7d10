"""Runs commands so that a request to stop never leaves one half done."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from runtime import errors, signals

_TICK_SECONDS = 0.05
# From asking an interrupted command to end until it is killed.
_END_SECONDS = 3.0


class Interrupted(Exception):
  """Reports that the user asked to stop, by Ctrl-C or SIGTERM."""


@dataclasses.dataclass(frozen=True)
class Result:
  """The outcome of a command.

  Attributes:
    code: exit status.
    out: standard output; encode it with 'surrogateescape' to get back bytes
      that are not valid text.
    err: standard error.
  """

  code: int
  out: str
  err: str

  @property
  def error_line(self) -> str:
    """Returns the last line of standard error, or else of standard output.

    gcloud prints hints after its error: of its output, all lines from the last
    `ERROR:` on are returned.
    """
    lines = (self.err.strip() or self.out.strip()).splitlines()
    if not lines:
      return f'exit status {self.code}'
    starts = [i for i, line in enumerate(lines) if line.startswith('ERROR:')]
    return errors.format_on_one_line(
      ' '.join(lines[starts[-1] if starts else -1 :])
    )


@dataclasses.dataclass
class Shell:
  """Runs commands one after the other and handles requests to stop.

  Attributes:
    stop_requests: number of requests to stop so far.
    last_signal: number of the signal of the last request.
    is_deferring: whether requests are only counted, as during deletion.
    is_creating: whether a command is creating something, which must exist
      before it can be deleted.
  """

  stop_requests: int = 0
  last_signal: int = 0
  is_deferring: bool = False
  is_creating: bool = False

  def __call__(self, command: Sequence[str], creates: bool = False) -> Result:
    """Runs a command to its end.

    Args:
      command: program and arguments; not interpreted by a shell.
      creates: whether the command creates something and therefore must not be
        ended early.

    Raises:
      Interrupted: the user asked to stop, before or meanwhile.
      UserError: the program is not installed.
    """
    self.check()
    try:
      process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # The terminal sends Ctrl-C to this process only, which handles it.
        start_new_session=True,
      )
    except FileNotFoundError:
      raise errors.UserError(
        f'{command[0]} is not installed here: install it, or choose another '
        '--backend'
      ) from None
    self.is_creating = creates
    while True:
      try:
        out, err = process.communicate(timeout=_TICK_SECONDS)
        break
      except subprocess.TimeoutExpired:
        if self._must_stop() and not creates:
          _end_group(process)
          raise Interrupted from None
    self.is_creating = False
    self.check()
    return Result(
      process.returncode,
      out.decode(errors='surrogateescape'),
      err.decode(errors='surrogateescape'),
    )

  def sleep(self, seconds: float) -> None:
    """Sleeps; raises Interrupted as soon as the user asks to stop."""
    end = time.monotonic() + seconds
    while True:
      self.check()
      remaining = end - time.monotonic()
      if remaining <= 0:
        return
      time.sleep(min(remaining, _TICK_SECONDS))

  def check(self) -> None:
    """Raises Interrupted if the user asked to stop."""
    if self._must_stop():
      raise Interrupted

  def _must_stop(self) -> bool:
    return bool(self.stop_requests) and not self.is_deferring

  @contextlib.contextmanager
  def deferring_stop(self) -> Iterator[None]:
    """Defers requests to stop until the context ends; they are only counted."""
    before, self.is_deferring = self.is_deferring, True
    try:
      yield
    finally:
      self.is_deferring = before

  @contextlib.contextmanager
  def handling_signals(self, notify: Callable[[str], None]) -> Iterator[None]:
    """Counts SIGINT and SIGTERM as requests to stop while the context lasts.

    Args:
      notify: function that shows the user a message, called when a request has
        to wait.
    """

    def request_stop(number: int, _) -> None:
      self.stop_requests += 1
      self.last_signal = number
      if self.is_deferring:
        notify('still stopping what was started; please wait')
      elif self.is_creating:
        notify(
          'a request is in progress and must finish before it can be undone; '
          'please wait'
        )

    numbers = (signal.SIGINT, signal.SIGTERM)
    with signals.handling_signals(numbers, request_stop):
      yield


def _end_group(process: subprocess.Popen) -> None:
  """Ends a command and its children, such as the ssh that gcloud starts."""
  for number in (signal.SIGTERM, signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.communicate(timeout=_END_SECONDS)
      return
