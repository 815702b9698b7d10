"""Label maps as the PNG files of ImageNet-S: ground truth and predictions.

  label = label_files.read(path, num_classes=50)
  label_files.write(out / 'val/n01443537/ILSVRC2012_val_00000236.png', label)

Ids are stored in RGB of 8 bits: R + 256 G is the id and B is 0. 0 is 'other',
1 to C are the classes, 1000 is ignored; in arrays that is -1. Source: the
ImageNet-S benchmark (Gao et al., Large-scale unsupervised semantic
segmentation, 2022).
"""

import io
import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Int, Int16, UInt8

from input_pipeline import batch
from input_pipeline.builders import imagenet_s
from input_pipeline.sources import archives, image_files
from runtime import errors, files

IGNORED = imagenet_s.IGNORED
MAX_CLASSES = IGNORED - 1

_BITS_AT = 24  # Of a channel, in a PNG's header.


def encode(label: Int[np.ndarray, 'H W']) -> UInt8[np.ndarray, 'H W 3']:
  """Ids as colors; negative ones become those of 1000.

  >>> encode(np.array([[0, 258, -1]])).tolist()
  [[[0, 0, 0], [2, 1, 0], [232, 3, 0]]]

  Raises:
    ValueError: an id is 1000 or more.
  """
  if label.size and label.max() > MAX_CLASSES:
    raise ValueError(
      f'id {label.max()} found; allowed: 0…{MAX_CLASSES}, or negative to ignore'
    )
  ids = np.where(label < 0, IGNORED, label).astype(np.uint16)
  red, green = (ids % 256).astype(np.uint8), (ids // 256).astype(np.uint8)
  return np.stack([red, green, np.zeros_like(red)], axis=-1)


def decode(
  pixels: UInt8[np.ndarray, 'H W 3'], num_classes: int
) -> Int16[np.ndarray, 'H W']:
  """Undoes `encode`: ids 0…num_classes, and -1 where they are 1000.

  >>> decode(np.array([[[2, 1, 0], [232, 3, 0]]], np.uint8), 300).tolist()
  [[258, -1]]

  Raises:
    UserError: a pixel has blue or an id that is not allowed; without the
      file's name.
  """
  red, green, blue = cv2.split(pixels)
  if blue.any():
    raise errors.UserError(
      f'has B up to {blue.max()} (pixels: {np.count_nonzero(blue):,}): '
      'expected ids as R + 256 G with B = 0, and no colors for the eye'
    )
  # Two bytes, the lower one first, are an id: wider than either of them.
  ids = cv2.merge([red, green]).view('<u2')[..., 0].astype(np.uint16)
  unknown = (ids > num_classes) & (ids != IGNORED)
  if unknown.any():
    raise errors.UserError(
      f'has id {ids[unknown].max()} (pixels out of range: '
      f'{np.count_nonzero(unknown):,}): expected 0…{num_classes}, or '
      f'{IGNORED} where ignored; is it of another number of classes?'
    )
  label = ids.astype(np.int16)
  label[ids == IGNORED] = batch.IGNORE
  return label


def read(
  file: archives.File | files.Path, num_classes: int
) -> Int16[np.ndarray, 'H W']:
  """The ids 0…num_classes of a file, -1 where ignored.

  Args:
    file: a path, or a member of an archive.
    num_classes: without 'other'; at most 999.

  Raises:
    BadFile: it cannot be read, is damaged, is no PNG in RGB of 8 bits, or
      `decode` refuses it.
  """
  try:
    return decode(_pixels(file.read_bytes()), num_classes)
  except errors.UserError as error:
    raise errors.BadFile(file, str(error)) from error
  except OSError as error:
    reason = f'cannot be read: {error.strerror or error}'
    raise errors.BadFile(file, reason) from error


def write(path: files.Path, label: Int[np.ndarray, 'H W']) -> None:
  """Writes a file, whole or not at all, and the folders above it.

  Raises:
    UserError: the file system does not let it.
    ValueError: an id is 1000 or more.
  """
  content = io.BytesIO()
  PIL.Image.fromarray(encode(label)).save(content, format='PNG')
  try:
    # Without waiting for the disk: there are very many.
    files.write(path, content.getvalue(), durable=False)
  except OSError as error:
    raise errors.UserError(
      errors.one_line(
        f'cannot write {path} ({error.strerror or error}): free some space, or '
        'choose another folder'
      )
    ) from error


def list_files(folder: pathlib.Path) -> Sequence[str]:
  """The PNG files below a folder, as sorted paths from there, with '/'.

  They are 'SPLIT/WNID/NAME.png', or 'WNID/NAME.png' if the folder is a
  split's. Hidden files, which archivers leave behind, are none of them.

  Raises:
    UserError: there is no such folder, one in it cannot be read, or no file.
  """
  if not folder.is_dir():
    found = 'is a file' if folder.exists() else 'there is no such folder'
    raise errors.UserError(errors.one_line(f'{folder}: {found}{_EXPECTED}'))

  def refuse(error: OSError) -> None:
    raise errors.BadFile(
      error.filename, f'cannot be read: {error.strerror}'
    ) from error

  found = []
  for parent, folders, here in os.walk(
    folder, onerror=refuse, followlinks=True
  ):
    folders[:] = [name for name in folders if not name.startswith('.')]
    below = pathlib.Path(parent).relative_to(folder)
    found += [
      (below / name).as_posix()
      for name in here
      if name.endswith('.png') and not name.startswith('.')
    ]
  if not found:
    raise errors.UserError(
      errors.one_line(f'{folder}: holds no PNG file{_EXPECTED}')
    )
  return sorted(found)


_EXPECTED = ', expected SPLIT/WNID/NAME.png or WNID/NAME.png in it'


def _pixels(data: bytes) -> UInt8[np.ndarray, 'H W 3']:
  image = image_files.decode(data, ('PNG',))
  if image.mode != 'RGB' or data[_BITS_AT] != 8:
    raise errors.UserError(
      f'has pixels of PIL mode {image.mode!r} and {data[_BITS_AT]} bits: '
      'expected RGB of 8 bits, with ids as R + 256 G'
    )
  return np.asarray(image)
