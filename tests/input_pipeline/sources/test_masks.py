import struct

import numpy as np
import PIL.Image
import pytest

from input_pipeline.sources import masks
from tests.support import messages, png_chunks


def small_gray_png(rows, depth):
  """A gray PNG of less than 8 bits, which PIL cannot write."""
  lines = b''
  for row in rows:
    bits = ''.join(f'{value:0{depth}b}' for value in row)
    bits = bits.ljust(-(-len(bits) // 8) * 8, '0')
    lines += b'\0' + int(bits, 2).to_bytes(len(bits) // 8, 'big')
  head = struct.pack('>IIBBBBB', len(rows[0]), len(rows), depth, 0, 0, 0, 0)
  return png_chunks.assemble(head, lines)


@pytest.mark.parametrize('depth', [1, 2, 4])
def test_gray_masks_of_few_bits_keep_their_values(tmp_path, depth):
  rows = [[0, 1, 1, 0, 1], [1, 1, 0, 2**depth - 1, 0]]
  path = tmp_path / 'mask.png'
  path.write_bytes(small_gray_png(rows, depth))
  assert masks.read_mask_pixels(path).tolist() == rows


def test_palette_masks_of_few_bits_keep_their_indices(tmp_path):
  rows = [[0, 1, 2], [3, 2, 1]]
  image = PIL.Image.fromarray(np.array(rows, np.uint8), 'L')
  image.putpalette([7, 7, 7] * 4)
  image.save(tmp_path / 'mask.png', bits=2)
  assert masks.read_mask_pixels(tmp_path / 'mask.png').tolist() == rows


def test_mask_with_transparency_is_refused(tmp_path):
  PIL.Image.new('RGBA', (3, 5)).save(tmp_path / 'mask.png')
  assert messages.message_of(masks.read_mask_pixels, tmp_path / 'mask.png') == (
    'expected a palette, gray of 8 or 16 bits, or RGB without transparency, '
    "got pixels of PIL mode 'RGBA'"
  )


def test_palette_is_that_of_pascal_voc():
  # background, aeroplane, bicycle, bird, boat, …, tv monitor (20).
  colors = masks.voc_palette(21)
  assert colors[:5] == (
    (0, 0, 0),
    (128, 0, 0),
    (0, 128, 0),
    (128, 128, 0),
    (0, 0, 128),
  )
  assert colors[20] == (0, 64, 128)
  assert len(set(masks.voc_palette(256))) == 256
