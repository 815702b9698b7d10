"""JSON files of a work folder, written by host 0 only."""

import json
from typing import Any

import jax

from runtime import errors, files


def write_json(path: files.Path, content: Any) -> None:
  """Writes JSON atomically from host 0; the other hosts write nothing.

  Raises:
    UserError: the folder cannot be written.
  """
  if jax.process_index() != 0:
    return
  try:
    files.write_atomically(path, json.dumps(content, indent=1, sort_keys=True))
  except OSError as error:
    raise errors.UserError(
      f'cannot write {path} ({error.strerror or error}): free some space, or '
      'choose another --workdir'
    ) from error


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
