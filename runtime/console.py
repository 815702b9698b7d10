"""Lines printed while training runs: messages, progress, durations."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import jax

from runtime import progress


class ProgressLine:
  """Prints progress of a training: step, values, speed and ETA."""

  def __init__(self, name: str, step: int, num_steps: int, batch_size: int):
    self.name = name
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._last = (time.monotonic(), step)

  def report(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
    """Prints a line; returns steps/s and images/s since the last one.

    Right after `restart` there is no speed yet: the line and the dict lack it.
    """
    progress.record_activity(f'{self.name} {step}')
    now = time.monotonic()
    then, last_step = self._last
    self._last = (now, step)
    shown = '  '.join(f'{name} {value:.4g}' for name, value in values.items())
    told = f'{self.name} {step}/{self._num_steps}  {shown}'
    if step == last_step:
      log(told.rstrip())
      return {}
    rate = (step - last_step) / max(now - then, 1e-9)
    images = rate * self._batch_size
    left = format_duration((self._num_steps - step) / max(rate, 1e-9))
    log(f'{told}  {rate:.3g} steps/s  {images:.4g} images/s  ETA {left}')
    return {'steps_per_second': rate, 'images_per_second': images}

  def restart(self, step: int) -> None:
    """Forgets what took time up to here: the first step, which compiles."""
    self._last = (time.monotonic(), step)

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Work between steps that is not to count as training time."""
    start = time.monotonic()
    yield
    then, step = self._last
    self._last = (then + time.monotonic() - start, step)


def log(text: str) -> None:
  """Prints a line from host 0; the other hosts print nothing."""
  if jax.process_index() == 0:
    print(text, flush=True)


def format_duration(seconds: float | int) -> str:
  """Formats a number of seconds for reading.

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
