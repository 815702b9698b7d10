"""Reads the weight files that torch saves: `.pth`, `.pt`, `.pth.tar`, `.bin`.

  weights = reader.read_torch_file(pathlib.Path('resnet50.pth'))
  weights['layer1.0.conv1.weight']     # [O, I, h, w]

Two formats are read. Since torch 1.6, a file is a zip archive with a pickle
that describes the tensors, and one member for each storage. Before, it is a
sequence of pickles, then the storages one after the other. Torch is not
needed, and no code of the file is run (see `pickle_machine`).
"""

import io
import mmap
import pathlib
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped

from runtime import console, errors
from segcore.weights.pth import pickle_machine, state_dict, tensors

SUFFIXES = ('.pth', '.pt', '.tar', '.bin')
_ZIP_MAGIC = b'PK\x03\x04'
_TAR_MAGIC, _TAR_OFFSET = b'ustar', 257
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
# Several names may share a storage (tied weights), but not all that often.
_MAX_SHARING = 8


def read_torch_file(path: pathlib.Path) -> dict[str, Shaped[np.ndarray, '...']]:
  """Reads the state dict of a file.

  A line of the log names what was taken of a whole training's file.

  Args:
    path: zip archive of torch, or file of the format before torch 1.6.

  Returns:
    Arrays by name, of the types they have in the file; bfloat16 and the 8-bit
    floats are those of `ml_dtypes`.

  Raises:
    BadFile: it is damaged, holds more than tensors and plain data, or
      describes more data than it has.
  """
  size = path.stat().st_size
  with open(path, 'rb') as file:
    try:
      content, little_endian = _read_content(file, size)
      selected, notes = state_dict.select_state_dict(content)
      # Before tensors are read: views can describe far more than a file holds.
      total = sum(tensor.num_bytes for tensor in selected.values())
      if total > _MAX_SHARING * size:
        raise ValueError(f'its tensors have {total} bytes, the file {size}')
      arrays = {
        name: tensor.array(little_endian) for name, tensor in selected.items()
      }
    except pickle_machine.Refused as error:
      raise errors.BadFile(
        path,
        f'expected tensors and plain data, got {error}: nothing of it was '
        'executed; where the file is trusted, save its state dict alone: '
        'torch.save(model.state_dict(), PATH)',
      ) from error
    except Exception as error:  # Damage shows in any way.
      text = str(error) or type(error).__name__
      raise errors.BadFile(
        path, f'is not a readable file of torch ({text}): fetch it again'
      ) from error
  if notes:
    console.print_line(f'{path}: {"; ".join(notes)}')
  return arrays


def _read_content(file: BinaryIO, size: int) -> tuple[Any, bool]:
  """Returns what a file holds, and whether its bytes are little-endian."""
  start = file.read(_TAR_OFFSET + len(_TAR_MAGIC))
  file.seek(0)
  if start.startswith(_ZIP_MAGIC):
    return _read_zip(zipfile.ZipFile(file), size)
  # A tar archive begins with a file's name, so its mark is further behind.
  if start.endswith(_TAR_MAGIC) and len(start) > _TAR_OFFSET:
    raise ValueError('the tar format of torch before 0.1.10 is not supported')
  if not size:
    raise ValueError('it is empty')
  # PROTO, or where it is missing LONG1, for the magic number.
  if start[:1] not in (b'\x80', b'\x8a'):
    raise ValueError(
      f'neither a zip archive nor a pickle: it begins with {start[:12]!r}'
    )
  # Mapped, not read: the pickles are a few kilobytes in front of gigabytes.
  with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    return _read_legacy(mapped, file)


# The format since torch 1.6.


def _read_zip(archive: zipfile.ZipFile, size: int) -> tuple[Any, bool]:
  members = _check_members(archive, size)
  (pickle,) = [n for n in members if re.fullmatch('[^/]+/data[.]pkl', n)] or [
    ''
  ]
  if not pickle:
    raise ValueError('a zip archive without data.pkl')
  # The folder has the name that the file had when it was saved.
  root = pickle.removesuffix('data.pkl')
  if f'{root}constants.pkl' in members:
    raise pickle_machine.Refused('a program of TorchScript')
  # Older versions of torch write no such member.
  order = f'{root}byteorder'
  little_endian = order not in members or archive.read(order) == b'little'
  storages: dict[str, tensors.Storage] = {}

  def resolve(persistent_id: Any) -> tensors.Storage:
    dtype, key, count = _parse_id(persistent_id)[:3]
    if key not in storages:
      member = members.get(f'{root}data/{key}')
      if member is None:
        raise ValueError(f'storage {key} is missing')
      # The size in the archive bounds what is read; the pickle's is a claim.
      if member.file_size != count * dtype.itemsize:
        raise ValueError(
          f'storage {key}: expected {count} elements of {dtype}, got '
          f'{member.file_size} bytes'
        )
      storages[key] = tensors.Storage(
        dtype, count, _once(lambda: archive.read(member))
      )
    return storages[key]

  data = io.BytesIO(archive.read(pickle))
  content = pickle_machine.run_pickle(data, tensors.NAMES, resolve)
  return content, little_endian


def _check_members(
  archive: zipfile.ZipFile, size: int
) -> dict[str, zipfile.ZipInfo]:
  """Returns the members of an archive by name.

  Raises:
    ValueError: the archive is none that torch writes: names that lead out of
      it, or that occur twice; or compressed members, or ones that overlap,
      which may stand for any amount of data.
  """
  members: dict[str, zipfile.ZipInfo] = {}
  for member in archive.infolist():
    name = member.filename
    parts = re.split(r'[/\\]', name)
    if name in members or '..' in parts or name.startswith(('/', '\\')):
      raise ValueError(f'the member {name!r} is not allowed')
    if (
      member.compress_type != zipfile.ZIP_STORED
      or member.file_size != member.compress_size
    ):
      raise ValueError(f'the member {name!r} is compressed')
    members[name] = member
  # Members that overlap have more bytes in sum than the file.
  total = sum(member.file_size for member in members.values())
  if total > size:
    raise ValueError(f'its members have {total} bytes, the file {size}')
  return members


# The format before torch 1.6.


def _read_legacy(mapped: mmap.mmap, file: BinaryIO) -> tuple[Any, bool]:
  def run(resolve: Callable[[Any], Any] = _no_storage) -> Any:
    return pickle_machine.run_pickle(mapped, tensors.NAMES, resolve)

  # Four pickles in a row: magic number, version, properties of the machine,
  # and the content. A fifth lists the storages in the order of their bytes.
  if run() != _LEGACY_MAGIC:
    raise ValueError('a pickle, but not one of torch.save')
  version = run()
  if version != _LEGACY_VERSION:
    raise ValueError(f'expected format {_LEGACY_VERSION}, got {version}')
  little_endian = run().get('little_endian', True)
  storages: dict[str, tensors.Storage] = {}
  positions: dict[str, int] = {}
  total = len(mapped)

  def resolve(persistent_id: Any) -> tensors.Storage:
    dtype, key, count, view = _parse_id(persistent_id)
    if key not in storages:
      # Positions are known only after the pickle: bytes are read on demand.
      def load() -> bytes:
        file.seek(positions[key])
        return file.read(count * dtype.itemsize)

      storages[key] = tensors.Storage(dtype, count, _once(load))
    if view is None:
      return storages[key]
    _, offset, length = view
    return storages[key].part(offset, length)

  content = run(resolve)
  order = '<' if little_endian else '>'
  for key in run():
    (count,) = struct.unpack(f'{order}q', mapped.read(8))
    storage = storages[key]
    positions[key] = mapped.tell()
    if count != storage.size:
      raise ValueError(
        f'storage {key}: expected {storage.size} elements, got {count}'
      )
    # A truncated download shows here, not as a short array later.
    end = positions[key] + count * storage.dtype.itemsize
    if end > total:
      raise ValueError(f'it ends within storage {key}')
    mapped.seek(end)
  missing = storages.keys() - positions.keys()
  if missing:
    raise ValueError(f'storage {min(missing)} is missing')
  return content, little_endian


def _no_storage(persistent_id: Any) -> Any:
  raise ValueError(f'an unexpected storage {persistent_id}')


def _parse_id(
  persistent_id: Any,
) -> tuple[np.dtype, str, int, tuple[Any, ...] | None]:
  """Returns type, key, number of elements and view of a storage."""
  kind, dtype, key, _, count, *view = persistent_id
  if (
    kind != 'storage'
    or not isinstance(dtype, np.dtype)
    or type(count) is not int
    or count < 0
  ):
    raise ValueError('expected the id of a storage')
  if not re.fullmatch(r'\w+', key):
    raise ValueError(f'expected the key of a storage, got {key!r}')
  return dtype, key, count, view[0] if view else None


def _once(load: Callable[[], bytes]) -> Callable[[], bytes]:
  """Returns a function that keeps the bytes for the tensors that share them."""
  kept: list[bytes] = []

  def read() -> bytes:
    if not kept:
      kept.append(load())
    return kept[0]

  return read
