"""Strict decoding of JPEG and PNG files: damage is an error."""

import io
import re
from collections.abc import Sequence

import PIL.Image

from runtime import errors

_ORIENTATION = 0x0112  # The EXIF tag; 5 to 8 turn the image by 90 degrees.

# Of a JPEG: a marker with a length, which counts itself; and the marker with
# which compressed data start.
_SEGMENT = re.compile(rb'\xff([\xc0-\xcf\xda-\xfe])(..)', re.DOTALL)
_SCAN = b'\xda'


def decode(data: bytes, formats: Sequence[str]) -> PIL.Image.Image:
  """Decodes an image to its last byte, as it is stored: no mode is changed.

  Args:
    data: the encoded image.
    formats: names as PIL has them, 'JPEG' and 'PNG'; others are refused.

  Raises:
    UserError: what is wrong with it; without the file's name.
  """
  try:
    image = PIL.Image.open(io.BytesIO(data), formats=formats)
    image.load()
    if image.format == 'PNG':  # Its checksums are not looked at by decoding.
      PIL.Image.open(io.BytesIO(data)).verify()
  except PIL.UnidentifiedImageError:
    kind = ' or '.join(formats)
    raise errors.UserError(
      f'is no {kind} file, or its head is damaged'
    ) from None
  except Exception as error:  # Damaged files make PIL raise anything.
    raise errors.UserError(
      errors.one_line(f'cannot be decoded: {error}')
    ) from error
  # In a download that was padded with zeros PIL finds nothing missing.
  if image.format != 'PNG' and not _has_end_marker(data):
    raise errors.UserError('cannot be decoded: the JPEG has no end, cut off?')
  return image


def _has_end_marker(jpeg: bytes) -> bool:
  """Whether the marker of the end stands behind the first compressed data.

  It cannot stand in them, but in thumbnails before them, and what phones write
  behind the end may hold any bytes.
  """
  at = 0
  while (found := _SEGMENT.search(jpeg, at)) and found[1] != _SCAN:
    at = found.end() - 2 + int.from_bytes(found[2], 'big')
  return found is not None and jpeg.find(b'\xff\xd9', found.end()) >= 0


def is_rotated_by_exif(image: bytes) -> bool:
  """Whether the image has an EXIF tag that swaps height and width."""
  try:
    with PIL.Image.open(io.BytesIO(image)) as opened:
      return opened.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
  except Exception:  # Nobody promised that EXIF data is whole.
    return False
