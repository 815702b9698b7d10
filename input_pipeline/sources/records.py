"""The record format, and the sample from which a record is encoded.

A record is a dict of

  image  the encoded image: JPEG or PNG bytes, as the data set published them;
         images of other formats, turned or rescaled ones as PNG
  label  a PNG of class id + 1, 0 where ignored: 8 bits up to 254 classes,
         16 bits above; only in data sets with masks, and empty in their splits
         without masks
  tags   class ids of the whole image; only in data sets that have them
  id     the official name of the image

Labels are shifted by one so that no class id is reserved: labels of all data
sets are decoded alike, whatever value means "ignored" in their masks.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int16, Int64

from input_pipeline import batch
from runtime import errors

Record = Mapping[str, Any]

# Without the filters of PNG, which are for photographs, labels are smaller, and
# decoded in a sixth to a third of the time.
_LABEL_PNG = (
  *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
  *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
  *(cv2.IMWRITE_PNG_COMPRESSION, 3),
)


@dataclasses.dataclass(frozen=True)
class Schema:
  """Describes the classes and the kinds of label of a data set's records.

  Attributes:
    classes: name of each class id.
    palette: RGB color of each class id, for pictures.
    labels: whether records have a label per pixel.
    tags: whether records have image-level labels.
  """

  classes: tuple[str, ...]
  palette: tuple[tuple[int, int, int], ...]
  labels: bool = True
  tags: bool = False

  def __post_init__(self):
    if len(self.classes) != len(self.palette):
      raise ValueError(
        f'palette: expected {len(self.classes)} colors, one per class, got '
        f'{len(self.palette)}'
      )


@dataclasses.dataclass(frozen=True)
class Traits:
  """Properties of the files of a sample beside its pixels and label.

  Attributes:
    orientation: EXIF value of the image file, 1 (upright) to 8.
    depth: bits per value of the image file.
    peak: largest value in the image file.
    as_stored: whether the record holds the bytes of the image file.
    palette: color of each value that occurs in a palette mask whose colors do
      not count, as one number.
  """

  orientation: int = 1
  depth: int = 8
  peak: int = 255
  as_stored: bool = True
  palette: Mapping[int, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """An image with its labels, before it is encoded as a record.

  Attributes:
    id: official name of the image.
    image: bytes of the encoded image, JPEG or PNG.
    pixels: decoded image, RGB uint8 [H, W, 3].
    label: class id of each pixel, negative where ignored; None without a mask.
    tags: class ids of the whole image.
    traits: traits of its files; None if it is not read from files.
    class_pixels: number of pixels of each class id in `label`; None if they are
      not counted yet.
  """

  id: str
  image: bytes
  pixels: np.ndarray
  label: Int16[np.ndarray, 'H W'] | None = None
  tags: Sequence[int] = ()
  traits: Traits | None = None
  class_pixels: Int64[np.ndarray, 'C'] | None = None


def record_label_dtype(num_classes: int) -> type[np.unsignedinteger]:
  """Returns the integer type of a stored label, which is class id + 1."""
  return np.uint8 if num_classes <= 254 else np.uint16


def encode_record_label(label: np.ndarray, num_classes: int) -> bytes:
  """Encodes class ids as the PNG of a record.

  Args:
    label: int array [H, W] of class ids, negative where ignored.
    num_classes: number of classes, which decides the bit depth.

  Raises:
    ValueError: a class id is not below `num_classes`.
  """
  if label.max(initial=-1) >= num_classes:
    raise ValueError(
      f'label: expected class ids below {num_classes}, got {label.max()}'
    )
  if label.min(initial=0) < batch.IGNORE:
    label = np.maximum(label, batch.IGNORE)
  # Without its sign, -1 is the largest value, from which 1 leads to 0.
  shifted = label.astype(record_label_dtype(num_classes))
  shifted += 1
  _, png = cv2.imencode('.png', shifted, _LABEL_PNG)
  return png.tobytes()


def decode_record_label(png: bytes) -> Int16[np.ndarray, 'H W']:
  """Decodes the PNG of a record to class ids; -1 where ignored.

  Raises:
    UserError: the bytes cannot be decoded.
  """
  shifted = _decode(png, cv2.IMREAD_UNCHANGED, 'a label')
  # IGNORE is -1: this undoes the shift and widens in one pass over memory.
  return np.add(shifted, batch.IGNORE, dtype=np.int16)


def decode_record_image(encoded: bytes) -> np.ndarray:
  """Decodes JPEG or PNG bytes to RGB uint8 [H, W, 3].

  The EXIF orientation is not applied: masks have the orientation of the stored
  pixels.

  Raises:
    UserError: the bytes cannot be decoded.
  """
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  return _decode(encoded, flags, 'an image')


def _decode(encoded: bytes, flags: int, what: str) -> np.ndarray:
  # OpenCV raises an exception for an empty buffer.
  pixels = (
    cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
  )
  if pixels is None:
    raise errors.UserError(
      f'{what} of {len(encoded)} bytes cannot be decoded: the record is '
      'damaged, prepare the data set again'
    )
  return pixels
