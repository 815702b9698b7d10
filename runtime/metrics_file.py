"""The file `metrics.jsonl`, which has one line of JSON per logged step."""

import json
from collections.abc import Mapping
from typing import Any

import jax

from runtime import files, json_files


class MetricsFile:
  """Writes one line per logged step, without gaps or repetitions.

  Only host 0 writes. Objects in a bucket cannot be appended to: there, lines
  are readable after `flush`.
  """

  def __init__(self, path: files.Path, step: int):
    """Opens the file and drops the lines of steps after `step`.

    A run that resumes at `step` writes those lines again.

    Args:
      path: path of the file, which need not exist.
      step: last step whose line is kept.
    """
    self._path = path if jax.process_index() == 0 else None
    # All lines of a file in a bucket, and the number of those already written:
    # an object cannot be appended to, so every flush writes all lines again.
    self._lines: list[str] = []
    self._flushed = 0
    if self._path and path.exists():
      lines = path.read_text().splitlines(keepends=True)
      kept = [line for line in lines if _is_kept(line, step)]
      files.write_atomically(path, ''.join(kept), durable=False)
      if not files.is_local_path(path):
        self._lines, self._flushed = kept, len(kept)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends a line with the step and the scalars by name."""
    if not self._path:
      return
    # JSON has no NaN.
    content = json_files.json_null_where_not_finite({'step': step, **values})
    line = json.dumps(content, allow_nan=False) + '\n'
    if files.is_local_path(self._path):
      with open(self._path, 'a') as file:
        file.write(line)
    else:
      self._lines.append(line)

  def flush(self) -> None:
    """Makes all lines so far readable by other processes."""
    count = len(self._lines)  # Another thread may append meanwhile.
    if count > self._flushed:
      files.write_atomically(self._path, ''.join(self._lines[:count]))
      self._flushed = count


def _is_kept(line: str, step: int) -> bool:
  if not line.endswith('\n'):  # Truncated: the process was killed.
    return False
  return json.loads(line)['step'] <= step


def read_metrics_file(path: files.Path) -> list[dict[str, Any]]:
  """Reads the lines of a `metrics.jsonl`, each as a dict of scalars by name."""
  return [json.loads(line) for line in path.read_text().splitlines()]
