"""Digests of files, computed again only where a file may have changed.

  cache = DigestCache(data_dir / '.digests/roads.json')
  cache.digests(paths)  # Reads the files that are new or of another time.
  cache.write()

A file is known by its path, size and modification time; then it is not read.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

from runtime import files, progress, threads

_DIGEST_BYTES = 16
# Seconds before a progress bar appears.
_DELAY = 2


class DigestCache:
  """Digests of files, kept in a JSON file."""

  def __init__(self, path: pathlib.Path):
    """Reads the file; one that is missing or damaged counts as empty."""
    self._path = path
    self._known: dict[str, list[int | str]] = {}
    self._changed = False
    try:
      content = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError):
      content = {}
    if isinstance(content, dict):
      self._known = content

  def digests(self, paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns a digest of the content of each file; '' if it cannot be read."""
    results = threads.map_in_threads(self._digest, paths)
    bar = progress.progress_bar(
      results, desc='reading files', total=len(paths), delay=_DELAY
    )
    keys = [os.path.abspath(path) for path in paths]
    current = dict(zip(keys, bar, strict=True))
    self._changed = current != self._known
    self._known = current
    return [str(current[key][-1]) for key in keys]

  def write(self) -> None:
    """Writes the digests if they have changed, unless the folder is read-only.

    Without them, all files are read again the next time.
    """
    if not self._changed:
      return
    try:
      with files.atomic_path(self._path) as partial:
        partial.write_text(json.dumps(self._known), 'utf-8')
      self._changed = False
    except OSError:
      pass

  def _digest(self, path: pathlib.Path) -> list[int | str]:
    """Returns size, modification time in nanoseconds, and digest."""
    try:
      status = path.stat()
      state = [status.st_size, status.st_mtime_ns]
      known = self._known.get(os.path.abspath(path), [])
      if known[:-1] == state:
        return known
      with path.open('rb') as file:
        digest = hashlib.file_digest(
          file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)
        )
      return [*state, digest.hexdigest()]
    except OSError:
      return [0, 0, '']
