"""What a person reads while training runs, and what stays to be read after."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from runtime import files, progress


class Journal:
  """`metrics.jsonl`: one line a logged step, without gaps or repetitions.

  A restart at step s drops the lines of later steps, which will come again.
  Only host 0 writes. In a bucket, which cannot be added to, the lines are there
  after `flush`.
  """

  def __init__(self, path: files.Path, step: int):
    self._path = path if jax.process_index() == 0 else None
    # Of a journal in a bucket, and how many of them are there.
    self._lines: list[str] = []
    self._flushed = 0
    if self._path and path.exists():
      lines = path.read_text().splitlines(keepends=True)
      kept = [line for line in lines if _is_kept(line, step)]
      files.write(path, ''.join(kept), durable=False)
      if not files.is_local(path):
        self._lines, self._flushed = kept, len(kept)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds a line."""
    if not self._path:
      return
    line = json.dumps({'step': step, **values}) + '\n'
    if files.is_local(self._path):
      with open(self._path, 'a') as file:
        file.write(line)
    else:
      self._lines.append(line)

  def flush(self) -> None:
    """Returns when all lines so far can be read by others."""
    count = len(self._lines)  # Another thread may add some.
    if count > self._flushed:
      files.write(self._path, ''.join(self._lines[:count]))
      self._flushed = count


def _is_kept(line: str, step: int) -> bool:
  if not line.endswith('\n'):  # Cut off by a kill.
    return False
  return json.loads(line)['step'] <= step


def read_journal(path: files.Path) -> list[dict[str, Any]]:
  """The lines of a `metrics.jsonl`."""
  return [json.loads(line) for line in path.read_text().splitlines()]


class Progress:
  """A line now and then: step, values, speed and the time that is left."""

  def __init__(self, name: str, step: int, num_steps: int, batch_size: int):
    self.name = name
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._last = (time.monotonic(), step)

  def line(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
    """Prints a line; returns steps/s and images/s since the last one.

    Right after `restart` there is no speed yet: the line and the dict lack it.
    """
    progress.sign(f'{self.name} {step}')
    now = time.monotonic()
    then, last_step = self._last
    self._last = (now, step)
    shown = '  '.join(f'{name} {value:.4g}' for name, value in values.items())
    told = f'{self.name} {step}/{self._num_steps}  {shown}'
    if step == last_step:
      say(told.rstrip())
      return {}
    rate = (step - last_step) / max(now - then, 1e-9)
    images = rate * self._batch_size
    left = duration((self._num_steps - step) / max(rate, 1e-9))
    say(f'{told}  {rate:.3g} steps/s  {images:.4g} images/s  ETA {left}')
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


def say(text: str) -> None:
  """Prints from host 0."""
  if jax.process_index() == 0:
    print(text, flush=True)


def duration(seconds: float | int) -> str:
  """Seconds as people say them.

  >>> duration(9), duration(75), duration(3700), duration(200000)
  ('9s', '1m15s', '1h01m', '2d07h')
  """
  seconds = round(seconds)
  minutes, hours = seconds // 60, seconds // 3600
  if hours >= 24:
    return f'{hours // 24}d{hours % 24:02}h'
  if hours:
    return f'{hours}h{minutes % 60:02}m'
  return f'{minutes}m{seconds % 60:02}s' if minutes else f'{seconds}s'
