"""What a record holds, and what it is made of.

A record is a dict of

  image  the encoded image (JPEG or PNG bytes, as the data set published them)
  label  a PNG of class id + 1, 0 where ignored: 8 bits up to 254 classes,
         16 bits above (only in data sets that have masks; empty in splits
         without)
  tags   class ids of the whole image (only in data sets that have them)
  id     the official name

Labels are shifted by one so that no class id is special: every data set is
decoded by the same line, whatever it calls ignored.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int16

from input_pipeline import batch
from runtime import errors

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Contents:
  """What the records of a data set mean.

  Attributes:
    classes: name of each class id.
    palette: RGB color of each class id, for pictures.
    labels: whether records have masks.
    tags: whether records have image-level labels.
  """

  classes: tuple[str, ...]
  palette: tuple[tuple[int, int, int], ...]
  labels: bool = True
  tags: bool = False

  def __post_init__(self):
    if len(self.classes) != len(self.palette):
      raise ValueError(
        f'{len(self.classes)} classes but {len(self.palette)} colors'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """An image with its labels, before it is a record.

  Attributes:
    id: the official name.
    image: the encoded image, JPEG or PNG.
    pixels: the decoded image, RGB.
    label: class ids, negative where ignored; None without a mask.
    tags: class ids of the whole image.
  """

  id: str
  image: bytes
  pixels: np.ndarray
  label: Int16[np.ndarray, 'H W'] | None = None
  tags: Sequence[int] = ()


def label_dtype(num_classes: int) -> type[np.unsignedinteger]:
  """The type in which class id + 1 is stored: 8 bits up to 254 classes."""
  return np.uint8 if num_classes <= 254 else np.uint16


def encode_label(label: np.ndarray, num_classes: int) -> bytes:
  """Encodes class ids [H, W] (negative: ignored) as the PNG of a record.

  Raises:
    ValueError: a class id is not below `num_classes`.
  """
  if label.max(initial=-1) >= num_classes:
    raise ValueError(f'label {label.max()} of {num_classes} classes')
  shifted = np.maximum(label.astype(np.int32) + 1, 0)
  _, png = cv2.imencode('.png', shifted.astype(label_dtype(num_classes)))
  return png.tobytes()


def decode_label(png: bytes) -> Int16[np.ndarray, 'H W']:
  """Decodes the PNG of a record to class ids; -1 where ignored.

  Raises:
    UserError: the bytes are no image.
  """
  shifted = _decode(png, cv2.IMREAD_UNCHANGED, 'a label')
  # In one pass over memory.
  return np.add(shifted, batch.IGNORE, dtype=np.int16)


def decode_image(encoded: bytes) -> np.ndarray:
  """Decodes JPEG or PNG bytes to RGB uint8 [H, W, 3].

  Raises:
    UserError: the bytes are no image.
  """
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  return _decode(encoded, flags, 'an image')


def _decode(encoded: bytes, flags: int, what: str) -> np.ndarray:
  pixels = (
    cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
  )
  if pixels is None:
    raise errors.UserError(
      f'{what} of {len(encoded)} bytes cannot be decoded: the record is '
      'damaged, prepare the data set again'
    )
  return pixels
