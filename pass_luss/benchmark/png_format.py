"""PNG files of ImageNet-S: label maps of ground truth and predictions.

  label = png_format.read_imagenet_s_png(path, num_classes=50)
  png_format.write_imagenet_s_png(
    out / 'val/n01443537/ILSVRC2012_val_00000236.png', label
  )

A pixel is 8-bit RGB: its id is R + 256 G, and B is 0. Id 0 is 'other', 1 to C
are the classes, and 1000 is ignored, which is -1 in arrays. Source: the
ImageNet-S benchmark (Gao et al., Large-scale unsupervised semantic
segmentation, 2022).
"""

import io
import pathlib
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Int, Int16, UInt8

from input_pipeline import batch
from input_pipeline.sources import archives, image_files, image_ids, masks
from runtime import errors, files

IGNORED = masks.IMAGENET_S_IGNORED
MAX_CLASSES = IGNORED - 1

_EXPECTED = 'expected SPLIT/WNID/NAME.png or WNID/NAME.png, got '

# Offset of the header's byte that gives the bits per channel.
_BIT_DEPTH_OFFSET = 24


def encode_ids_as_rgb(
  label: Int[np.ndarray, 'H W'],
) -> UInt8[np.ndarray, 'H W 3']:
  """Encodes ids as RGB; negative ids become 1000.

  >>> encode_ids_as_rgb(np.array([[0, 258, -1]])).tolist()
  [[[0, 0, 0], [2, 1, 0], [232, 3, 0]]]

  Raises:
    ValueError: an id is 1000 or more.
  """
  if label.size and label.max() > MAX_CLASSES:
    raise ValueError(
      f'label: expected ids 0…{MAX_CLASSES}, or negative to ignore, got '
      f'{label.max()}'
    )
  ids = np.where(label < 0, IGNORED, label).astype(np.uint16)
  red, green = (ids % 256).astype(np.uint8), (ids // 256).astype(np.uint8)
  return np.stack([red, green, np.zeros_like(red)], axis=-1)


def decode_ids_from_rgb(
  pixels: UInt8[np.ndarray, 'H W 3'], num_classes: int
) -> Int16[np.ndarray, 'H W']:
  """Decodes RGB to ids 0…num_classes, and to -1 where the id is 1000.

  >>> pixels = np.array([[[2, 1, 0], [232, 3, 0]]], np.uint8)
  >>> decode_ids_from_rgb(pixels, 300).tolist()
  [[258, -1]]

  Raises:
    UserError: B is not 0 or an id is out of range; without the file's name.
  """
  red, green, blue = cv2.split(pixels)
  if blue.any():
    raise errors.UserError(
      f'expected ids as R + 256 G and B = 0, got B up to {blue.max()} (pixels: '
      f'{np.count_nonzero(blue):,}): write ids, not colors of a palette'
    )
  # R and G are the bytes of a little-endian uint16: R + 256 G overflows uint8.
  ids = cv2.merge([red, green]).view('<u2')[..., 0].astype(np.uint16)
  unknown = (ids > num_classes) & (ids != IGNORED)
  if unknown.any():
    raise errors.UserError(
      f'expected ids 0…{num_classes}, or {IGNORED} where ignored, got '
      f'{ids[unknown].max()} (pixels out of range: '
      f'{np.count_nonzero(unknown):,}): check the number of classes'
    )
  label = ids.astype(np.int16)
  label[ids == IGNORED] = batch.IGNORE
  return label


def read_imagenet_s_png(
  file: archives.File | files.Path, num_classes: int
) -> Int16[np.ndarray, 'H W']:
  """Reads the ids 0…num_classes of a file, -1 where ignored.

  Args:
    file: a path, or a member of an archive.
    num_classes: number of classes without 'other', at most 999.

  Raises:
    BadFile: the file cannot be read, is damaged, is no PNG of 8-bit RGB, or
      has pixels that `decode_ids_from_rgb` refuses.
  """
  with errors.naming_file(file):
    return decode_ids_from_rgb(_pixels(file.read_bytes()), num_classes)


def write_imagenet_s_png(
  path: files.Path, label: Int[np.ndarray, 'H W']
) -> None:
  """Writes a file atomically, and creates the folders above it.

  Raises:
    UserError: the file cannot be written.
    ValueError: an id is 1000 or more.
  """
  content = io.BytesIO()
  PIL.Image.fromarray(encode_ids_as_rgb(label)).save(content, format='PNG')
  try:
    # Not durable: an fsync for each of a million files would take hours.
    files.write_atomically(path, content.getvalue(), durable=False)
  except OSError as error:
    raise errors.UserError(
      errors.format_on_one_line(
        f'cannot write {path} ({error.strerror or error}): free some space, or '
        'choose another folder'
      )
    ) from error


def list_imagenet_s_pngs(folder: pathlib.Path) -> Sequence[str]:
  """Lists the PNG files below a folder as sorted relative paths with '/'.

  They are 'SPLIT/WNID/NAME.png', or 'WNID/NAME.png' in the folder of a split.

  Raises:
    UserError: as for `find_imagenet_s_pngs`.
  """
  return [*find_imagenet_s_pngs(folder)]


def find_imagenet_s_pngs(
  folder: pathlib.Path,
) -> Mapping[str, pathlib.Path]:
  """Finds the PNG files below a folder by their names, sorted.

  A name is the relative path with '/', in the composed Unicode form, that ends
  with '.png'; the file may end with '.PNG'. Hidden files, which archivers leave
  behind, are skipped.

  Raises:
    UserError: the folder is missing or has no PNG file, one below it cannot be
      read, or two files have the same name.
  """
  if not folder.is_dir():
    problem = 'a file' if folder.exists() else 'no such folder'
    raise errors.UserError(
      errors.format_on_one_line(f'{folder}: {_EXPECTED}{problem}')
    )

  paths: dict[str, pathlib.Path] = {}
  for path in archives.list_folder_files(folder)[0]:
    if path.suffix.lower() != '.png':
      continue
    key = image_ids.compose_unicode(
      path.relative_to(folder).with_suffix('.png').as_posix()
    )
    if key in paths:
      raise errors.BadFile(
        path, f'is the image of {paths[key].name!r}, too: keep one of them'
      )
    paths[key] = path
  if not paths:
    raise errors.UserError(
      errors.format_on_one_line(f'{folder}: {_EXPECTED}no PNG file')
    )
  return dict(sorted(paths.items()))


def _pixels(data: bytes) -> UInt8[np.ndarray, 'H W 3']:
  image = image_files.decode_image_file(data, ('PNG',))
  if image.mode != 'RGB' or data[_BIT_DEPTH_OFFSET] != 8:
    raise errors.UserError(
      f'expected 8-bit RGB with ids as R + 256 G, got PIL mode {image.mode!r} '
      f'with {data[_BIT_DEPTH_OFFSET]} bits'
    )
  return np.asarray(image)
