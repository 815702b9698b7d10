"""Decoding of the plainest PNG files, as most palette masks are.

  plain = plain_png.decode_plain_png(data, max_megapixels=178)
  if plain is None:
    ...  # Another kind of file, or a damaged one.

It takes less than half of Pillow's time, since zlib does all of the work.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_LENGTH = struct.Struct('>I')
# Width, height, bits per value, color type, compression, filter, interlace.
_HEADER = struct.Struct('>IIBBBBB')
_GRAY, _PALETTE = 0, 3
# Chunks beside those of the pixels that change nothing, and their lengths.
_WITHOUT_EFFECT = {b'gAMA': 4, b'cHRM': 32, b'sRGB': 1, b'pHYs': 9}
# A file with filtered rows mostly has one among so many first ones, which are
# checked before the others are decompressed.
_FIRST_ROWS = 16


class PlainPng(NamedTuple):
  """A decoded PNG file.

  Attributes:
    values: gray values, or indices of the palette; read-only.
    palette: RGB colors of the palette; None in a gray file.
  """

  values: UInt8[np.ndarray, 'H W']
  palette: UInt8[np.ndarray, 'N 3'] | None


def decode_plain_png(data: bytes, max_megapixels: int) -> PlainPng | None:
  """Decodes a PNG of 8 bits of gray or palette, without filters and interlace.

  Args:
    data: the encoded image.
    max_megapixels: limit above which images are not decoded.

  Returns:
    The pixels; None for any other file, among them all that are damaged: all
    checksums hold, and the compressed data are exactly the pixels.
  """
  chunks = [*_intact_chunks(data)]
  kinds = [kind for kind, _ in chunks]
  end = [b'IDAT'] * kinds.count(b'IDAT') + [b'IEND']
  first = [kind for kind in kinds[: -len(end)] if kind not in _WITHOUT_EFFECT]
  has_palette = first == [b'IHDR', b'PLTE']
  if kinds[-len(end) :] != end or kinds[0] != b'IHDR' or chunks[-1][1]:
    return None
  if not has_palette and first != [b'IHDR']:
    return None
  contents = dict(chunks)
  if len(contents[b'IHDR']) != _HEADER.size:
    return None
  width, height, *form = _HEADER.unpack(contents[b'IHDR'])
  if form != [8, _PALETTE if has_palette else _GRAY, 0, 0, 0]:
    return None
  if not 0 < width * height <= max_megapixels * 1e6:
    return None
  compressed = b''.join(part for kind, part in chunks if kind == b'IDAT')
  values = _inflate_rows(compressed, width, height)
  if values is None or not has_palette:
    return None if values is None else PlainPng(values, None)
  palette = np.frombuffer(contents[b'PLTE'], np.uint8)
  if palette.size % 3 or not 0 < palette.size <= 768:
    return None
  return PlainPng(values, palette.reshape(-1, 3))


def _intact_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Yields kind and content of each chunk; stops at the first other one.

  The last one that is yielded is IEND only if it is the end of the file.
  """
  if not data.startswith(_SIGNATURE):
    return
  at = len(_SIGNATURE)
  while at + 12 <= len(data):
    [length] = _LENGTH.unpack_from(data, at)
    checked = data[at + 4 : at + 8 + length]
    kind, content = checked[:4], checked[4:]
    end = at + 12 + length
    if (
      end > len(data)
      or zlib.crc32(checked) != _LENGTH.unpack_from(data, end - 4)[0]
      or len(content) != _WITHOUT_EFFECT.get(kind, len(content))
      or (kind == b'IEND' and end != len(data))
    ):
      return
    yield kind, content
    at = end


def _inflate_rows(
  compressed: bytes, width: int, height: int
) -> UInt8[np.ndarray, 'H W'] | None:
  """Decompresses rows without filters; None if they are not exactly these."""
  size = (width + 1) * height  # A byte before each row says how it is filtered.
  stream = zlib.decompressobj()
  try:
    num_first = min(_FIRST_ROWS, height) * (width + 1)
    first = stream.decompress(compressed, num_first)
    if any(first[:: width + 1]):
      return None
    rest = stream.decompress(stream.unconsumed_tail, size + 1 - len(first))
  except zlib.error:
    return None
  if len(first) + len(rest) != size or not stream.eof or stream.unused_data:
    return None
  rows = np.frombuffer(first + rest, np.uint8).reshape(height, width + 1)
  return None if rows[:, 0].any() else rows[:, 1:]
