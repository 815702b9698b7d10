"""Files of a work folder, on a local file system or in a bucket (`gs://…`).

  workdir = files.parse_file_path('gs://bucket/run', '--workdir')
  files.write_atomically(workdir / 'settings.json', text)

A bucket holds objects: one appears complete when it is closed, cannot be
appended to, and is renamed by copying it; there are no empty folders. On a file
system, a file appears complete only by being renamed into place.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from runtime import errors

# The two classes share all methods that are used on work folders.
Path = pathlib.Path | epath.Path

# The package that epath needs for each scheme.
_PACKAGES = {'gs': 'gcsfs'}


def parse_file_path(text: str, name: str) -> Path:
  """Parses a user's path of a local folder, or of a folder in a bucket.

  Args:
    text: a local path, where `~` is expanded, or `gs://BUCKET/FOLDER`.
    name: name of the flag or field, for messages.

  Raises:
    UserError: the scheme is unknown, or its package is not installed.
  """
  scheme, colon, _ = text.partition('://')
  if not colon:
    return pathlib.Path(text).expanduser()
  if scheme not in _PACKAGES:
    raise errors.UserError(
      f'{name}: expected a folder or gs://BUCKET/FOLDER, got {text}'
    )
  if not _is_installed(_PACKAGES[scheme]):
    raise errors.UserError(
      f'{name}: {text} needs a package: pip install {_PACKAGES[scheme]}'
    )
  return epath.Path(text)


def _is_installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


def is_local_path(path: Path) -> bool:
  """Returns whether a path is on a local file system."""
  return isinstance(path, pathlib.Path)


def absolute_path(path: Path) -> Path:
  """Returns a local path from the root, and a path in a bucket as it is."""
  return path.absolute() if is_local_path(path) else path


def resolve_links(path: Path) -> Path:
  """Returns a local path without links, and a path in a bucket as it is."""
  return path.resolve() if is_local_path(path) else path


def write_atomically(
  path: Path, content: str | bytes, durable: bool = True
) -> None:
  """Writes a file atomically: readers get the old content or all of the new.

  Args:
    path: path of the file; a missing folder is created.
    content: text (written as UTF-8) or bytes.
    durable: whether the content is flushed to the disk before the function
      returns, so that it survives a power failure.
  """
  with atomic_file(path, durable) as file:
    file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
  """Opens a binary file that appears at `path` when the block ends normally.

  Args:
    path: path of the file, local or in a bucket; a missing folder is created.
    durable: whether the content is flushed to the disk before the block ends.
  """
  if not is_local_path(path):
    content = io.BytesIO()
    yield content
    path.write_bytes(content.getvalue())
    return
  with atomic_path(path) as temporary, open(temporary, 'wb') as file:
    yield file
    if durable:
      file.flush()
      os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path that is renamed to `path` when the block ends.

  For writers that need a path instead of an open file. If the block raises, the
  temporary file is removed and `path` stays as it was.
  """
  # Several processes may write the same file; each has its own temporary one.
  temporary = path.with_name(f'{path.name}.{os.getpid()}.partial')
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield temporary
    temporary.rename(path)
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def explaining_os_errors(what: str, path: Path | str) -> Iterator[None]:
  """Turns an OSError of the block into a UserError of one line.

  Args:
    what: name of the data set or archive that is being prepared.
    path: path that the message names if the error names no file.

  Raises:
    UserError: the block raised an OSError.
  """
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      errors.format_on_one_line(
        f'{what} cannot be prepared: {error.strerror or error} '
        f'({error.filename or path}): free some space or correct the path, '
        'and run the same command again; finished parts are kept'
      )
    ) from error


def cannot_write(path: Path, error: OSError) -> errors.UserError:
  """Builds the error about a file of a work folder that cannot be written."""
  return errors.UserError(
    f'cannot write {path} ({error.strerror or error}): free some space, or '
    'choose another --workdir'
  )


def walk_files(path: Path) -> Iterator[Path]:
  """Yields the files below a folder, sorted; yields a single file itself."""
  if not path.is_dir():
    yield path
    return
  for entry in sorted(path.iterdir()):
    yield from walk_files(entry)


def file_checksum(path: Path) -> str:
  """Returns a text that differs after the file was damaged.

  The text is the SHA-256 of a local file, and the length of an object in a
  bucket: the store writes and checks objects as a whole, and downloading one to
  hash it would cost as much as loading it.
  """
  if not is_local_path(path):
    return f'{path.stat().length} bytes'
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def remove_folder(path: Path) -> None:
  """Removes a folder and all of its content; does nothing if it is missing."""
  epath.Path(path).rmtree(missing_ok=True)
