"""Complete JPEGs are decoded once; damage is detected as by Pillow."""

import cv2
import numpy as np
import PIL.ImageFile
import pytest

from input_pipeline.sources import image_files
from runtime import errors


def jpeg(*options):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
  return cv2.imencode('.jpg', pixels, options)[1].tobytes()


@pytest.fixture
def loaded(monkeypatch):
  """Returns a list that grows by each image whose pixels Pillow decodes."""
  images, load = [], PIL.ImageFile.ImageFile.load

  def record(self):
    images.append(self)
    return load(self)

  monkeypatch.setattr(PIL.ImageFile.ImageFile, 'load', record)
  return images


@pytest.mark.parametrize('restarts', [0, 2])
def test_a_complete_scan_is_not_decoded_by_pillow(loaded, restarts):
  data = jpeg(cv2.IMWRITE_JPEG_RST_INTERVAL, restarts)
  content = image_files.read_image_file(data)
  assert loaded == []
  expected = cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1]
  np.testing.assert_array_equal(content.pixels, expected)
  appended = image_files.read_image_file(data + b'\xff\xd8 of a phone')
  np.testing.assert_array_equal(appended.pixels, expected)


def test_several_scans_are_decoded_by_pillow(loaded):
  image_files.read_image_file(jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
  assert loaded


@pytest.mark.parametrize('progressive', [0, 1])
def test_missing_data_are_refused(progressive):
  data = jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
  half = len(data) // 2
  for damaged in (data[:half], data[:half] + bytes(half), data[:-2]):
    with pytest.raises(errors.UserError, match='cannot be decoded'):
      image_files.read_image_file(damaged)
