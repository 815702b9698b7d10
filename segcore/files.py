"""Files of a work folder, on this machine or in a bucket (`gs://…`).

  workdir = files.path('gs://bucket/run', '--workdir')
  files.write(workdir / 'settings.json', text)

A bucket holds objects. One appears as a whole when it is closed, cannot be
added to, and is renamed by copying it; there are no empty folders. On a file
system a file appears as a whole only by being renamed into place.
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

from input_pipeline import errors

# The methods of both are the same, as far as they are used here.
Path = pathlib.Path | epath.Path

# What each kind of address needs.
_PACKAGES = {'gs': 'gcsfs'}


def path(text: str, name: str) -> Path:
  """What a user has named: a path, or an address.

  Args:
    text: the path or address.
    name: of the flag or field, for messages.

  Raises:
    UserError: it is in a place of which nothing is known.
  """
  scheme, colon, _ = text.partition('://')
  if not colon:
    return pathlib.Path(text).expanduser()
  if scheme not in _PACKAGES:
    raise errors.UserError(
      f'{name}: found {text}, expected a folder, or gs://BUCKET/FOLDER'
    )
  if not _is_installed(_PACKAGES[scheme]):
    raise errors.UserError(
      f'{name}: {text} needs a package: pip install {_PACKAGES[scheme]}'
    )
  return epath.Path(text)


def _is_installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


def is_local(path: Path) -> bool:
  """Whether it is on a file system of this machine."""
  return isinstance(path, pathlib.Path)


def absolute(path: Path) -> Path:
  """The same, from the root; what is in a bucket is that always."""
  return path.absolute() if is_local(path) else path


def write(path: Path, content: str | bytes, sure: bool = True) -> None:
  """Writes a file, whole or not at all.

  Args:
    path: its folder is made.
    content: text, or bytes.
    sure: return only when it would outlive a loss of power.
  """
  with whole(path, sure) as file:
    file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole(path: Path, sure: bool = True) -> Iterator[BinaryIO]:
  """What is to be the file, to write to: it is there once it is whole.

  Args:
    path: its folder is made.
    sure: as above.
  """
  if not is_local(path):
    content = io.BytesIO()
    yield content
    path.write_bytes(content.getvalue())
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  try:
    with open(partial, 'wb') as file:
      yield file
      if sure:
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
  finally:
    partial.unlink(missing_ok=True)


def inside(path: Path) -> Iterator[Path]:
  """All files of a folder, in order; of a file, itself."""
  if not path.is_dir():
    yield path
    return
  for entry in sorted(path.iterdir()):
    yield from inside(entry)


def fingerprint(path: Path) -> str:
  """What changes when a file is damaged.

  Of files here the digest. Of objects the length: they are written as a whole
  and checked by the store, and reading them again would cost as much as
  training with them.
  """
  if not is_local(path):
    return f'{path.stat().length} bytes'
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def remove_folder(path: Path) -> None:
  """Removes a folder, if it is there, and all that is in it."""
  epath.Path(path).rmtree(missing_ok=True)
