import functools
import io
import os
import pathlib

import numpy as np
import PIL.Image
import pytest

from input_pipeline.sources import audit, class_counts, image_files, pairing
from runtime import errors
from tests.support import official

CLASSES = ('sky', 'road', 'car')


def write(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return path


def image_bytes(width, height, kind='JPEG', **options):
  rng = np.random.default_rng(width * height)
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  encoded = io.BytesIO()
  PIL.Image.fromarray(pixels).save(encoded, kind, **options)
  return encoded.getvalue()


def read_mask(path):
  """Reads gray masks of three classes; 255 is ignored, 9 is not allowed."""
  pixels = np.asarray(
    image_files.decode_image_file(path.read_bytes(), ('PNG',))
  ).astype(np.int16)
  if (pixels == 9).any():
    raise errors.UserError('value 9 is no class')
  return np.where(pixels == 255, -1, pixels)


READ = functools.partial(audit.read_image_example, read_mask=read_mask)


def run(sources, classes, read, *, problems=(), **options):
  """Audits sources, as a builder does."""
  counts, bad = audit.count_source_classes(sources, read, len(classes))
  return audit.conclude_audit(counts, [*problems, *bad], classes, **options)


def audit_images(listing, **options):
  """Audits images without masks."""
  return run(
    {'train': listing.examples},
    (),
    audit.read_image_example,
    problems=listing.problems,
    **options,
  )


def list_pairs(tmp_path):
  return pairing.list_image_examples(tmp_path / 'images', tmp_path / 'masks')


def make(tmp_path, **masks):
  """Writes images of 3x2 pixels with these masks, and lists them."""
  for name, rows in masks.items():
    write(tmp_path / f'images/{name}.jpg', image_bytes(3, 2))
    write(tmp_path / f'masks/{name}.png', official.gray_png(rows))
  return list_pairs(tmp_path)


def refused(listing, **options):
  """Returns the message of the error about these examples."""
  with pytest.raises(errors.UserError) as caught:
    run(
      {'train': listing.examples},
      CLASSES,
      READ,
      problems=listing.problems,
      **options,
    )
  message = str(caught.value)
  *others, last = message.splitlines()
  assert not others or ' files cannot be used; ' in last
  return message


GOOD = [[0, 0, 1], [1, 1, 255]]


def test_listing_pairs_relative_names_in_order(tmp_path):
  for name in ('b.JPG', 'a/c.jpeg', 'a/B.png', '.hidden.jpg', 'notes.txt'):
    write(tmp_path / 'images' / name, b'')
  for name in ('b.png', 'a/c.PNG', 'a/B.png', 'a/._c.png'):
    write(tmp_path / 'masks' / name, b'')
  listing = pairing.list_image_examples(
    tmp_path / 'images', tmp_path / 'masks', prefix='val/'
  )
  assert listing == pairing.Listing(
    (
      pairing.Example(
        'val/a/B', tmp_path / 'images/a/B.png', tmp_path / 'masks/a/B.png'
      ),
      pairing.Example(
        'val/a/c', tmp_path / 'images/a/c.jpeg', tmp_path / 'masks/a/c.PNG'
      ),
      pairing.Example(
        'val/b', tmp_path / 'images/b.JPG', tmp_path / 'masks/b.png'
      ),
    ),
    left_out=listing.left_out,
  )
  [notes] = listing.left_out
  assert notes.file == tmp_path / 'images/notes.txt'
  assert listing.summarize_left_out() == [
    '1 file is left out for an ending of neither images nor masks: '
    f'{tmp_path}/images/notes.txt'
  ]


def test_only_the_last_suffix_of_a_name_is_removed(tmp_path):
  for name in ('frame.1.jpg', 'frame.2.jpg'):
    write(tmp_path / name, b'')
  listing = pairing.list_image_examples(tmp_path)
  assert [example.id for example in listing.examples] == ['frame.1', 'frame.2']
  assert not listing.problems


def test_linked_folders_are_followed(tmp_path):
  write(tmp_path / 'elsewhere/x.jpg', b'')
  (tmp_path / 'images').mkdir()
  (tmp_path / 'images/link').symlink_to(tmp_path / 'elsewhere')
  listing = pairing.list_image_examples(tmp_path / 'images')
  assert [example.id for example in listing.examples] == ['link/x']


def test_counts_pixels_and_images_of_each_class(tmp_path):
  listing = make(tmp_path, a=GOOD, b=[[1, 1, 1], [1, 1, 1]])
  actual = run({'train': listing.examples}, CLASSES, READ)
  assert actual.counts == {
    'train': class_counts.ClassCounts(
      num_images=2, pixels=(2, 9, 0), images=(1, 2, 0), ignored=1
    )
  }
  assert actual.warnings == (
    "class 'car' occurs in no mask",
    "8.33% of the pixels are ignored and 'car' occurs nowhere: check that the "
    'ignored value does not stand for a class',
  )
  assert actual.skipped == ()


def test_report_is_a_table(tmp_path):
  listing = make(tmp_path, a=GOOD, b=[[1, 1, 1], [2, 2, 9]])
  actual = run(
    {'train': listing.examples[:1], 'val': listing.examples},
    CLASSES,
    READ,
    on_bad_example='skip',
  )
  table = (
    'train: 1 image',
    'val: 1 image',
    '',
    'class         train pixels   share    images       val pixels   share'
    '    images',
    'sky                      2  33.33%         1                2  33.33%'
    '         1',
    'road                     3  50.00%         1                3  50.00%'
    '         1',
    'car                      0   0.00%         0                0   0.00%'
    '         0',
    '(ignored)                1  16.67%                          1  16.67%',
    '',
    "warning: class 'car' occurs in no mask",
    "warning: 16.67% of the pixels are ignored and 'car' occurs nowhere: check "
    'that the ignored value does not stand for a class',
    '',
    '1 file is skipped:',
    f'  {tmp_path}/masks/b.png: value 9 is no class',
  )
  assert actual.report() == '\n'.join(table)


def test_a_split_without_masks_has_no_pixels_in_the_table():
  masked = class_counts.ClassCounts(
    num_images=2, pixels=(3, 0), images=(2, 0), ignored=1
  )
  tagged = class_counts.ClassCounts(num_images=5, pixels=(0, 0), images=(4, 1))
  ignored = class_counts.ClassCounts(
    num_images=1, pixels=(0, 0), images=(0, 0), ignored=6
  )
  actual = {'a': masked, 'b': tagged, 'c': ignored}
  assert audit.Audit(actual, ('sky', 'road')).report().splitlines()[4:] == [
    'class             a pixels   share    images           b images'
    '         c pixels   share    images',
    'sky                      3  75.00%         2                  4'
    '                0   0.00%         0',
    'road                     0   0.00%         0                  1'
    '                0   0.00%         0',
    '(ignored)                1  25.00%                             '
    '                6 100.00%',
  ]
  assert audit.Audit({'b': tagged}, ('sky', 'road')).report().splitlines() == [
    'b: 5 images',
    '',
    'class           b images',
    'sky                    4',
    'road                   1',
  ]


def test_images_without_masks_are_only_decoded(tmp_path):
  write(tmp_path / 'a.png', image_bytes(5, 4, 'PNG'))
  write(tmp_path / 'b.jpg', image_bytes(5, 4))
  listing = pairing.list_image_examples(tmp_path)
  actual = audit_images(listing)
  assert actual.counts == {'train': class_counts.ClassCounts(num_images=2)}
  assert actual.report() == 'train: 2 images'


def test_error_names_the_files_one_a_line(tmp_path):
  listing = make(tmp_path, a=GOOD, b=[[9, 0, 0]] * 2, c=[[9, 0, 0]] * 2)
  write(tmp_path / 'images/a.jpg', b'no image')
  assert refused(listing).splitlines() == [
    f'{tmp_path}/images/a.jpg: is no JPEG, PNG, TIFF, BMP, WEBP or GIF '
    'file, or its header is damaged',
    f'{tmp_path}/masks/b.png: value 9 is no class',
    f'{tmp_path}/masks/c.png: value 9 is no class',
    '3 files cannot be used; repair or remove them, or set '
    "on_bad_example='skip'",
  ]


def test_the_error_ends_with_the_remedy(tmp_path):
  listing = make(tmp_path, a=[[9, 0, 0]] * 2)
  assert refused(listing, remedy='get it again') == (
    f'{tmp_path}/masks/a.png: value 9 is no class; get it again'
  )


def test_skipped_files_are_reported(tmp_path):
  listing = make(tmp_path, a=GOOD, b=[[9, 0, 0]] * 2, c=GOOD)
  write(tmp_path / 'images/c.jpg', b'')
  actual = run(
    {'train': listing.examples}, CLASSES, READ, on_bad_example='skip'
  )
  assert actual.counts['train'].num_images == 1
  assert actual.counts['train'].pixels == (2, 3, 0)
  assert [problem.file.name for problem in actual.skipped] == ['c.jpg', 'b.png']


def test_a_split_without_usable_images_is_refused_even_with_skip(tmp_path):
  listing = make(tmp_path, a=[[9, 0, 0]] * 2)
  assert refused(listing, on_bad_example='skip') == (
    f"no image of split 'train' is usable; {tmp_path}/masks/a.png: value 9 is "
    'no class; repair them'
  )


def test_unknown_policy_is_refused(tmp_path):
  message = refused(make(tmp_path, a=GOOD), on_bad_example='ignore')
  assert message == (
    "on_bad_example: expected one of ('error', 'skip'), got 'ignore'"
  )


def test_a_size_mismatch_is_reported_with_both_sizes(tmp_path):
  listing = make(tmp_path, a=[[0, 0], [0, 0], [0, 0]])
  assert refused(listing).startswith(
    f'{tmp_path}/masks/a.png: expected a mask of 3x2 pixels as its image, got '
    '2x3; repair or '
  )


def test_a_size_mismatch_by_exif_rotation_is_explained(tmp_path):
  listing = make(tmp_path, a=[[0, 0], [0, 0], [0, 0]])
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # Turned by 90 degrees.
  write(tmp_path / 'images/a.jpg', image_bytes(3, 2, exif=exif))
  assert refused(listing).startswith(
    f'{tmp_path}/masks/a.png: expected a mask of 3x2 pixels as its image, got '
    '2x3; the rotation in the EXIF tag of the image is not applied: '
    'set follow_exif=True; '
  )


def refused_besides(tmp_path, name):
  """Returns the message about all images but one, which is listed."""
  listing = list_pairs(tmp_path)
  assert [example.id for example in listing.examples] == [name]
  return refused(listing)


def test_missing_mask_is_a_problem(tmp_path):
  make(tmp_path, a=GOOD)
  write(tmp_path / 'images/x/b.jpg', image_bytes(3, 2))
  assert refused_besides(tmp_path, 'a') == (
    f'{tmp_path}/images/x/b.jpg: has no mask {tmp_path}/masks/x/b.png; repair '
    "or remove them, or set on_bad_example='skip'"
  )


def test_mask_without_image_is_a_warning(tmp_path):
  make(tmp_path, a=GOOD)
  write(tmp_path / 'masks/b.png', official.gray_png(GOOD))
  listing = list_pairs(tmp_path)
  assert listing.warnings == (
    f'{tmp_path}/masks/b.png: a mask without an image',
  )
  assert not listing.problems


def test_two_files_of_one_id_are_both_problems(tmp_path):
  make(tmp_path, a=GOOD, b=GOOD)
  write(tmp_path / 'images/a.png', image_bytes(3, 2, 'PNG'))
  assert refused_besides(tmp_path, 'b').splitlines()[:2] == [
    f"{tmp_path}/images/a.jpg: a.jpg and a.png have the same id 'a': "
    'rename one of them',
    f"{tmp_path}/images/a.png: a.jpg and a.png have the same id 'a': "
    'rename one of them',
  ]


def test_two_masks_of_one_id_are_problems(tmp_path):
  make(tmp_path, a=GOOD)
  write(tmp_path / 'masks/a.PNG', official.gray_png(GOOD))
  listing = list_pairs(tmp_path)
  assert "a.PNG and a.png have the same id 'a'" in refused(listing)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('part', [0.3, 0.6, 0.9])
def test_a_truncated_image_is_refused(tmp_path, kind, part):
  data = image_bytes(61, 47, kind)
  listing = make(tmp_path, a=GOOD)
  write(tmp_path / 'images/a.jpg', data[: int(part * len(data))])
  assert 'images/a.jpg: cannot be decoded' in refused(listing)


def test_a_jpeg_without_its_last_byte_is_refused(tmp_path):
  listing = make(tmp_path, a=GOOD)
  write(tmp_path / 'images/a.jpg', image_bytes(61, 47)[:-1])
  assert 'images/a.jpg: cannot be decoded' in refused(listing)


def test_a_jpeg_padded_with_zeros_is_refused(tmp_path):
  data = image_bytes(61, 47)
  half = len(data) // 2
  listing = make(tmp_path, a=GOOD)
  write(tmp_path / 'images/a.jpg', data[:half] + bytes(len(data) - half))
  assert refused(listing).startswith(
    f'{tmp_path}/images/a.jpg: cannot be decoded: the JPEG has no end, '
    'truncated?'
  )


def test_bytes_after_the_end_of_a_jpeg_are_accepted(tmp_path):
  write(tmp_path / 'a.jpg', image_bytes(3, 2) + b'trailer of a camera')
  actual = audit_images(pairing.list_image_examples(tmp_path))
  assert actual.counts['train'].num_images == 1


@pytest.mark.parametrize(
  'mode', ['L', 'CMYK', 'RGB', 'P', 'RGBA', 'LA', 'I;16']
)
def test_images_of_every_mode_are_accepted(tmp_path, mode):
  kind = 'JPEG' if mode == 'CMYK' else 'PNG'
  pixels = PIL.Image.new(mode, (3, 2))
  pixels.save(tmp_path / 'a.jpg', kind)
  actual = audit_images(pairing.list_image_examples(tmp_path))
  assert actual.counts['train'].num_images == 1


def test_other_formats_are_refused(tmp_path):
  write(tmp_path / 'a.jpg', image_bytes(3, 2, 'PPM'))
  listing = pairing.list_image_examples(tmp_path)
  assert 'a.jpg: is no JPEG, PNG, TIFF, BMP,' in refused(listing)


def test_a_mask_that_is_not_a_png_is_refused(tmp_path):
  listing = make(tmp_path, a=GOOD)
  write(tmp_path / 'masks/a.png', image_bytes(3, 2))
  assert 'masks/a.png: is no PNG file' in refused(listing)


def test_a_truncated_mask_is_refused(tmp_path):
  listing = make(tmp_path, a=GOOD)
  write(tmp_path / 'masks/a.png', official.gray_png(GOOD)[:50])
  assert 'masks/a.png: cannot be decoded' in refused(listing)


def test_a_file_that_vanished_is_reported(tmp_path):
  listing = make(tmp_path, a=GOOD)
  (tmp_path / 'images/a.jpg').unlink()
  assert refused(listing).startswith(
    f'{tmp_path}/images/a.jpg: cannot be read: No such file or directory; '
  )


def test_empty_and_missing_folders_are_refused(tmp_path):
  with pytest.raises(errors.UserError) as caught:
    pairing.list_image_examples(tmp_path)
  assert str(caught.value) == (
    f'{tmp_path}: expected images (*.jpg, *.jpeg, *.png, *.tif, *.tiff, *.bmp, '
    '*.webp or *.gif), got none'
  )
  write(tmp_path / 'images/a.jpg', b'')
  with pytest.raises(errors.UserError) as caught:
    list_pairs(tmp_path)
  assert str(caught.value) == (
    f'{tmp_path}/masks: expected a folder of *.png, *.tif, *.tiff, *.bmp or '
    f'*.gif, got no such folder; {tmp_path} holds the folders images'
  )


def test_messages_are_one_line_even_if_a_file_name_is_not(tmp_path):
  write(tmp_path / 'two\nlines.jpg', b'')
  listing = pairing.list_image_examples(tmp_path)
  assert f'{tmp_path}/two lines.jpg: is no JPEG, PNG,' in refused(listing)


def test_names_that_are_not_utf8_are_problems(tmp_path):
  try:
    write(pathlib.Path(os.fsdecode(bytes(tmp_path) + b'/\xff.jpg')), b'')
  except OSError:
    pytest.skip('this file system has no names that are not UTF-8')
  message = refused(pairing.list_image_examples(tmp_path))
  assert message.startswith(
    f'{tmp_path}/\\udcff.jpg: its name is not UTF-8: rename it; '
  )
  message.encode()  # Can be printed.
