"""Checks of a JPEG file by its markers, without decoding pixels.

A file is segments, each of a marker and a length, and scans, whose compressed
data end at the next marker.
"""

import re
from collections.abc import Iterator

# A marker with a length field, which counts itself; and the marker after which
# compressed data start.
_SEGMENT = re.compile(rb'\xff([\xc0-\xcf\xda-\xfe])(..)', re.DOTALL)
_START_OF_SCAN = b'\xda'
_END_OF_IMAGE = b'\xff\xd9'
# A marker that is no part of compressed data; restarts and stuffed bytes are.
_MARKER = re.compile(rb'\xff([^\x00\xff\xd0-\xd7])')

# Markers of a plain file: with Huffman coding, sequential or progressive.
_START_OF_IMAGE = b'\xff\xd8'
_FRAMES = (0xC0, 0xC1, 0xC2)
_APPLICATION, _QUANTIZATION, _SCAN = 0xE0, 0xDB, 0xDA
_WITHOUT_EFFECT = (0xC4, 0xDD, 0xFE)  # Huffman codes, restarts, a comment.
_TABLE_BYTES = 65  # Of a quantization table of 8 bits, with its number.


def is_plain_jpeg(jpeg: bytes, max_megapixels: int) -> bool:
  """Returns whether a JPEG is complete, and nothing about it is special.

  It is gray or color of 8 bits in a single scan; no EXIF data turn it, no other
  picture follows, and Pillow has no reason to refuse it.

  Args:
    jpeg: the encoded image.
    max_megapixels: limit above which an image is not plain.
  """
  num_frames = 0
  for marker, content, end in _segments(jpeg):
    if marker == _SCAN:
      return num_frames == 1 and _ends_after_scan(jpeg, end)
    if marker in _FRAMES:
      num_frames += 1
      is_plain = _is_plain_frame(content, max_megapixels)
    elif marker == _APPLICATION:
      is_plain = content.startswith(b'JFIF\0') and len(content) >= 14
    elif marker == _QUANTIZATION:
      is_plain = not len(content) % _TABLE_BYTES and all(
        number < 16 for number in content[::_TABLE_BYTES]
      )
    else:
      is_plain = marker in _WITHOUT_EFFECT
    if not is_plain:
      return False
  return False


def has_end_marker(jpeg: bytes) -> bool:
  """Returns whether the end marker follows the start of compressed data.

  A search of the whole file would not do: embedded thumbnails have an end
  marker, too, and come before the compressed data, which cannot contain one.
  After the end, phones append data of any kind.
  """
  at = 0
  while (segment := _SEGMENT.search(jpeg, at)) and segment[1] != _START_OF_SCAN:
    at = segment.end() - 2 + int.from_bytes(segment[2], 'big')
  return segment is not None and jpeg.find(_END_OF_IMAGE, segment.end()) >= 0


def is_complete_jpeg(jpeg: bytes) -> bool:
  """Returns whether the compressed data are one scan, which ends at the end.

  Decoding the pixels detects no other damage then: inside of a scan, libjpeg
  takes any value, and stops at the first marker.
  """
  at = 0
  while marker := _MARKER.search(jpeg, at):
    at = marker.end()
    if _SEGMENT.match(jpeg, marker.start()):
      at += int.from_bytes(jpeg[at : at + 2], 'big')
    if marker[1] == _START_OF_SCAN:
      return _ends_after_scan(jpeg, at)
  return False


def _ends_after_scan(jpeg: bytes, at: int) -> bool:
  """Returns whether the compressed data from a position end with the image."""
  following = _MARKER.search(jpeg, at)
  return following is not None and following[0] == _END_OF_IMAGE


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes, int]]:
  """Yields marker, content and end of each segment before compressed data.

  It stops at anything that is no whole segment.
  """
  at = len(_START_OF_IMAGE)
  if not jpeg.startswith(_START_OF_IMAGE):
    return
  while jpeg[at : at + 1] == b'\xff':
    length = int.from_bytes(jpeg[at + 2 : at + 4], 'big')
    end = at + 2 + length
    if length < 2 or end > len(jpeg):
      return
    yield jpeg[at + 1], jpeg[at + 4 : end], end
    at = end


def _is_plain_frame(content: bytes, max_megapixels: int) -> bool:
  """Returns whether a frame has 1 or 3 channels of 8 bits, and is not large."""
  if len(content) < 6 or content[0] != 8 or content[5] not in (1, 3):
    return False
  height, width = (int.from_bytes(content[i : i + 2], 'big') for i in (1, 3))
  return (
    len(content) == 6 + 3 * content[5]
    and 0 < height * width <= max_megapixels * 1e6
  )
