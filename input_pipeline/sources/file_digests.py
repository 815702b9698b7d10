"""Digests of files, computed again only where a file may have changed.

  cache = DigestCache(data_dir / '.digests/roads.json')
  cache.digests(paths)  # Reads the files that are new or of another time.
  cache.write()

A file that is known by its path, size and modification time is not read.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

from runtime import console, errors, files, progress, threads

_DIGEST_BYTES = 16
# Seconds before a progress bar appears.
_DELAY = 2

# Size, modification time in nanoseconds, and digest of a file.
Entry = list[int | str]


class DigestCache:
  """Holds digests of files, and keeps them in a JSON file."""

  def __init__(self, path: pathlib.Path | None):
    """Sets where the digests are kept.

    Args:
      path: path of the JSON file, which may be missing; None to keep the
        digests in this process only.
    """
    self._path = path
    self._known: dict[str, Entry] = {}
    self._changed = False

  def digests(self, paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns a digest of the content of each file; '' if it cannot be read."""
    before = self._read()
    keys = [os.path.abspath(path) for path in paths]
    bar = progress.progress_bar(
      threads.map_in_threads(
        lambda key: _file_entry(key, before.get(key, [])), keys
      ),
      desc='reading files',
      unit=' files',
      total=len(keys),
      delay=_DELAY,
    )
    self._known = dict(zip(keys, bar, strict=True))
    self._changed = self._known != before
    return [str(self._known[key][-1]) for key in keys]

  def write(self) -> None:
    """Writes the digests if they have changed.

    Where they cannot be written, a warning is printed, and the files are read
    again the next time.
    """
    if not self._changed or self._path is None:
      return
    try:
      with files.atomic_path(self._path) as partial:
        partial.write_text(json.dumps(self._known), 'utf-8')
      self._changed = False
    except OSError as error:
      _warn_of_unwritten(str(self._path), error.strerror or str(error))

  def _read(self) -> dict[str, Entry]:
    """Reads the JSON file; one that is missing or damaged counts as empty."""
    if self._path is None:
      return {}
    try:
      content = json.loads(self._path.read_text('utf-8'))
    except (OSError, ValueError):
      return {}
    return content if isinstance(content, dict) else {}


@functools.cache  # A run writes the same cache several times.
def _warn_of_unwritten(path: str, reason: str) -> None:
  console.print_line(
    errors.format_on_one_line(
      f'warning: cannot write {path}: {reason}: all files of the data set are '
      'read again by the next run'
    )
  )


def _file_entry(path: str, known: Entry) -> Entry:
  """Returns the entry of a file, the known one if it has not changed."""
  try:
    status = os.stat(path)
    state = [status.st_size, status.st_mtime_ns]
    if known[:-1] == state:
      return known
    return [*state, _digest_file(path, *state)]
  except OSError:
    return [0, 0, '']


# A run opens a folder several times before its digests are written.
@functools.lru_cache(2**20)
def _digest_file(path: str, size: int, mtime: int) -> str:
  """Returns the digest of a file of this size and modification time."""
  del size, mtime  # They only tell a changed file from the one before.
  with open(path, 'rb') as file:
    return hashlib.file_digest(
      file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)
    ).hexdigest()
