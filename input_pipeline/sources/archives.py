"""Files in folders and in archives, read alike; archives are not unpacked.

  files = archives.find(pathlib.Path('~/voc'), ('VOCtrainval*.tar',), cache)
  files['VOCdevkit/VOC2012/JPEGImages/2007_000027.jpg'].read_bytes()

Members of zip and of plain tar files are read where they lie, also those of tar
files within a tar file. A compressed tar file cannot be read like that: it is
decompressed to a plain one once.
"""

import bz2
import contextlib
import dataclasses
import fnmatch
import functools
import gzip
import io
import lzma
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from runtime import errors, files, progress

GET_AGAIN = 'download it again'
NOT_OFFICIAL = 'this is not the official archive, get that'

# No official member is larger, and none shrinks more: what claims to be is a
# bomb, which would fill memory or disk.
MAX_MEMBER = 2**31  # Bytes.
MAX_RATIO = 200
# What is small may shrink as it likes.
_HARMLESS = 2**27  # Bytes.

_COMPRESSED = {
  '.tgz': gzip.open,
  '.tar.gz': gzip.open,
  '.tar.bz2': bz2.open,
  '.tar.xz': lzma.open,
}
SUFFIXES = ('.zip', '.tar', *_COMPRESSED)

_DAMAGED = (
  *(EOFError, OSError, RuntimeError, ValueError, NotImplementedError),
  *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


@dataclasses.dataclass(frozen=True, slots=True)  # ImageNet has millions.
class Member:
  """A file in an archive; reads as a path does."""

  archive: pathlib.Path
  path: str
  size: int  # Bytes, decompressed.
  check: int = 0  # CRC of a member of a zip file.
  # Of a tar file: itself or its decompressed copy, and where the member starts.
  tar: pathlib.Path | None = None
  offset: int = 0

  @property
  def name(self) -> str:
    """The last part of its path."""
    return pathlib.PurePosixPath(self.path).name

  @property
  def suffix(self) -> str:
    """The last suffix of its name."""
    return pathlib.PurePosixPath(self.path).suffix

  def __str__(self):
    return f'{self.archive}:{self.path}'

  def stamp(self) -> tuple[Any, ...]:
    """Its path, bytes and place."""
    return self.path, self.size, self.offset, self.check

  def read_bytes(self) -> bytes:
    """Its content.

    Raises:
      OSError: it cannot be read; with the reason as `strerror`.
    """
    if self.tar is None:
      try:
        return _zip(self.archive).read(self.path)
      except (*_DAMAGED, KeyError) as error:
        raise OSError(0, f'damaged in its archive ({error})') from error
    content = os.pread(_descriptor(self.tar), self.size, self.offset)
    if len(content) < self.size:
      raise OSError(0, 'its archive is cut off')
    return content


@runtime_checkable
class Piece(Protocol):
  """What can be read as a file can, e.g. a part of a list of annotations."""

  name: str
  size: int

  def stamp(self) -> tuple[Any, ...]:
    """What changes when its content does."""

  def read_bytes(self) -> bytes:
    """Its content."""


# What a data set is made of.
File = pathlib.Path | Member | Piece


def stamp(file: File | None) -> tuple[Any, ...]:
  """What changes when a file does: of a path, its suffix, bytes and time."""
  if file is None:
    return ()
  if not isinstance(file, pathlib.Path):
    return file.stamp()
  status = _status(file)
  if status is None:
    return (file.suffix,)
  return file.suffix, status.st_size, status.st_mtime_ns


def size(file: File) -> int:
  """Bytes of a file; 0 of a link to nothing."""
  if not isinstance(file, pathlib.Path):
    return file.size
  status = _status(file)
  return status.st_size if status else 0


def find(
  source: pathlib.Path, patterns: Sequence[str], cache: pathlib.Path
) -> Mapping[str, File]:
  """All files of a folder and of the archives in it, or of one archive.

  Where a file is both in a folder and in an archive, that of the folder counts.

  Args:
    source: a folder, or an archive.
    patterns: what the wanted archives are called, as `VOCtrainval*.tar`; others
      in the folder are passed over.
    cache: folder for what has to be decompressed.

  Returns:
    Files by their path in the folder or archive, sorted.

  Raises:
    UserError: there is no such file or folder, or an archive is damaged.
  """
  source = source.expanduser()
  if source.is_file():
    return dict(sorted(_members(source, cache).items()))
  if not source.is_dir():
    raise errors.UserError(
      errors.one_line(
        f'source: there is no file or folder {source}: give the folder of the '
        'files or archives, or an archive'
      )
    )
  found: dict[str, File] = {}
  opened = []
  for path in _walk(source):
    if path.name.lower().endswith(SUFFIXES) and any(
      fnmatch.fnmatch(path.name, pattern) for pattern in patterns
    ):
      opened.append(path)
    else:
      found[path.relative_to(source).as_posix()] = path
  for path in opened:
    for name, member in _members(path, cache).items():
      found.setdefault(name, member)
  return dict(sorted(found.items()))


def _status(path: pathlib.Path) -> os.stat_result | None:
  """None for a link to nothing, say: whoever reads it will tell of that."""
  try:
    return path.stat()
  except OSError:
    return None


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Files below a folder, in order; hidden ones are passed over."""
  for where, folders, names in os.walk(folder, followlinks=True):
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    for name in sorted(names):
      if not name.startswith('.'):
        yield pathlib.Path(where, name)


def _members(archive: pathlib.Path, cache: pathlib.Path) -> dict[str, Member]:
  """The files in an archive, by their path in it."""
  name = archive.name.lower()
  if not name.endswith(SUFFIXES):
    raise errors.UserError(
      f'source: found {archive}, expected a folder or an archive '
      f'({", ".join(SUFFIXES)})'
    )
  with _refusing_damage(archive):
    if name.endswith('.zip'):
      return _checked(archive, _zip_members(archive))
    return _checked(archive, _tar_members(archive, _plain(archive, cache)))


@contextlib.contextmanager
def _refusing_damage(archive: pathlib.Path) -> Iterator[None]:
  """Turns what readers of archives raise into one line for the user."""
  try:
    yield
  except _DAMAGED as error:
    raise errors.UserError(
      errors.one_line(
        f'{archive}: cannot be read as an archive ({error}): {GET_AGAIN}'
      )
    ) from error


def _checked(
  archive: pathlib.Path, members: Iterable[Member]
) -> dict[str, Member]:
  """The members by their path.

  Raises:
    UserError: there is what no official archive holds.
  """
  found: dict[str, Member] = {}
  for member in members:
    path = pathlib.PurePosixPath(member.path.replace('\\', '/'))
    problem = ''
    if not path.parts:
      problem = f'holds {member.path!r}, which is no name'
    elif path.is_absolute() or '..' in path.parts or ':' in path.parts[0]:
      problem = f'holds {member.path!r}, which points out of it'
    elif member.path in found:
      problem = f'holds {member.path!r} twice'
    elif member.size > MAX_MEMBER:
      problem = (
        f'{member.path} would be {member.size:,} bytes, expected '
        f'{MAX_MEMBER:,} at most'
      )
    if problem:
      raise errors.UserError(
        errors.one_line(f'{archive}: {problem}: {NOT_OFFICIAL}')
      )
    found[member.path] = member
  return found


def _zip_members(archive: pathlib.Path) -> Iterator[Member]:
  for entry in _zip(archive).infolist():
    if entry.is_dir():
      continue
    if (
      entry.file_size > _HARMLESS
      and entry.file_size > MAX_RATIO * entry.compress_size
    ):
      raise errors.UserError(
        errors.one_line(
          f'{archive}: {entry.filename} grows from {entry.compress_size:,} to '
          f'{entry.file_size:,} bytes: {NOT_OFFICIAL}'
        )
      )
    yield Member(archive, entry.filename, entry.file_size, check=entry.CRC)


def _tar_members(
  archive: pathlib.Path, plain: pathlib.Path
) -> Iterator[Member]:
  """Files in a tar file, and those in tar files in it."""
  with plain.open('rb') as file:
    entries = _entries(file, 0, plain.stat().st_size)
    for name, offset, length in progress.bar(
      entries, desc=f'indexing {archive.name}', unit=' file'
    ):
      if not name.lower().endswith('.tar'):
        yield Member(archive, name, length, tar=plain, offset=offset)
        continue
      # n01440764.tar holds what would else lie in the folder n01440764.
      folder = name[: -len('.tar')]
      for path, at, count in _entries(file, offset, length):
        yield Member(archive, f'{folder}/{path}', count, tar=plain, offset=at)


def _entries(
  file: io.BufferedIOBase, start: int, length: int
) -> Iterator[tuple[str, int, int]]:
  """Path, offset in `file` and size of each file in a tar file within it."""
  section = io.BufferedReader(_Section(file, start, length))
  with tarfile.open(fileobj=section, mode='r:') as tar:
    for entry in tar:
      tar.members = []  # Else it remembers a million of them.
      if entry.isfile():
        name = entry.name.removeprefix('./')
        yield name, start + entry.offset_data, entry.size
    # It takes whatever is no header for the end, which is a block of zeros.
    section.seek(tar.offset)
    if section.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
      raise tarfile.ReadError('it has no end, cut off?')


class _Section(io.RawIOBase):
  """A part of a file, as a file."""

  def __init__(self, file: io.BufferedIOBase, start: int, length: int):
    self._file = file
    self._start = start
    self._length = length
    self._at = 0

  def readable(self) -> bool:
    """Yes."""
    return True

  def seekable(self) -> bool:
    """Yes."""
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    """Goes to a place in the part."""
    base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}
    self._at = base[whence] + offset
    return self._at

  def tell(self) -> int:
    """The place in the part."""
    return self._at

  def readinto(self, buffer) -> int:
    """Reads up to the end of the part."""
    count = max(min(len(buffer), self._length - self._at), 0)
    data = os.pread(self._file.fileno(), count, self._start + self._at)
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)


def _plain(archive: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
  """A tar file that is not compressed: itself, or a copy in the cache."""
  name = archive.name.lower()
  opener = next(
    (open_ for end, open_ in _COMPRESSED.items() if name.endswith(end)), None
  )
  if opener is None:
    return archive
  status = archive.stat()
  copy = cache / f'{archive.name}-{status.st_size}-{status.st_mtime_ns}.tar'
  if copy.exists():
    return copy
  limit = max(MAX_RATIO * status.st_size, _HARMLESS)
  with (
    files.explaining_os_errors(archive.name, copy),
    files.atomic_path(copy) as partial,
    partial.open('wb') as out,
  ):
    for block in _decompressed(archive, opener, limit):
      out.write(block)
  return copy


def _decompressed(
  archive: pathlib.Path, opener: Callable[..., Any], limit: int
) -> Iterator[bytes]:
  """The content of an archive that grows to `limit` bytes at most."""
  bar = progress.bar(
    desc=f'decompressing {archive.name}', unit='B', unit_scale=True
  )
  size = 0
  # Here, where no error can be of the disk that the content is written to.
  with _refusing_damage(archive), bar, opener(archive, 'rb') as packed:
    while block := packed.read(2**20):
      bar.update(len(block))
      size += len(block)
      if size > limit:
        raise errors.UserError(
          f'{archive}: grows to more than {limit:,} bytes: {NOT_OFFICIAL}'
        )
      yield block


@functools.lru_cache(64)
def _zip(archive: pathlib.Path) -> zipfile.ZipFile:
  return zipfile.ZipFile(archive)


@functools.lru_cache(64)
def _descriptor(archive: pathlib.Path) -> int:
  return os.open(archive, os.O_RDONLY)
