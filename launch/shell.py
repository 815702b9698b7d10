"""Running commands so that Ctrl-C never leaves one half done unseen."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from runtime import errors

_TICK_SECONDS = 0.05
# What is asked to end has so long until it is killed.
_ENDING_SECONDS = 3.0


class Interrupted(Exception):
  """Somebody asked to stop, by Ctrl-C or SIGTERM."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What a command left.

  Attributes:
    code: its exit status.
    out: what it printed; bytes that are no text come back when it is encoded
      with 'surrogateescape'.
    err: what it complained.
  """

  code: int
  out: str
  err: str

  @property
  def last_line(self) -> str:
    """The last thing it complained of, or else printed.

    After what gcloud calls an error come hints, so all from there on.
    """
    lines = (self.err.strip() or self.out.strip()).splitlines()
    if not lines:
      return f'exit status {self.code}'
    told = [i for i, line in enumerate(lines) if line.startswith('ERROR:')]
    return errors.one_line(' '.join(lines[told[-1] if told else -1 :]))


@dataclasses.dataclass
class Shell:
  """Runs commands, one after the other.

  Attributes:
    requests: how often somebody asked to stop.
    signal: by which signal, last.
    deaf: whether requests are only counted, as while deleting.
    making: whether something is made that has to be there to be deleted.
  """

  requests: int = 0
  signal: int = 0
  deaf: bool = False
  making: bool = False

  def __call__(self, command: Sequence[str], whole: bool = False) -> Result:
    """Runs a command to its end.

    Args:
      command: with its arguments; no shell reads them.
      whole: whether it must not be cut off, since it makes something.

    Raises:
      Interrupted: asked to stop, before or meanwhile.
      UserError: the command is not installed.
    """
    self.check()
    try:
      process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Ctrl-C is for this process, which decides what it means.
        start_new_session=True,
      )
    except FileNotFoundError:
      raise errors.UserError(
        f'{command[0]} is not installed here: install it, or choose another '
        '--backend'
      ) from None
    self.making = whole
    while True:
      try:
        out, err = process.communicate(timeout=_TICK_SECONDS)
        break
      except subprocess.TimeoutExpired:
        if self._due() and not whole:
          _end_group(process)
          raise Interrupted from None
    self.making = False
    self.check()
    return Result(
      process.returncode,
      out.decode(errors='surrogateescape'),
      err.decode(errors='surrogateescape'),
    )

  def sleep(self, seconds: float) -> None:
    """Waits; raises Interrupted as soon as somebody asks to stop."""
    end = time.monotonic() + seconds
    while True:
      self.check()
      left = end - time.monotonic()
      if left <= 0:
        return
      time.sleep(min(left, _TICK_SECONDS))

  def check(self) -> None:
    """Raises Interrupted if somebody asked to stop."""
    if self._due():
      raise Interrupted

  def _due(self) -> bool:
    return bool(self.requests) and not self.deaf

  @contextlib.contextmanager
  def undisturbed(self) -> Iterator[None]:
    """What must be done to its end, whoever asks to stop."""
    before, self.deaf = self.deaf, True
    try:
      yield
    finally:
      self.deaf = before

  @contextlib.contextmanager
  def heard(self, say: Callable[[str], None]) -> Iterator[None]:
    """Counts the signals that ask to stop."""

    def ask(number: int, _) -> None:
      self.requests += 1
      self.signal = number
      if self.deaf:
        say('still stopping what was started; please wait')
      elif self.making:
        say('what is just being made has to be there first; please wait')

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


def _end_group(process: subprocess.Popen) -> None:
  """Ends a command with all it has started, as gcloud starts ssh."""
  for sign in (signal.SIGTERM, signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, sign)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.communicate(timeout=_ENDING_SECONDS)
      return
