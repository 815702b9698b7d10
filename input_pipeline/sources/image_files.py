"""Decoding of JPEG and PNG files in which any damage is an error."""

import io
import re
from collections.abc import Sequence

import PIL.Image

from runtime import errors

# The EXIF tag. Its values 5 to 8 stand for a rotation by 90 degrees.
_ORIENTATION = 0x0112

# A JPEG marker with a length field, which counts itself; and the marker after
# which compressed data start.
_SEGMENT = re.compile(rb'\xff([\xc0-\xcf\xda-\xfe])(..)', re.DOTALL)
_START_OF_SCAN = b'\xda'
_END_OF_IMAGE = b'\xff\xd9'


def decode_image_file(data: bytes, formats: Sequence[str]) -> PIL.Image.Image:
  """Decodes a whole image in the mode in which it is stored.

  Args:
    data: bytes of the encoded image.
    formats: names of the allowed formats in PIL: 'JPEG', 'PNG'.

  Raises:
    UserError: the image is of another format, damaged or truncated; the message
      does not name the file.
  """
  try:
    image = PIL.Image.open(io.BytesIO(data), formats=formats)
    image.load()
    if image.format == 'PNG':  # Decoding does not verify its checksums.
      PIL.Image.open(io.BytesIO(data)).verify()
  except PIL.UnidentifiedImageError:
    raise errors.UserError(
      f'is no {" or ".join(formats)} file, or its header is damaged'
    ) from None
  except Exception as error:  # PIL raises any exception for damaged files.
    raise errors.UserError(
      errors.format_on_one_line(f'cannot be decoded: {error}')
    ) from error
  # PIL accepts a download that was truncated and padded with zeros.
  if image.format != 'PNG' and not _has_end_marker(data):
    raise errors.UserError('cannot be decoded: the JPEG has no end, truncated?')
  return image


def _has_end_marker(jpeg: bytes) -> bool:
  """Returns whether the end marker follows the start of compressed data.

  A search of the whole file would not do: embedded thumbnails have an end
  marker, too, and come before the compressed data, which cannot contain one.
  After the end, phones append data of any kind.
  """
  at = 0
  while (segment := _SEGMENT.search(jpeg, at)) and segment[1] != _START_OF_SCAN:
    at = segment.end() - 2 + int.from_bytes(segment[2], 'big')
  return segment is not None and jpeg.find(_END_OF_IMAGE, segment.end()) >= 0


def is_rotated_by_exif(image: bytes) -> bool:
  """Returns whether an encoded image has an EXIF tag that swaps its sides."""
  try:
    with PIL.Image.open(io.BytesIO(image)) as opened:
      return opened.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
  except Exception:  # EXIF data may be damaged where the pixels are not.
    return False
