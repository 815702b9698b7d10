"""Image files of many kinds, in predictions and in the exported example."""

import dataclasses
import runpy
import sys

import cv2
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from input_pipeline.sources import image_files
from runtime import errors
from segcore.eval import export, predict
from segcore.eval.inference import LabelMaps
from segcore.eval.protocols import ProtocolOptions
from segcore.models import heads
from segcore.ops import dense_crf
from tests.segcore.eval import test_export
from tests.support import runs, scenes, tiny_networks

PHOTO = scenes.pixels(0)
GRAY = PHOTO[..., 0]
DEEP = PHOTO.astype(np.uint16) * 256 + 77
GRAY_12 = GRAY.astype(np.uint16) * 16


def exif(orientation):
  tags = PIL.Image.Exif()
  tags[0x0112] = orientation
  return {'exif': tags}


def png_of_16_bits(values):
  return cv2.imencode('.png', values[..., ::-1])[1].tobytes()


def alpha(pixels):
  return np.concatenate([pixels, np.full_like(pixels[..., :1], 90)], -1)


FRAMES = {
  'save_all': True,
  'append_images': [PIL.Image.fromarray(255 - PHOTO)],
}
# Content of the files that are predicted, by name.
FILES = {
  'plain.jpg': scenes.encoded(PHOTO, 'JPEG', quality=95),
  'gray.png': scenes.encoded(GRAY),
  'deepgray.png': scenes.encoded(GRAY.astype(np.uint16) * 257),
  'deep.png': png_of_16_bits(DEEP),
  'palette.png': scenes.encoded(PIL.Image.fromarray(PHOTO).quantize(8)),
  'rgba.png': scenes.encoded(alpha(PHOTO)),
  'gray.8.jpeg': scenes.encoded(GRAY, 'JPEG'),
  'flat.tif': scenes.encoded(PHOTO, 'TIFF'),
  'gray16.TIFF': scenes.encoded(GRAY.astype(np.uint16) * 257, 'TIFF'),
  'upright.tiff': scenes.encoded(PHOTO, 'TIFF', **exif(8)),
  'b.bmp': scenes.encoded(PHOTO, 'BMP'),
  'a.webp': scenes.encoded(PHOTO, 'WEBP', lossless=True, **exif(3)),
  'c.gif': scenes.encoded(PHOTO, 'GIF'),
  'turned.JPG': scenes.encoded(PHOTO, 'JPEG', **exif(6)),
  'mirrored.png': scenes.encoded(PHOTO, **exif(2)),
  'one.png': scenes.encoded(PHOTO[:1, :1]),
  'strip.png': scenes.encoded(np.repeat(PHOTO[:1], 3, 0)),
  'sub dir/x.y.z.PNG': scenes.encoded(PHOTO),
}
SKIPPED = {
  'broken.jpg': FILES['plain.jpg'][:300],
  'notes.txt': b'of the photographer',
  'same.jpg': FILES['plain.jpg'],
  'same.png': FILES['rgba.png'],
  'frames.gif': scenes.encoded(PIL.Image.fromarray(PHOTO), 'GIF', **FRAMES),
  'pages.tif': scenes.encoded(PIL.Image.fromarray(PHOTO), 'TIFF', **FRAMES),
}


@pytest.fixture(scope='module')
def model():
  net = tiny_networks.small_unet({'logits': heads.ConvHead(3)})
  return test_export.random_model(
    net, lambda scores: LabelMaps(scores, 3, ProtocolOptions(), 8)
  )


def write(folder, contents):
  for name, data in contents.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def label_path(folder, name):
  # 'turned.JPG' and 'upright.tiff' would be one id.
  path = folder / name
  return path.parent / f'{path.stem}.png'


def read_labels(folder, names):
  labels = {}
  for name in names:
    with PIL.Image.open(label_path(folder, name)) as image:
      labels[name] = np.asarray(image)
  return labels


def run_example(monkeypatch, *arguments):
  monkeypatch.setattr(PIL.Image, 'MAX_IMAGE_PIXELS', None)  # It sets it.
  path = runs.ROOT / 'examples' / 'segment_exported.py'
  monkeypatch.setattr(sys, 'argv', ['x', *map(str, arguments)])
  runpy.run_path(str(path))['main']()


@pytest.mark.parametrize(
  'follow', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_the_example_gives_the_labels_of_the_prediction(
  model, tmp_path, monkeypatch, capsys, follow
):
  write(tmp_path / 'photos', FILES | SKIPPED)
  options = image_files.ImageOptions(follow_exif=follow)
  model = dataclasses.replace(model, image_options=options)
  predict.predict_images(
    model, predict.Request(tmp_path / 'photos', tmp_path / 'predicted')
  )
  out = capsys.readouterr().out
  assert f'{len(FILES)} images predicted, {len(SKIPPED)} skipped' in out
  for name in SKIPPED:
    assert f'skipped: {tmp_path}/photos/{name}: ' in out
  reading = 'turned, as viewers show them' if follow else 'read as stored;'
  assert (
    f'warning: 4 images are turned by an EXIF tag: pixels are {reading}'
  ) in out
  assert '(a, mirrored, turned, upright)' in out
  export.export_network(model, tmp_path / 'export', export.Request())
  capsys.readouterr()
  run_example(
    monkeypatch, *(tmp_path / n for n in ('export', 'photos', 'alone'))
  )
  printed = capsys.readouterr().out
  for name in SKIPPED:
    assert f'skipped: {tmp_path}/photos/{name}: ' in printed
  expected = read_labels(tmp_path / 'predicted/labels', FILES)
  actual = read_labels(tmp_path / 'alone', FILES)
  for name in FILES:
    with PIL.Image.open(tmp_path / 'photos' / name) as image:
      size = image.size  # As stored: not of the turned image.
    assert expected[name].shape == actual[name].shape
    if not name.endswith('.tiff'):  # Pillow swaps the sides of a turned TIFF.
      assert expected[name].shape == size[::-1]
    same = np.mean(expected[name] == actual[name])
    assert same > 0.998, f'{name}: {same}'
  # The network sees other pixels where the image is turned.
  plain = expected['rgba.png']
  assert len(np.unique(plain)) > 1
  for name, orientation in (('mirrored.png', 2), ('a.webp', 3)):
    is_plain = np.array_equal(expected[name], plain)
    assert is_plain == (not follow), (name, orientation)


def test_values_of_12_bits_are_scaled_in_the_example_too(
  model, tmp_path, monkeypatch, capsys
):
  write(
    tmp_path / 'photos',
    {
      'gray.png': scenes.encoded(GRAY),
      'deep.png': scenes.encoded(GRAY_12),
      'rgb.png': png_of_16_bits(PHOTO.astype(np.uint16) * 16),
      'full.png': scenes.encoded(GRAY.astype(np.uint16) * 257),
    },
  )
  options = image_files.ImageOptions(image_depth=12)
  model = dataclasses.replace(model, image_options=options)
  predict.predict_images(
    model, predict.Request(tmp_path / 'photos', tmp_path / 'predicted')
  )
  assert (
    'full.png: expected values of at most 4,095, as image_depth=12, got '
  ) in capsys.readouterr().out
  export.export_network(model, tmp_path / 'export', export.Request())
  run_example(
    monkeypatch, *(tmp_path / n for n in ('export', 'photos', 'alone'))
  )
  out = capsys.readouterr().out
  assert 'full.png: expected values of 12 bits, got ' in out
  assert 'rgb.png: Pillow reads 8 bits of RGB, not 12 of 16' in out
  names = ('gray.png', 'deep.png')
  expected = read_labels(tmp_path / 'predicted/labels', names)
  actual = read_labels(tmp_path / 'alone', names)
  for labels in (*expected.values(), *actual.values()):
    np.testing.assert_array_equal(labels, expected['gray.png'])


def test_the_example_fails_only_if_no_image_is_usable(
  model, tmp_path, monkeypatch, capsys
):
  write(tmp_path / 'photos', {'broken.jpg': SKIPPED['broken.jpg']})
  export.export_network(model, tmp_path / 'export', export.Request())
  with pytest.raises(SystemExit) as stopped:
    run_example(
      monkeypatch, *(tmp_path / n for n in ('export', 'photos', 'alone'))
    )
  assert stopped.value.code == 2
  assert 'broken.jpg' in capsys.readouterr().out


def test_a_crf_refines_labels_and_probabilities(model, tmp_path, monkeypatch):
  """At the size of the image, with the image itself; all but the export."""
  images = tmp_path / 'images'
  images.mkdir()
  (images / 'a.jpg').write_bytes(FILES['plain.jpg'])
  shapes = []

  def refine(probs, image, options):
    shapes.append((probs.shape, image.shape, options.num_iterations))
    return np.roll(probs, 1, axis=-1)

  plain, refined = {}, {}
  for crf, results in ((False, plain), (True, refined)):
    monkeypatch.setattr(dense_crf, 'refine_by_crf', refine)
    predictor = dataclasses.replace(
      model.predictor, protocol=ProtocolOptions(crf=crf)
    )
    for probs in (False, True):
      out = tmp_path / f'{crf}{probs}'
      predict.predict_images(
        dataclasses.replace(model, predictor=predictor),
        predict.Request(images, out, overlays=False, probs=probs),
      )
      labels = np.asarray(PIL.Image.open(out / 'labels' / 'a.png'))
      results[probs] = labels
  size = plain[False].shape
  assert shapes == [((*size, 3), (*size, 3), 10)] * 2
  for probs in (False, True):
    np.testing.assert_array_equal(refined[probs], (plain[probs] + 1) % 3)
  with pytest.raises(errors.UserError, match='protocol.crf: expected False'):
    predictor.label(model.state, jnp.zeros((1, 8, 8, 3), jnp.uint8))
