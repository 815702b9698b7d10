"""Lines that are printed while work runs: messages, progress, durations."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

from etils import epy

from runtime import progress

with epy.lazy_imports():
  import jax


class ProgressLine:
  """Prints the progress of a loop: step, values, speed and time left."""

  def __init__(self, name: str, step: int, num_steps: int, batch_size: int):
    """Starts the clock of the speed.

    Args:
      name: name of the work, the first word of every line.
      step: number of steps that are done already.
      num_steps: number of steps of the whole loop.
      batch_size: number of images of a step, for the speed in images.
    """
    self.name = name
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._last = (time.monotonic(), step)

  def report(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
    """Prints a line and returns the speed since the previous line.

    Args:
      step: number of steps that are done now.
      values: scalars to print, by name.

    Returns:
      `steps_per_second` and `images_per_second`; an empty dict right after
      `restart`, when no step has been measured.
    """
    progress.record_activity(f'{self.name} {step}')
    now = time.monotonic()
    last_time, last_step = self._last
    self._last = (now, step)
    formatted = '  '.join(f'{name} {v:.4g}' for name, v in values.items())
    line = f'{self.name} {step}/{self._num_steps}  {formatted}'
    if step == last_step:
      print_line(line.rstrip())
      return {}
    rate = (step - last_step) / max(now - last_time, 1e-9)
    images = rate * self._batch_size
    left = format_duration((self._num_steps - step) / max(rate, 1e-9))
    print_line(f'{line}  {rate:.3g} steps/s  {images:.4g} images/s  ETA {left}')
    return {'steps_per_second': rate, 'images_per_second': images}

  def restart(self, step: int) -> None:
    """Restarts the clock at `step`, after a step that compiled."""
    self._last = (time.monotonic(), step)

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Excludes the time of the block from the speed."""
    start = time.monotonic()
    yield
    last_time, step = self._last
    self._last = (last_time + time.monotonic() - start, step)


def print_line(text: str) -> None:
  """Prints a line from host 0; the other hosts print nothing."""
  if jax.process_index() == 0:
    print(text, flush=True)


def hide_stderr_lines(pattern: str) -> None:
  """Hides lines that libraries write to stderr, for the rest of the process.

  The lines pass through a child process, which outlives this one: the last ones
  are not lost in a crash. Python's own output does not take that way.

  Args:
    pattern: extended regular expression of `grep`, for lines of C++ code.
  """
  grep = shutil.which('grep')
  if grep is None:
    return
  sys.stderr.flush()
  terminal = os.dup(2)
  child = subprocess.Popen(
    (grep, '--line-buffered', '-vE', pattern),
    stdin=subprocess.PIPE,
    stdout=terminal,
    start_new_session=True,  # Ctrl-C must not end it.
  )
  os.dup2(child.stdin.fileno(), 2)
  child.stdin.close()
  child.returncode = 0  # It ends with the last writer; nobody waits for it.
  sys.stderr = os.fdopen(terminal, 'w', 1, errors='backslashreplace')


def format_duration(seconds: float | int) -> str:
  """Formats a number of seconds in its two largest units.

  >>> format_duration(9), format_duration(3700), format_duration(200000)
  ('9s', '1h01m', '2d07h')
  """
  seconds = round(seconds)
  minutes, hours = seconds // 60, seconds // 3600
  if hours >= 24:
    return f'{hours // 24}d{hours % 24:02}h'
  if hours:
    return f'{hours}h{minutes % 60:02}m'
  return f'{minutes}m{seconds % 60:02}s' if minutes else f'{seconds}s'
