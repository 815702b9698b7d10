"""Files in folders and archives through one interface, without unpacking.

  files = archives.find_source_files(
    pathlib.Path('~/voc'), ('VOCtrainval*.tar',), cache
  )
  files['VOCdevkit/VOC2012/JPEGImages/2007_000027.jpg'].read_bytes()

Members of zip files, of plain tar files and of tar files within a tar file are
read in place. A compressed tar file has no random access: it is decompressed to
a plain one once.
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
NOT_OFFICIAL = 'this is not the official archive, download that'

# Limits against decompression bombs, which would fill memory or disk. No member
# of an official archive is larger or compressed more.
MAX_MEMBER = 2**31  # Bytes.
MAX_RATIO = 200
# Below this size any compression ratio is allowed.
_HARMLESS = 2**27  # Bytes.

_COMPRESSED = {
  '.tgz': gzip.open,
  '.tar.gz': gzip.open,
  '.tar.bz2': bz2.open,
  '.tar.xz': lzma.open,
}
SUFFIXES = ('.zip', '.tar', *_COMPRESSED)

# Exceptions that the readers of archives raise for damaged ones.
_DAMAGED = (
  EOFError,
  OSError,
  RuntimeError,
  ValueError,
  NotImplementedError,
  tarfile.TarError,
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
)


@dataclasses.dataclass(frozen=True, slots=True)  # ImageNet has millions.
class Member:
  """A file in an archive, which is read like a path.

  Attributes:
    archive: path of the archive as the user named it.
    path: path of the file in the archive.
    size: decompressed size in bytes.
    check: CRC of a member of a zip file.
    tar: plain tar file that holds the member, which is the archive or its
      decompressed copy; None for zip files.
    offset: position of the content in that tar file, in bytes.
  """

  archive: pathlib.Path
  path: str
  size: int
  check: int = 0
  tar: pathlib.Path | None = None
  offset: int = 0

  @property
  def name(self) -> str:
    """Returns the last part of the path in the archive."""
    return pathlib.PurePosixPath(self.path).name

  @property
  def suffix(self) -> str:
    """Returns the last suffix of the name: '.png'."""
    return pathlib.PurePosixPath(self.path).suffix

  def __str__(self):
    return f'{self.archive}:{self.path}'

  def stamp(self) -> tuple[Any, ...]:
    """Returns values that identify the content without reading it."""
    return self.path, self.size, self.offset, self.check

  def read_bytes(self) -> bytes:
    """Reads the bytes of the file in the archive, decompressed.

    Raises:
      OSError: they cannot be read; `strerror` is the reason.
    """
    if self.tar is None:
      try:
        return _zip(self.archive).read(self.path)
      except (*_DAMAGED, KeyError) as error:
        raise OSError(0, f'damaged in its archive ({error})') from error
    content = os.pread(_descriptor(self.tar), self.size, self.offset)
    if len(content) < self.size:
      raise OSError(0, 'its archive is truncated')
    return content


@runtime_checkable
class FileLike(Protocol):
  """An object that is read like a file, such as an entry of a list of masks."""

  name: str
  size: int

  def stamp(self) -> tuple[Any, ...]:
    """Returns values that change when the content does."""

  def read_bytes(self) -> bytes:
    """Reads the whole content."""


# A source of images, masks and lists.
File = pathlib.Path | Member | FileLike


def source_file_stamp(file: File | None) -> tuple[Any, ...]:
  """Returns values that change when the content of a file does.

  For a path they are its suffix, size and modification time, so that a folder
  can be moved.
  """
  if file is None:
    return ()
  if not isinstance(file, pathlib.Path):
    return file.stamp()
  status = _status(file)
  if status is None:
    return (file.suffix,)
  return file.suffix, status.st_size, status.st_mtime_ns


def source_file_size(file: File) -> int:
  """Returns the size of a file in bytes; 0 for a broken link."""
  if not isinstance(file, pathlib.Path):
    return file.size
  status = _status(file)
  return status.st_size if status else 0


def find_source_files(
  source: pathlib.Path, patterns: Sequence[str], cache: pathlib.Path
) -> Mapping[str, File]:
  """Lists the files of a folder and of the archives in it, or of one archive.

  A file of the folder hides one at the same path in an archive.

  Args:
    source: a folder, or an archive.
    patterns: name patterns of the archives to open, such as
      `VOCtrainval*.tar`; other archives in the folder are not opened.
    cache: folder for decompressed copies of compressed tar files.

  Returns:
    Files by their path in the folder or archive, sorted.

  Raises:
    UserError: the source is missing, or an archive is damaged.
  """
  source = source.expanduser()
  if source.is_file():
    return dict(sorted(_members(source, cache).items()))
  if not source.is_dir():
    raise errors.UserError(
      errors.format_on_one_line(
        f'source: expected a folder or an archive, got {source}, which does '
        'not exist'
      )
    )
  files_by_path: dict[str, File] = {}
  to_open = []
  for path in list_folder_files(source)[0]:
    if path.name.lower().endswith(SUFFIXES) and any(
      fnmatch.fnmatch(path.name, pattern) for pattern in patterns
    ):
      to_open.append(path)
    else:
      files_by_path[path.relative_to(source).as_posix()] = path
  for path in to_open:
    for name, member in _members(path, cache).items():
      files_by_path.setdefault(name, member)
  return dict(sorted(files_by_path.items()))


def _status(path: pathlib.Path) -> os.stat_result | None:
  """Returns the status of a file; None if it has none, as a broken link."""
  try:
    return path.stat()
  except OSError:
    return None


def list_folder_files(
  folder: pathlib.Path,
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """Lists the files below a folder, sorted, without hidden ones.

  Links to folders are followed, except to a folder that contains them, which
  would never end.

  Returns:
    The files, and the links that are not followed.

  Raises:
    UserError: a folder cannot be read.
  """
  paths, loops = [], []
  containing = {str(folder): frozenset({_identity(folder)})}
  for parent, folders, names in os.walk(
    folder, followlinks=True, onerror=_refuse_folder
  ):
    above = containing.pop(parent)
    followed = []
    for name in sorted(name for name in folders if not name.startswith('.')):
      path = pathlib.Path(parent, name)
      if (identity := _identity(path)) in above:
        loops.append(path)
      else:
        containing[os.path.join(parent, name)] = above | {identity}
        followed.append(name)
    folders[:] = followed  # In place: os.walk enters these.
    paths += [
      pathlib.Path(parent, name)
      for name in sorted(names)
      if not name.startswith('.')
    ]
  return paths, loops


def _identity(folder: pathlib.Path) -> tuple[int, int]:
  """Returns what all links to a folder have in common."""
  status = folder.stat()
  return status.st_dev, status.st_ino


def _refuse_folder(error: OSError) -> None:
  raise errors.BadFile(
    error.filename, f'cannot be read: {error.strerror or error}'
  ) from error


def _members(archive: pathlib.Path, cache: pathlib.Path) -> dict[str, Member]:
  """Returns the files in an archive by their path in it."""
  name = archive.name.lower()
  if not name.endswith(SUFFIXES):
    raise errors.UserError(
      f'source: expected a folder or an archive ({", ".join(SUFFIXES)}), got '
      f'{archive}'
    )
  with _reporting_damage(archive):
    if name.endswith('.zip'):
      return _checked(archive, _zip_members(archive))
    return _checked(archive, _tar_members(archive, _plain(archive, cache)))


@contextlib.contextmanager
def _reporting_damage(archive: pathlib.Path) -> Iterator[None]:
  """Turns the exceptions of readers of archives into a UserError."""
  try:
    yield
  except _DAMAGED as error:
    raise errors.UserError(
      errors.format_on_one_line(
        f'{archive}: cannot be read as an archive ({error}): {GET_AGAIN}'
      )
    ) from error


def _checked(
  archive: pathlib.Path, members: Iterable[Member]
) -> dict[str, Member]:
  """Returns the members by their path.

  Raises:
    UserError: a member has a path or a size that no official archive has.
  """
  by_path: dict[str, Member] = {}
  for member in members:
    path = pathlib.PurePosixPath(member.path.replace('\\', '/'))
    problem = ''
    if not path.parts:
      problem = f'holds {member.path!r}, which is not a file name'
    elif path.is_absolute() or '..' in path.parts or ':' in path.parts[0]:
      problem = f'holds {member.path!r}, which is a path outside of it'
    elif member.path in by_path:
      problem = f'holds {member.path!r} twice'
    elif member.size > MAX_MEMBER:
      problem = (
        f'{member.path}: expected at most {MAX_MEMBER:,} bytes, got '
        f'{member.size:,}'
      )
    if problem:
      raise errors.UserError(
        errors.format_on_one_line(f'{archive}: {problem}: {NOT_OFFICIAL}')
      )
    by_path[member.path] = member
  return by_path


def _zip_members(archive: pathlib.Path) -> Iterator[Member]:
  for entry in _zip(archive).infolist():
    if entry.is_dir():
      continue
    if (
      entry.file_size > _HARMLESS
      and entry.file_size > MAX_RATIO * entry.compress_size
    ):
      raise errors.UserError(
        errors.format_on_one_line(
          f'{archive}: {entry.filename} decompresses from '
          f'{entry.compress_size:,} to {entry.file_size:,} bytes: '
          f'{NOT_OFFICIAL}'
        )
      )
    yield Member(archive, entry.filename, entry.file_size, check=entry.CRC)


def _tar_members(
  archive: pathlib.Path, plain: pathlib.Path
) -> Iterator[Member]:
  """Yields the files in a tar file, and those of tar files in it."""
  with plain.open('rb') as file:
    entries = _entries(file, 0, plain.stat().st_size)
    for name, offset, length in progress.progress_bar(
      entries, desc=f'indexing {archive.name}', unit=' file'
    ):
      if not name.lower().endswith('.tar'):
        yield Member(archive, name, length, tar=plain, offset=offset)
        continue
      # ImageNet: n01440764.tar stands for the folder n01440764.
      folder = name[: -len('.tar')]
      for path, at, count in _entries(file, offset, length):
        yield Member(archive, f'{folder}/{path}', count, tar=plain, offset=at)


def _entries(
  file: io.BufferedIOBase, start: int, length: int
) -> Iterator[tuple[str, int, int]]:
  """Yields path, offset and size of each file of a tar file within `file`.

  Args:
    file: file that holds the tar file.
    start: position of the tar file in `file`, in bytes; the offsets that are
      yielded count from the start of `file`, too.
    length: size of the tar file in bytes.
  """
  section = io.BufferedReader(_Section(file, start, length))
  with tarfile.open(fileobj=section, mode='r:') as tar:
    for entry in tar:
      tar.members = []  # Otherwise it keeps millions of them.
      if entry.isfile():
        name = entry.name.removeprefix('./')
        yield name, start + entry.offset_data, entry.size
    # tarfile ends silently at anything that is not a header. A complete tar
    # file ends with blocks of zeros, a truncated one does not.
    section.seek(tar.offset)
    if section.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
      raise tarfile.ReadError('it has no end, truncated?')


class _Section(io.RawIOBase):
  """A range of bytes of a file, as a file."""

  def __init__(self, file: io.BufferedIOBase, start: int, length: int):
    self._file = file
    self._start = start
    self._length = length
    self._position = 0

  def readable(self) -> bool:
    """Returns True, as `io.RawIOBase` requires of readers."""
    return True

  def seekable(self) -> bool:
    """Returns True, as `io.RawIOBase` requires of `seek`."""
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    """Moves to a position in the range and returns it."""
    base = {
      os.SEEK_SET: 0,
      os.SEEK_CUR: self._position,
      os.SEEK_END: self._length,
    }
    self._position = base[whence] + offset
    return self._position

  def tell(self) -> int:
    """Returns the position in the range."""
    return self._position

  def readinto(self, buffer) -> int:
    """Reads into a buffer, at most to the end of the range."""
    count = max(min(len(buffer), self._length - self._position), 0)
    data = os.pread(self._file.fileno(), count, self._start + self._position)
    buffer[: len(data)] = data
    self._position += len(data)
    return len(data)


def _plain(archive: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
  """Returns an uncompressed tar file: the archive, or a decompressed copy.

  The copy in the cache is named after the size and the modification time of the
  archive, so that a changed archive is decompressed again.
  """
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
  """Yields the content of a compressed file in blocks.

  Raises:
    UserError: the file is damaged, or its content exceeds `limit` bytes.
  """
  bar = progress.progress_bar(
    desc=f'decompressing {archive.name}', unit='B', unit_scale=True
  )
  size = 0
  # Errors are caught here and not in the caller, which writes to a disk: its
  # OSErrors do not mean that the archive is damaged.
  with _reporting_damage(archive), bar, opener(archive, 'rb') as packed:
    while block := packed.read(2**20):
      bar.update(len(block))
      size += len(block)
      if size > limit:
        raise errors.UserError(
          f'{archive}: decompresses to more than {limit:,} bytes: '
          f'{NOT_OFFICIAL}'
        )
      yield block


@functools.lru_cache(64)
def _zip(archive: pathlib.Path) -> zipfile.ZipFile:
  return zipfile.ZipFile(archive)


@functools.lru_cache(64)
def _descriptor(archive: pathlib.Path) -> int:
  return os.open(archive, os.O_RDONLY)
