import doctest
import io
import pathlib
import struct
import unicodedata
import zlib

import numpy as np
import PIL.Image
import pytest

from pass_luss.benchmark import png_format
from runtime import errors


def png(pixels, mode=None):
  data = io.BytesIO()
  PIL.Image.fromarray(np.asarray(pixels), mode).save(data, 'PNG')
  return data.getvalue()


def rgb(*pixels):
  return np.array([pixels], np.uint8)


def refused(path, data, num_classes=300):
  path.write_bytes(data)
  with pytest.raises(errors.BadFile) as error:
    png_format.read_imagenet_s_png(path, num_classes)
  message = str(error.value)
  assert message.startswith(f'{path}: ') and '\n' not in message
  return message.removeprefix(f'{path}: ')


def test_pixels_equal_those_of_the_benchmark():
  pixels = png_format.encode_ids_as_rgb(
    np.array([[0, 1, 255, 256, 919, -1, -7]])
  )
  assert pixels.dtype == np.uint8
  assert pixels.tolist() == [
    [
      *([0, 0, 0], [1, 0, 0], [255, 0, 0], [0, 1, 0], [151, 3, 0]),
      *([232, 3, 0], [232, 3, 0]),
    ]
  ]


def test_every_id_survives_a_round_trip(tmp_path):
  label = np.arange(-1, 999, dtype=np.int16).reshape(8, 125)
  path = tmp_path / 'val' / 'n01443537' / 'a.b.png'
  png_format.write_imagenet_s_png(path, label)
  actual = png_format.read_imagenet_s_png(path, 999)
  assert actual.dtype == np.int16
  np.testing.assert_array_equal(actual, label)
  with PIL.Image.open(path) as image:
    assert (image.format, image.mode, image.size) == ('PNG', 'RGB', (125, 8))


def test_ignored_is_allowed_for_any_number_of_classes(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(png(rgb((232, 3, 0), (5, 0, 0))))
  assert png_format.read_imagenet_s_png(path, 5).tolist() == [[-1, 5]]


def test_refused_pixels(tmp_path):
  path = tmp_path / 'a.png'
  assert refused(path, png(rgb((1, 0, 0), (1, 0, 9)))) == (
    'expected ids as R + 256 G and B = 0, got B up to 9 (pixels: 1): write '
    'ids, not colors of a palette'
  )
  assert refused(path, png(rgb((45, 1, 0), (44, 1, 0), (255, 255, 0)))) == (
    'expected ids 0…300, or 1000 where ignored, got 65535 (pixels out of '
    'range: 2): check the number of classes'
  )


def test_refused_formats(tmp_path):
  path = tmp_path / 'a.png'
  gray = np.zeros((2, 2), np.uint8)
  palette = PIL.Image.fromarray(gray).convert('P')
  data = io.BytesIO()
  palette.save(data, 'PNG')
  expected = 'expected 8-bit RGB with ids as R + 256 G, got PIL mode'
  for actual, mode in (
    (png(gray), "'L'"),
    (data.getvalue(), "'P'"),
    (png(np.zeros((2, 2, 4), np.uint8)), "'RGBA'"),
  ):
    assert refused(path, actual) == (f'{expected} {mode} with 8 bits')
  # RGB of 16 bits, which PIL would silently halve.
  chunks = [
    (b'IHDR', struct.pack('>IIBBBBB', 1, 1, 16, 2, 0, 0, 0)),
    (b'IDAT', zlib.compress(bytes(7))),
    (b'IEND', b''),
  ]
  wide = b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(content))
    + name
    + content
    + struct.pack('>I', zlib.crc32(name + content))
    for name, content in chunks
  )
  assert refused(path, wide) == (f"{expected} 'RGB' with 16 bits")


def test_damaged_files(tmp_path):
  path = tmp_path / 'a.png'
  rng = np.random.default_rng(0)
  whole = png(
    np.pad(rng.integers(0, 255, (40, 40, 1), np.uint8), [(0, 0)] * 2 + [(0, 2)])
  )
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 0x10
  for data in (whole[: len(whole) // 2], whole[:-20], bytes(flipped)):
    assert refused(path, data).startswith('cannot be decoded: ')
  for data in (b'', b'\x89PNG', b'GIF89a'):
    assert refused(path, data) == 'is no PNG file, or its header is damaged'
  with pytest.raises(errors.BadFile, match=r'b\.png: cannot be read: No such'):
    png_format.read_imagenet_s_png(tmp_path / 'b.png', 3)


def test_id_out_of_range_is_not_written(tmp_path):
  with pytest.raises(
    ValueError, match='expected ids 0…999, or negative to ignore, got 1000'
  ):
    png_format.write_imagenet_s_png(tmp_path / 'a.png', np.array([[1000]]))
  assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  png_format.write_imagenet_s_png(path, np.array([[7]]))

  def full(self, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'rename', full)
  with pytest.raises(errors.UserError) as error:
    png_format.write_imagenet_s_png(path, np.array([[8]]))
  assert str(error.value) == (
    f'cannot write {path} (No space left on device): free some space, or '
    'choose another folder'
  )
  assert list(tmp_path.iterdir()) == [path]
  assert png_format.read_imagenet_s_png(path, 9).tolist() == [[7]]


def test_list_files_returns_sorted_paths(tmp_path):
  for name in (
    *('val/n02/b.png', 'val/n01/z.png', 'val/n01/a.b.png', 'n03/c.png'),
    *('val/n01/._a.png', '.cache/n01/d.png', 'match.json', 'n03/e.PNG.txt'),
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'')
  assert png_format.list_imagenet_s_pngs(tmp_path) == [
    *('n03/c.png', 'val/n01/a.b.png', 'val/n01/z.png', 'val/n02/b.png')
  ]
  assert png_format.list_imagenet_s_pngs(tmp_path / 'val')[0] == 'n01/a.b.png'


def test_folders_of_classes_may_be_links(tmp_path):
  (tmp_path / 'there').mkdir()
  (tmp_path / 'there' / 'a.png').write_bytes(b'')
  (tmp_path / 'val').mkdir()
  (tmp_path / 'val' / 'n01').symlink_to(tmp_path / 'there')
  assert png_format.list_imagenet_s_pngs(tmp_path / 'val') == ['n01/a.png']


def test_folders_without_files(tmp_path):
  def refused(folder):
    with pytest.raises(errors.UserError) as error:
      png_format.list_imagenet_s_pngs(folder)
    return str(error.value).removeprefix(str(folder))

  expected = ': expected SPLIT/WNID/NAME.png or WNID/NAME.png, got '
  assert refused(tmp_path / 'x') == f'{expected}no such folder'
  assert refused(tmp_path) == f'{expected}no PNG file'
  (tmp_path / 'x').write_text('')
  assert refused(tmp_path / 'x') == f'{expected}a file'


def test_doctests():
  assert doctest.testmod(png_format).failed == 0


def test_names_are_those_of_all_systems(tmp_path):
  composed, decomposed = (
    unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD')
  )
  for name in ('n01/a.PNG', f'n02/{decomposed}.Png', 'n03/b.png'):
    path = tmp_path / name
    path.parent.mkdir()
    path.write_bytes(b'')
  assert png_format.find_imagenet_s_pngs(tmp_path) == {
    'n01/a.png': tmp_path / 'n01/a.PNG',
    f'n02/{composed}.png': tmp_path / f'n02/{decomposed}.Png',
    'n03/b.png': tmp_path / 'n03/b.png',
  }
  (tmp_path / 'n01/a.png').write_bytes(b'')
  with pytest.raises(errors.UserError, match="is the image of 'a.PNG', too"):
    png_format.find_imagenet_s_pngs(tmp_path)
