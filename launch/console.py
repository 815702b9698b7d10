"""Output of the launcher: its messages on stderr, the job's log on stdout."""

import dataclasses
import math
import sys
import time

# Consecutive polls without an answer before the user is notified, and seconds
# until the notice is repeated.
_OUTAGE_POLLS = 3
_REPEAT_SECONDS = 600.0


def print_launcher_message(text: str) -> None:
  """Prints a message of the launcher itself to stderr."""
  print(f'launch: {text}', file=sys.stderr, flush=True)


def print_job_log(text: str) -> None:
  """Prints a part of the log of the job to stdout, byte for byte."""
  if text:
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors='surrogateescape'))
    sys.stdout.buffer.flush()


@dataclasses.dataclass
class OutageNotifier:
  """Notifies the user of an outage, once it has lasted for several polls."""

  _polls: int = 0
  _since: str = ''
  _notified: float = 0.0

  def record_poll(self, outage: str) -> None:
    """Records the result of a poll.

    Args:
      outage: reason why no worker answered; '' if one did.
    """
    if not outage:
      self._polls = 0
      return
    now = time.monotonic()
    self._polls += 1
    if self._polls == 1:
      self._since, self._notified = time.strftime('%H:%M:%S'), -math.inf
    if self._polls >= _OUTAGE_POLLS and now - self._notified >= _REPEAT_SECONDS:
      print_launcher_message(f'unreachable since {self._since}: {outage}')
      self._notified = now
