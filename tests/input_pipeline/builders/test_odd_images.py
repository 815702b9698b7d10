"""Images and names that are odd but not damaged are prepared as they are."""

import contextlib
import io
import pathlib

import cv2
import numpy as np
import PIL.Image
import pytest

from input_pipeline import datasets, prepare, transforms
from tests.support import healthy_sources as sources


def halves(left, right, height=24, width=32):
  """Returns an image of two colors, which JPEG preserves."""
  pixels = np.empty((height, width, len(left)), np.uint8)
  pixels[:, : width // 2] = left
  pixels[:, width // 2 :] = right
  return pixels


RED_BLUE = halves((200, 30, 40), (20, 60, 210))


def smooth_jpeg(**options):
  return sources.encoded(RED_BLUE, 'JPEG', subsampling=0, **options)


# A start of scan, as any long video has somewhere.
VIDEO = b'ftypmp42' + bytes(100) + b'\xff\xda' + bytes(100)


def phone_jpeg():
  """Returns a JPEG of several pictures, as phones write them."""
  data = io.BytesIO()
  first = PIL.Image.fromarray(RED_BLUE)
  others = [first.resize((8, 8))]
  first.save(data, 'MPO', save_all=True, append_images=others, subsampling=0)
  return data.getvalue()


def rotated_smooth_jpeg():
  exif = PIL.Image.Exif()
  exif[sources.EXIF_ORIENTATION] = 6
  return smooth_jpeg(exif=exif)


def png_of_16_bits(pixels):
  _, data = cv2.imencode('.png', pixels.astype(np.uint16) * 257)
  return data.tobytes()


def png_of_a_palette():
  image = PIL.Image.fromarray(np.arange(768, dtype=np.uint8).reshape(24, 32))
  image.putpalette([255 - i // 3 for i in range(768)])
  return sources.encoded(image)


GRAY = halves((50,), (180,))[..., 0]
NOISE = sources.photograph()
ALPHA = np.random.default_rng(0).integers(0, 256, (24, 32, 1), np.uint8)

# Files, and the pixels they decode to. Inks are subtracted from white one after
# the other: (255 - cyan) (255 - black) / 255, and so on.
ODD = {
  'cmyk.jpg': (
    sources.encoded(
      PIL.Image.fromarray(halves((100, 0, 50, 128), (0, 255, 255, 0)), 'CMYK'),
      'JPEG',
    ),
    halves((77, 127, 102), (255, 0, 0)),
  ),
  'gray.jpg': (sources.encoded(GRAY, 'JPEG'), np.stack([GRAY] * 3, -1)),
  'progressive.jpg': (smooth_jpeg(progressive=True), RED_BLUE),
  'rotated_by_exif.jpg': (rotated_smooth_jpeg(), RED_BLUE),
  'of_a_phone.jpg': (phone_jpeg(), RED_BLUE),
  'with_text_behind.jpg': (smooth_jpeg() + b'Hello', RED_BLUE),
  'with_zeros_behind.jpg': (smooth_jpeg() + bytes(99), RED_BLUE),
  'with_a_video_behind.jpg': (smooth_jpeg() + VIDEO, RED_BLUE),
  'of_one_pixel.jpg': (
    sources.encoded(RED_BLUE[:1, :1], 'JPEG'),
    RED_BLUE[:1, :1],
  ),
  'png_in_truth.jpg': (sources.encoded(NOISE), NOISE),
  'of_16_bits.png': (png_of_16_bits(NOISE[..., ::-1]), NOISE),
  'gray_of_16_bits.png': (
    png_of_16_bits(NOISE[..., 0]),
    np.stack([NOISE[..., 0]] * 3, -1),
  ),
  # What is transparent has a color, too.
  'with_alpha.png': (
    sources.encoded(np.concatenate([NOISE, ALPHA], -1)),
    NOISE,
  ),
  'gray_with_alpha.png': (
    sources.encoded(np.concatenate([NOISE[..., :1], ALPHA], -1)),
    np.stack([NOISE[..., 0]] * 3, -1),
  ),
  'of_a_palette.png': (
    png_of_a_palette(),
    np.stack([255 - np.arange(768).reshape(24, 32) % 256] * 3, -1),
  ),
}


@pytest.fixture(scope='module')
def odd_examples(tmp_path_factory):
  """Returns the decoded odd images by id, and what preparing them printed."""
  source = tmp_path_factory.mktemp('odd') / 'source'
  for name, (data, pixels) in ODD.items():
    height, width = pixels.shape[:2]
    sources.write(source / f'images/{name}', data)
    mask = (source / f'masks/{name}').with_suffix('.png')
    sources.write(mask, sources.encoded(sources.mask_of(width, height)))
  (source / 'classes.txt').write_text('sky\nroad\ncar\n')
  data_dir = source.parent / 'data'
  arguments = sources.arguments_of(sources.FOLDER, source, data_dir)
  with contextlib.redirect_stdout(io.StringIO()) as out:
    assert prepare.main([*arguments, '--on_bad_example=skip']) == 0
  options = sources.options_of(sources.FOLDER, source, on_bad_example='skip')
  split = datasets.open_dataset_split(options, 'train', str(data_dir))
  decode = transforms.Decode(len(split.classes))
  examples = (decode(record) for record in split.records)
  return {e['id'].decode(): e for e in examples}, out.getvalue()


@pytest.mark.parametrize('name', ODD)
def test_odd_images_decode_to_the_intended_pixels(name, odd_examples):
  examples, printed = odd_examples
  assert f'/{name}: ' not in printed
  example = examples[pathlib.Path(name).stem]
  expected = ODD[name][1].astype(int)
  pixels = example['image'].astype(int)
  assert pixels.shape == expected.shape
  # JPEG is not exact.
  tolerance = 0 if ODD[name][0].startswith(b'\x89PNG') else 3
  assert np.abs(pixels - expected).max() <= tolerance
  label = sources.mask_of(*expected.shape[1::-1]).astype(int)
  np.testing.assert_array_equal(
    example['label'], np.where(label == 255, -1, label)
  )


def test_a_folder_named_like_an_image_is_not_an_image(tmp_path, capfd):
  source = tmp_path / 'source'
  sources.write_folder(source)
  (source / 'images/b.jpg').unlink()
  (source / 'images/b.jpg').mkdir()
  arguments = sources.arguments_of(sources.FOLDER, source, tmp_path / 'data')
  assert prepare.main([*arguments, '--check']) == 0
  out = capfd.readouterr().out
  assert out.startswith('train: 2 images\n')
  assert f'warning: {source}/masks/b.png: a mask without an image\n' in out


@pytest.mark.filterwarnings('error')
def test_masks_may_be_wholly_ignored(tmp_path, capfd):
  """The picture then has no bar for any class."""
  source = tmp_path / 'source'
  sources.write_folder(source)
  for file in (source / 'masks').iterdir():
    sources.write(file, sources.encoded(np.full((24, 32), 255, np.uint8)))
  arguments = sources.arguments_of(sources.FOLDER, source, tmp_path / 'data')
  assert prepare.main([*arguments, '--check']) == 0
  assert "warning: class 'sky' occurs in no image" in capfd.readouterr().out


@pytest.mark.parametrize('name', ['a b', 'ähre', '5$_{$ or 6', '%s {0} \\x'])
def test_names_may_have_any_characters(name, tmp_path, capfd):
  """Even those that matplotlib would interpret as mathematics."""
  source = tmp_path / 'source'
  sources.write(source / f'images/{name}.jpg', sources.jpeg())
  sources.write(
    source / f'masks/{name}.png', sources.encoded(sources.mask_of())
  )
  (source / 'classes.txt').write_text(f'{name}\nroad\ncar\n', 'utf-8')
  arguments = sources.arguments_of(sources.FOLDER, source, tmp_path / 'data')
  assert prepare.main(arguments) == 0
  options = sources.options_of(sources.FOLDER, source)
  split = datasets.open_dataset_split(options, 'train', str(tmp_path / 'data'))
  assert split.ids() == [name]
  assert split.classes == (name, 'road', 'car')
