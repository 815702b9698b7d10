"""JSON files of a work folder, written by host 0 only."""

import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epy

from runtime import errors, files

with epy.lazy_imports():
  import jax


def json_null_where_not_finite(content: Any) -> Any:
  """Replaces NaN and infinity, which JSON does not have, by None.

  >>> json_null_where_not_finite({'miou': float('nan'), 'iou': (0.5, 1)})
  {'miou': None, 'iou': [0.5, 1]}

  Args:
    content: numbers, texts, lists, tuples and dicts of any depth.
  """
  if isinstance(content, Mapping):
    return {
      k: json_null_where_not_finite(value) for k, value in content.items()
    }
  if isinstance(content, (list, tuple)):
    return [json_null_where_not_finite(value) for value in content]
  if isinstance(content, float) and not math.isfinite(content):
    return None
  return content


def write_json(path: files.Path, content: Any) -> None:
  """Writes JSON atomically from host 0; the other hosts write nothing.

  Raises:
    UserError: the folder cannot be written.
  """
  if jax.process_index() != 0:
    return
  try:
    text = json.dumps(
      json_null_where_not_finite(content),
      indent=1,
      sort_keys=True,
      allow_nan=False,
    )
    files.write_atomically(path, text)
  except OSError as error:
    raise files.cannot_write(path, error) from error


def read_json(path: files.Path) -> Any:
  """Reads the content of a file that `write_json` has written.

  Raises:
    UserError: the file is no longer valid JSON.
  """
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise errors.UserError(
      f'{path} is damaged ({error}): restore it from a copy, or remove '
      f'{path.parent} to run the stage again'
    ) from error


def require_unchanged_json(path: files.Path, content: Any, what: str) -> None:
  """Writes JSON the first time, and later checks that the content is the same.

  Args:
    path: path of the file, which is absent the first time.
    content: any value that JSON can hold.
    what: name of the content in the message: 'the data set'.

  Raises:
    UserError: the content differs from that of the file.
  """
  if path.exists() and read_json(path) != content:
    raise errors.UserError(
      f'{what} changed since {path.parent} was started (see {path.name}): put '
      'it back, or choose another --workdir'
    )
  write_json(path, content)
