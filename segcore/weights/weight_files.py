"""Files of arrays by name: `.npz`, `.safetensors`, and those of torch.

No code is executed by reading a file, and what a file says about its arrays is
checked against its size before memory is taken for them.
"""

import math
import pathlib
import zipfile

import numpy as np
import safetensors
from jaxtyping import Shaped

from runtime import errors
from segcore.weights.pth import reader as pth

# Deflate, which `np.savez_compressed` uses, shrinks zeros to a thousandth; of
# the arrays of a network, a part at most is zeros.
_MAX_COMPRESSION = 100
# What a small file may declare anyway.
_SMALL = 2**24


def read_weight_file(
  path: pathlib.Path,
) -> dict[str, Shaped[np.ndarray, '...']]:
  """Reads all arrays of a file.

  Raises:
    UserError: the file has another suffix, is damaged, holds anything but
      arrays, or declares more data than it has.
  """
  reader = _READERS.get(path.suffix)
  if reader is None:
    raise errors.UserError(
      f'{path}: expected a {" or ".join(_READERS)} file, got '
      f'{path.suffix or "no suffix"}'
    )
  try:
    return reader(path)
  except errors.UserError:
    raise
  except Exception as error:
    lines = str(error).splitlines() or [type(error).__name__]
    raise errors.UserError(
      f'{path} is not a readable {path.suffix} file ({lines[0]}): fetch it '
      'again'
    ) from error


def _read_npz(path: pathlib.Path) -> dict[str, Shaped[np.ndarray, '...']]:
  _check_npz(path)
  with np.load(path, allow_pickle=False) as file:
    return dict(file)


def _check_npz(path: pathlib.Path) -> None:
  """Raises ValueError unless the sizes of all arrays are those of the data."""
  total = 0
  with zipfile.ZipFile(path) as archive:
    for member in archive.infolist():
      with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = (
          np.lib.format.read_array_header_1_0
          if version == (1, 0)
          else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(file)
        start = file.tell()
      if dtype.hasobject:
        raise ValueError(f'{member.filename} holds Python objects (a pickle)')
      expected = start + math.prod(shape) * dtype.itemsize
      if member.file_size != expected:
        raise ValueError(
          f'{member.filename} of shape {shape}: expected {expected} bytes, got '
          f'{member.file_size}'
        )
      total += member.file_size
  size = path.stat().st_size
  if total > max(_SMALL, _MAX_COMPRESSION * size):
    raise ValueError(f'its arrays have {total} bytes, the file {size}')


def _read_safetensors(
  path: pathlib.Path,
) -> dict[str, Shaped[np.ndarray, '...']]:
  # As jax arrays: numpy has no bfloat16, and safetensors' reader fails on it.
  with safetensors.safe_open(path, 'flax') as file:
    return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


_READERS = {
  '.npz': _read_npz,
  '.safetensors': _read_safetensors,
  **dict.fromkeys(pth.SUFFIXES, pth.read_torch_file),
}
SUFFIXES = tuple(_READERS)
