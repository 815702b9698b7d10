"""PNG files of kinds that Pillow cannot write."""

import struct
import zlib


def assemble(head, rows):
  """Returns a PNG.

  Args:
    head: content of its IHDR chunk.
    rows: each with the byte of its filter before it, not compressed.
  """

  def chunk(kind, data):
    check = zlib.crc32(kind + data)
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', check)

  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', head)
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )
