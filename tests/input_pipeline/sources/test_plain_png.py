"""Plain PNGs are decoded as by Pillow; no other file is, nor a damaged one."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from input_pipeline.sources import plain_png

LIMIT = 1  # Megapixel.
SIGNATURE = b'\x89PNG\r\n\x1a\n'


def image_of(values, colors=None):
  image = PIL.Image.fromarray(values)
  if colors is not None:
    image.putpalette(colors.tobytes())
  return image


def encoded(image, **options):
  file = io.BytesIO()
  image.save(file, 'PNG', **options)
  return file.getvalue()


def chunk(kind, content):
  checksum = zlib.crc32(kind + content)
  return (
    struct.pack('>I', len(content))
    + kind
    + content
    + struct.pack('>I', checksum)
  )


def header(width=3, height=2, form=(8, 0, 0, 0, 0)):
  return chunk(b'IHDR', struct.pack('>II5B', width, height, *form))


def joined(*chunks):
  return SIGNATURE + b''.join(chunks) + chunk(b'IEND', b'')


ROWS = b'\0\1\2\3\0\4\5\6'  # A byte for the filter precedes three values.
DATA = chunk(b'IDAT', zlib.compress(ROWS))
PALETTE = chunk(b'PLTE', bytes(range(9)))


@pytest.mark.parametrize('size', [(1, 1), (3, 7), (16, 5), (17, 5), (300, 400)])
@pytest.mark.parametrize('num_colors', [None, 2, 17, 256])
def test_values_and_palettes_are_those_of_pillow(size, num_colors):
  rng = np.random.default_rng(size[0])
  values = rng.integers(0, num_colors or 256, size, np.uint8)
  rows = np.pad(values, ((0, 0), (1, 0))).tobytes()
  chunks = [chunk(b'IDAT', zlib.compress(rows))]
  if num_colors:
    chunks.insert(0, chunk(b'PLTE', rng.bytes(3 * num_colors)))
  form = 8, 3 if num_colors else 0, 0, 0, 0
  data = joined(header(*size[::-1], form), *chunks)
  actual = plain_png.decode_plain_png(data, LIMIT)
  expected = PIL.Image.open(io.BytesIO(data))
  np.testing.assert_array_equal(actual.values, np.asarray(expected))
  np.testing.assert_array_equal(actual.values, values)
  if num_colors:
    assert actual.palette.ravel().tolist() == expected.getpalette('RGB')
  else:
    assert actual.palette is None and expected.mode == 'L'


def test_palette_masks_of_pillow_are_plain():
  values = np.random.default_rng(0).integers(0, 20, (300, 400), np.uint8)
  data = encoded(image_of(values, np.zeros((20, 3), np.uint8)))
  actual = plain_png.decode_plain_png(data, LIMIT)
  np.testing.assert_array_equal(actual.values, values)


def test_chunks_without_effect_and_parts_of_the_data_are_read():
  compressed = zlib.compress(ROWS)
  parts = [chunk(b'IDAT', part) for part in (compressed[:5], compressed[5:])]
  data = joined(header(), chunk(b'gAMA', bytes(4)), *parts)
  actual = plain_png.decode_plain_png(data, LIMIT)
  assert actual.values.tolist() == [[1, 2, 3], [4, 5, 6]]


VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4)
TEXT = PIL.PngImagePlugin.PngInfo()
TEXT.add_text('compression', 'jpeg')


@pytest.mark.parametrize(
  'data',
  [
    encoded(image_of(VALUES > 5)),
    encoded(image_of(np.stack([VALUES] * 3, -1))),
    encoded(image_of(VALUES.astype(np.uint16))),
    encoded(image_of(VALUES, np.zeros((4, 3), np.uint8)), bits=2),
    encoded(image_of(VALUES, np.zeros((16, 3), np.uint8)), transparency=3),
    encoded(image_of(VALUES), pnginfo=TEXT),
    joined(header(form=(8, 0, 0, 0, 1)), DATA),
    joined(header(width=1001, height=1000), DATA),
    joined(header(), chunk(b'IDAT', zlib.compress(b'\1' + ROWS[1:]))),
    joined(header(), chunk(b'sRGB', b''), DATA),
    b'GIF89a',
  ],
)
def test_other_files_are_not_decoded(data):
  assert plain_png.decode_plain_png(data, LIMIT) is None


def test_no_file_with_a_changed_or_missing_byte_is_decoded():
  data = joined(header(form=(8, 3, 0, 0, 0)), PALETTE, DATA)
  assert plain_png.decode_plain_png(data, LIMIT) is not None
  for i in range(len(data)):
    changed = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
    assert plain_png.decode_plain_png(changed, LIMIT) is None
    assert plain_png.decode_plain_png(data[:i], LIMIT) is None
  assert plain_png.decode_plain_png(data + b'\0', LIMIT) is None


@pytest.mark.parametrize(
  'chunks',
  [
    (header(), chunk(b'IDAT', zlib.compress(ROWS[:-1]))),
    (header(), chunk(b'IDAT', zlib.compress(ROWS + b'\0'))),
    (header(), chunk(b'IDAT', zlib.compress(ROWS) + b'\0')),
    (header(), chunk(b'IDAT', zlib.compress(ROWS)[:-4])),
    (header(), chunk(b'IDAT', b'no compressed data')),
    (header(),),
    (header(width=0), DATA),
    (header(form=(8, 3, 0, 0, 0)), DATA),
    (header(form=(8, 3, 0, 0, 0)), DATA, PALETTE),
    (header(form=(8, 3, 0, 0, 0)), PALETTE, PALETTE, DATA),
    (header(form=(8, 3, 0, 0, 0)), chunk(b'PLTE', bytes(4)), DATA),
    (header(), PALETTE, DATA),
    (chunk(b'IHDR', bytes(12)), DATA),
    (DATA,),
    (DATA, header()),
    (header(), DATA, chunk(b'gAMA', bytes(4)), DATA),
  ],
)
def test_chunks_that_contradict_each_other_are_not_decoded(chunks):
  assert plain_png.decode_plain_png(joined(*chunks), LIMIT) is None
