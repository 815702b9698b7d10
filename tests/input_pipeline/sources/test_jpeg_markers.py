"""Plain JPEGs are read without Pillow, and only where it reads the same."""

import io
import struct

import cv2
import numpy as np
import PIL.Image
import pytest

from input_pipeline.sources import image_files, jpeg_markers
from runtime import errors

LIMIT = 1  # Megapixel.
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
PLAIN = cv2.imencode('.jpg', PIXELS)[1].tobytes()


def jpeg(pixels=PIXELS, **options):
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).save(file, 'JPEG', **options)
  return file.getvalue()


def with_segment(marker, content):
  segment = struct.pack('>BBH', 0xFF, marker, len(content) + 2) + content
  return PLAIN[:2] + segment + PLAIN[2:]


def replaced(old, new):
  assert PLAIN.count(old) == 1
  return PLAIN.replace(old, new)


EXIF = PIL.Image.Exif()
EXIF[0x0112] = 6
FRAME = struct.pack('>BHH', 8, 24, 30)


@pytest.mark.parametrize(
  'data',
  [
    PLAIN,
    jpeg(),
    jpeg(PIXELS[..., 0]),
    jpeg(comment='a comment'),
    jpeg(optimize=True, restart_marker_rows=1),
    PLAIN + b'data of a phone',
  ],
)
def test_plain_files_are_read_without_pillow(data, monkeypatch):
  assert jpeg_markers.is_plain_jpeg(data, LIMIT)
  monkeypatch.setattr(PIL.Image, 'open', None)
  content = image_files.read_image_file(data)
  expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
  np.testing.assert_array_equal(content.pixels, expected)
  assert content.encoded is data
  assert content.as_stored and content.depth == 8
  assert content.orientation == image_files.UPRIGHT
  assert content.peak == expected.max()


@pytest.mark.parametrize(
  'data',
  [
    jpeg(progressive=True),
    jpeg(exif=EXIF),
    with_segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0'),
    with_segment(0xE2, b'MPF\0'),
    with_segment(0xDB, bytes(64)),
    with_segment(0xE0, b'JFIF\0'),
    with_segment(0xC0, FRAME + b'\3' + bytes(9)),
    replaced(FRAME, struct.pack('>BHH', 12, 24, 30)),
    replaced(FRAME, struct.pack('>BHH', 8, 0, 30)),
    replaced(FRAME, struct.pack('>BHH', 8, 1001, 1000)),
    replaced(FRAME + b'\3', FRAME + b'\4'),
    PLAIN[:2] + b'\0' + PLAIN[2:],
    PLAIN[:-1],
    PLAIN[:30],
    PLAIN[:2],
    b'GIF89a',
  ],
)
def test_other_files_are_not_plain(data):
  assert not jpeg_markers.is_plain_jpeg(data, LIMIT)


def read(data):
  """Returns everything that is read of a file, or the error."""
  try:
    content = image_files.read_image_file(data)
  except errors.UserError as error:
    return str(error)
  pixels = content.pixels
  form = content.depth, content.orientation, content.peak, content.as_stored
  return content.encoded, pixels.shape, pixels.tobytes(), form


def test_changed_headers_are_read_as_with_pillow(monkeypatch):
  header = PLAIN.index(b'\xff\xda') + 14
  plain = jpeg_markers.is_plain_jpeg
  for i in range(header):
    changed = PLAIN[:i] + bytes([PLAIN[i] ^ (1 << i % 8)]) + PLAIN[i + 1 :]
    monkeypatch.setattr(jpeg_markers, 'is_plain_jpeg', plain)
    actual = read(changed)
    monkeypatch.setattr(jpeg_markers, 'is_plain_jpeg', lambda *_: False)
    assert actual == read(changed), i


@pytest.mark.parametrize('data', [PLAIN, jpeg(progressive=True)])
def test_an_error_of_opencv_is_one_for_users(data, monkeypatch):
  """It raises one if the memory does not suffice for a large image."""

  def fail(*_):
    raise cv2.error('Insufficient memory')

  monkeypatch.setattr(cv2, 'imdecode', fail)
  with pytest.raises(errors.UserError, match='cannot be decoded by OpenCV'):
    image_files.read_image_file(data)


def test_a_plain_file_that_opencv_refuses_is_no_record_to_prepare_again():
  """Its first channel names a quantization table that is not there."""
  at = PLAIN.index(FRAME) + len(FRAME) + 3
  damaged = PLAIN[:at] + b'\3' + PLAIN[at + 1 :]
  assert jpeg_markers.is_plain_jpeg(damaged, LIMIT)
  with pytest.raises(errors.UserError, match='^cannot be decoded by OpenCV$'):
    image_files.read_image_file(damaged)
