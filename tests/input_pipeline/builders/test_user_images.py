"""Images as cameras and tools write them: what their pixels mean."""

import io

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from benchmarks import image_folders
from input_pipeline import datasets, image_folder
from input_pipeline.sources import audit, image_files, records
from tests.support import messages, scenes

ORIENTATIONS = range(1, 9)


def exif(orientation):
  tags = PIL.Image.Exif()
  tags[0x0112] = orientation
  return {'exif': tags}


def stored(pixels, orientation):
  """Returns what a camera stores so that a viewer shows these pixels."""
  return image_files.turn_back_by_exif(pixels, orientation)


def open_train(source, **fields):
  return datasets.open_dataset_split(
    image_folders.data_options(source, **fields),
    'train',
    str(source.parent / 'records'),
  )


def read_train(source, **fields):
  """Returns the pixels of the prepared images, by id."""
  return {
    record['id'].decode(): records.decode_record_image(record['image'])
    for record in open_train(source, **fields).records
  }


# EXIF orientation.


@pytest.mark.parametrize('orientation', ORIENTATIONS)
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_turning_by_exif_is_what_viewers_do(orientation, kind):
  pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
  if kind == 'JPEG':
    pixels = np.full((16, 24, 3), 60, np.uint8)
    pixels[:8, :8] = 200
  options = {'lossless': True} if kind == 'WEBP' else {}
  data = scenes.encoded(pixels, kind, **options, **exif(orientation))
  shown = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
  tolerance = 3 if kind == 'JPEG' else 0
  content = image_files.read_image_file(
    data, image_files.ImageOptions(follow_exif=True)
  )
  assert content.orientation == orientation
  np.testing.assert_allclose(
    content.pixels.astype(int), np.asarray(shown), atol=tolerance
  )
  np.testing.assert_array_equal(
    records.decode_record_image(content.encoded), content.pixels
  )
  as_stored = image_files.read_image_file(data)
  np.testing.assert_allclose(
    as_stored.pixels.astype(int), pixels, atol=tolerance
  )
  np.testing.assert_array_equal(
    image_files.turn_back_by_exif(content.pixels, orientation),
    as_stored.pixels,
  )
  np.testing.assert_array_equal(
    records.decode_record_image(as_stored.encoded), as_stored.pixels
  )


@pytest.mark.parametrize('orientation', [2, 3, 4])
def test_turned_images_of_equal_size_are_counted_named_and_turned(
  tmp_path, capsys, orientation
):
  """Their size agrees with that of the mask, so nothing else would tell."""

  def image(i):
    turned = orientation if i % 2 else 1
    return '.png', scenes.encoded(
      stored(scenes.pixels(i), turned), **exif(turned)
    )

  source = scenes.write(tmp_path / 's', image=image)
  assert scenes.run_check(source) == 0
  assert (
    'warning: 3 images are turned by an EXIF tag: pixels are read as stored; '
    'if the masks are as viewers show them, set follow_exif=True '
    '(s01, s03, s05)\n'
  ) in capsys.readouterr().out
  for follow in (False, True):
    for i, pixels in enumerate(read_train(source, follow_exif=follow).values()):
      red = pixels[scenes.ids(i) == 1].mean(axis=0)
      is_upright = follow or i % 2 == 0
      assert (red.tolist() == [210, 60, 50]) == is_upright


@pytest.mark.parametrize('orientation', [6, 8])
def test_images_turned_by_90_degrees_fit_their_masks_when_followed(
  tmp_path, orientation
):
  source = scenes.write(
    tmp_path / 's',
    image=lambda i: (
      '.jpg',
      scenes.encoded(
        stored(scenes.pixels(i), orientation),
        'JPEG',
        quality=95,
        subsampling=0,
        **exif(orientation),
      ),
    ),
  )
  assert 'is not applied: set follow_exif=True' in (
    messages.message_of(scenes.counts, source)
  )
  assert scenes.counts(source, follow_exif=True) == scenes.COUNTS
  pixels = read_train(source, follow_exif=True)['s02']
  red = pixels[scenes.ids(2) == 1].mean(axis=0)
  np.testing.assert_allclose(red, [210, 60, 50], atol=12)


# Range of values.


def deep(values, ending='.png'):
  return ending, cv2.imencode(ending, values[..., ::-1])[1].tobytes()


@pytest.mark.parametrize('bits', [10, 12, 14])
@pytest.mark.parametrize('ending', ['.png', '.tif'])
def test_few_bits_in_16_are_reported_and_scaled(tmp_path, capsys, bits, ending):
  def image(i):
    values = scenes.pixels(i).astype(np.uint16) << (bits - 8)
    return deep(values, ending)

  source = scenes.write(tmp_path / 's', image=image)
  assert scenes.run_check(source) == 0
  peak = 210 << (bits - 8)
  assert (
    f'warning: the 6 images of 16 bits hold values up to {peak:,} of 65,535: '
    f'training sees at most {peak >> 8} of 255; set image_depth={bits} if '
  ) in capsys.readouterr().out
  assert not scenes.check(source, image_depth=bits).warnings
  for i, pixels in enumerate(read_train(source, image_depth=bits).values()):
    np.testing.assert_array_equal(pixels, scenes.pixels(i))


def test_images_of_16_bits_that_use_them_are_no_problem(tmp_path):
  def image(i):
    return deep(scenes.pixels(i).astype(np.uint16) * 257)

  source = scenes.write(tmp_path / 's', image=image)
  assert not scenes.check(source).warnings
  np.testing.assert_array_equal(read_train(source)['s00'], scenes.pixels(0))
  assert (
    's00.png: expected values of at most 4,095, as image_depth=12, got 53,970'
  ) in messages.message_of(scenes.counts, source, image_depth=12)


def test_nearly_black_images_are_reported(tmp_path):
  source = scenes.write(
    tmp_path / 's',
    image=lambda i: ('.png', scenes.encoded(scenes.pixels(i) // 16)),
  )
  assert scenes.check(source).warnings == (
    'the 6 images of 8 bits hold values up to 13 of 255',
  )


@pytest.mark.parametrize('value', [7, 17])
def test_a_depth_of_no_16_bit_image_is_refused(tmp_path, value):
  source = scenes.write(tmp_path / 's')
  assert messages.message_of(scenes.check, source, image_depth=value) == (
    f'image_depth: expected 8 to 16, got {value}'
  )


# Kinds of files.


KINDS = ('TIFF', 'BMP', 'WEBP', 'GIF', 'PNG', 'JPEG')
ENDINGS = ('.tif', '.BMP', '.webp', '.gif', '.PNG', '.Jpeg')


def of_kinds(i):
  options = {'lossless': True} if KINDS[i] == 'WEBP' else {}
  return ENDINGS[i], scenes.encoded(scenes.pixels(i), KINDS[i], **options)


def test_images_of_all_kinds_are_read(tmp_path):
  source = scenes.write(
    tmp_path / 's',
    image=of_kinds,
    mask=lambda i: (
      ('.tiff', '.bmp', '.gif', '.TIF', '.png', '.PNG')[i],
      scenes.encoded(
        scenes.ids(i), ('TIFF', 'BMP', 'GIF', 'TIFF', 'PNG', 'PNG')[i]
      ),
    ),
  )
  assert scenes.counts(source) == scenes.COUNTS
  split = open_train(source)
  for i, record in enumerate(split.records):
    pixels = records.decode_record_image(record['image'])
    if KINDS[i] == 'JPEG':
      assert record['image'] == of_kinds(i)[1]  # As it is.
    else:
      np.testing.assert_array_equal(pixels, scenes.pixels(i))
    np.testing.assert_array_equal(
      records.decode_record_label(record['label']), scenes.ids(i)
    )


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
  source = scenes.write(tmp_path / 's')
  for name in ('images/x.heic', 'images/notes.txt', 'masks/s00.json'):
    (source / name).write_bytes(b'')
  assert scenes.run_check(source) == 0
  line = (
    'warning: 3 files are left out for an ending of neither images nor masks: '
    f'{source}/images/notes.txt, {source}/images/x.heic, '
    f'{source}/masks/s00.json\n'
  )
  assert line in capsys.readouterr().out
  # When it is prepared, and by every later run.
  for _ in range(2):
    audit._PRINTED_REPORTS.clear()
    open_train(source)
    assert line in capsys.readouterr().out
  open_train(source)
  assert line not in capsys.readouterr().out


@pytest.mark.parametrize('kind', ['GIF', 'TIFF', 'WEBP'])
def test_files_of_several_pictures_are_refused(tmp_path, kind):
  frames = [PIL.Image.fromarray(scenes.pixels(i)) for i in range(3)]
  data = scenes.encoded(
    frames[0], kind, save_all=True, append_images=frames[1:]
  )
  assert messages.message_of(image_files.read_image_file, data) == (
    'expected one picture, got 3 frames or pages: save the one that is meant '
    'as a file of its own'
  )


def test_huge_images_are_refused_with_the_limit_or_read(tmp_path):
  data = scenes.encoded(PIL.Image.new('1', (14000, 13500)), 'PNG')
  assert messages.message_of(image_files.read_image_file, data) == (
    'expected at most max_megapixels=178, got 189.0 megapixels (14000x13500): '
    'cut it into tiles, or raise max_megapixels if the memory suffices'
  )
  (tmp_path / 'photos').mkdir()
  small = scenes.encoded(PIL.Image.new('L', (1100, 1000)), 'PNG')
  (tmp_path / 'photos/a.png').write_bytes(small)
  (tmp_path / 'photos/b.png').write_bytes(scenes.encoded(scenes.pixels(0)))
  options = image_files.ImageOptions(max_megapixels=1)
  opened = image_folder.open_image_folder(
    tmp_path / 'photos', ('a',), ((0, 0, 0),), options
  )
  assert opened.split.ids() == ['b']
  assert 'got 1.1 megapixels (1100x1000)' in str(opened.skipped[0])
  options = image_files.ImageOptions(max_megapixels=2)
  assert image_files.read_image_file(small, options).as_stored


def test_an_image_that_no_png_can_hold_is_refused():
  data = scenes.encoded(np.zeros((1, 1_000_001), np.uint8), 'TIFF')
  assert messages.message_of(image_files.read_image_file, data) == (
    'cannot be stored as PNG: expected sides of at most 1,000,000 pixels, got '
    '1000001x1'
  )


def test_a_link_to_the_folder_itself_ends(tmp_path, capsys):
  source = scenes.write(tmp_path / 's')
  (source / 'images/again').symlink_to(source / 'images')
  (source / 'masks/up').symlink_to(source)
  assert scenes.run_check(source) == 0
  out = capsys.readouterr().out
  assert out.startswith('train: 6 images\n')
  assert f'{source}/images/again' in out


def test_two_folders_that_link_to_each_other_end(tmp_path):
  for name, other in (('a', 'b'), ('b', 'a')):
    (tmp_path / 'photos' / name).mkdir(parents=True)
    (tmp_path / 'photos' / name / 'x.png').write_bytes(
      scenes.encoded(scenes.pixels(0))
    )
    (tmp_path / 'photos' / name / 'link').symlink_to(
      tmp_path / 'photos' / other
    )
  opened = image_folder.open_image_folder(
    tmp_path / 'photos', ('a',), ((0, 0, 0),)
  )
  assert opened.split.ids() == ['a/link/x', 'a/x', 'b/link/x', 'b/x']
  assert len(opened.skipped) == 2


def test_a_photograph_instead_of_a_folder(tmp_path):
  (tmp_path / 'photo.jpg').write_bytes(b'')
  message = messages.message_of(
    image_folder.open_image_folder,
    tmp_path / 'photo.jpg',
    ('a',),
    ((0, 0, 0),),
  )
  assert 'or *.gif, got a file: ' in message
