"""Images find their masks, or the message names the file that stands there."""

import unicodedata

import pytest

from input_pipeline.sources import pairing
from tests.support import messages, scenes

IDS = list(scenes.NAMES)


def touch(folder, *names):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'')


def pairs(folder, images='images', masks='masks', **options):
  """Returns the names of the masks by the ids; there must be no problem."""
  listing = pairing.list_image_examples(
    folder / images, folder / masks, **options
  )
  assert listing.problems == ()
  return {
    example.id: example.mask and example.mask.name
    for example in listing.examples
  }


def problems(folder, **options):
  listing = pairing.list_image_examples(
    folder / 'images', folder / 'masks', **options
  )
  return [str(problem) for problem in listing.problems]


def named(**names):
  """Writes scenes whose masks have other names."""

  def mask(i):
    return names.get(f's{i:02}', names['other']), scenes.encoded(scenes.ids(i))

  return mask


# Masks with an ending of their own.


def test_masks_with_an_ending_are_refused_with_the_option(tmp_path):
  source = scenes.write(tmp_path / 's', mask=named(other='_mask.png'))
  lines = messages.message_of(scenes.check, source).splitlines()
  assert lines[6].startswith('6 files cannot be used; ')
  assert lines[0] == (
    f'{source}/images/s00.png: has no mask {source}/masks/s00.png; '
    f'{source}/masks/s00_mask.png stands there: set mask_suffix=_mask.png'
  )
  assert len(lines) == 7


@pytest.mark.parametrize('suffix', ['_mask.png', '_mask', '_mask.PNG'])
def test_masks_with_an_ending_are_paired_by_the_option(tmp_path, suffix):
  source = scenes.write(tmp_path / 's', mask=named(other='_mask.png'))
  assert scenes.counts(source, mask_suffix=suffix) == scenes.COUNTS
  assert scenes.run_check(source, f'--mask_suffix={suffix}') == 0


def test_masks_with_an_ending_are_never_taken_for_missing(tmp_path):
  source = scenes.write(
    tmp_path / 's', mask=named(other='.png', s01='_mask.png', s04='-seg.png')
  )
  message = messages.message_of(scenes.check, source, without_mask='unlabeled')
  assert [
    line.rpartition('stands there: ')[2] for line in message.splitlines()[:2]
  ] == [
    'set mask_suffix=_mask.png',
    'set mask_suffix=-seg.png',
  ]


def test_images_and_masks_of_one_folder(tmp_path):
  """The folders that Roboflow exports."""
  for i, name in enumerate(IDS):
    touch(tmp_path / 'train', f'{name}.jpg', f'{name}_mask.png')
    (tmp_path / 'train' / f'{name}.jpg').write_bytes(
      scenes.encoded(scenes.pixels(i))
    )
    (tmp_path / 'train' / f'{name}_mask.png').write_bytes(
      scenes.encoded(scenes.ids(i))
    )
  (tmp_path / 'train/_classes.csv').write_text(
    'Pixel Value, Class\n0, background\n1, red\n2, blue\n'
  )
  options = {'images': 'train', 'masks': 'train'}
  options |= {'classes': 'train/_classes.csv', 'mask_suffix': '_mask.png'}
  arguments = [f'--{name}={value}' for name, value in options.items()]
  assert scenes.run_check(tmp_path, *arguments) == 0
  listing = pairing.list_image_examples(
    tmp_path / 'train',
    tmp_path / 'train',
    endings=pairing.Endings(mask='_mask.png'),
  )
  assert [example.id for example in listing.examples] == IDS
  assert listing.warnings == ()
  assert [each.file.name for each in listing.left_out] == ['_classes.csv'] * 2


def test_another_ending_than_the_given_one_is_named(tmp_path):
  touch(tmp_path / 'images', 'a.jpg')
  touch(tmp_path / 'masks', 'a_mask.png')
  [problem] = problems(tmp_path, endings=pairing.Endings(mask='_label.png'))
  assert problem.endswith(
    'a_mask.png stands there: expected the ending _label.png, or set '
    'mask_suffix=_mask.png'
  )


def test_links_to_a_folder_that_contains_them_are_left_out(tmp_path):
  touch(tmp_path, 'a.jpg')
  (tmp_path / 'loop').symlink_to(tmp_path)
  listing = pairing.list_image_examples(tmp_path)
  assert [example.id for example in listing.examples] == ['a']
  assert listing.summarize_left_out() == [
    '1 file is left out for an ending of neither images nor masks, or as a '
    f'link to a folder that contains it: {tmp_path}/loop'
  ]


CITYSCAPES = {
  'image_suffix': '_leftImg8bit.png',
  'mask_suffix': '_gtFine_labelIds.png',
}


def write_cityscapes(folder, kinds=('labelIds', 'color', 'instanceIds')):
  for i in range(3):
    name = f'aachen/aachen_000_{i:03}'
    touch(folder / 'images', f'{name}_leftImg8bit.png')
    for kind in kinds:
      touch(folder / 'masks', f'{name}_gtFine_{kind}.png')


def test_endings_of_cityscapes(tmp_path):
  write_cityscapes(tmp_path)
  assert pairs(tmp_path, endings=pairing.Endings(*CITYSCAPES.values())) == {
    f'aachen/aachen_000_{i:03}': f'aachen_000_{i:03}_gtFine_labelIds.png'
    for i in range(3)
  }
  [first, *others] = problems(tmp_path)
  assert first == (
    f'{tmp_path}/images/aachen/aachen_000_000_leftImg8bit.png: has no mask '
    f'{tmp_path}/masks/aachen/aachen_000_000_leftImg8bit.png; '
    f'{tmp_path}/masks/aachen/aachen_000_000_gtFine_labelIds.png stands there: '
    'set mask_suffix=_gtFine_labelIds.png and image_suffix=_leftImg8bit.png'
  )
  assert len(others) == 2


def test_lists_of_images_with_an_ending(tmp_path):
  from input_pipeline import splits
  from input_pipeline.sources import image_ids

  path = tmp_path / 'list.txt'
  path.write_text('images/s01_rgb.jpg\ns02_rgb\ns03\n')
  rule = image_ids.IdRule(f'{tmp_path}/images', '_rgb.jpg')
  assert splits.read_image_list(str(path), IDS, rule).tolist() == [1, 2, 3]


# Masks of other kinds.


def tiff(i):
  return '.tif', scenes.encoded(scenes.ids(i), 'TIFF')


def test_tiff_masks_are_paired(tmp_path):
  source = scenes.write(tmp_path / 's', mask=tiff)
  assert scenes.counts(source) == scenes.COUNTS


def test_tiff_beside_png_leaves_no_image_unlabeled(tmp_path):
  source = scenes.write(
    tmp_path / 's',
    mask=lambda i: (
      tiff(i) if i % 2 else ('.png', scenes.encoded(scenes.ids(i)))
    ),
  )
  audit = scenes.check(source, without_mask='unlabeled')
  assert [*audit.counts] == ['train']
  assert list(audit.counts['train'].pixels) == scenes.COUNTS


@pytest.mark.parametrize('without_mask', ['error', 'unlabeled'])
def test_a_mask_of_a_kind_that_cannot_be_read_is_named(tmp_path, without_mask):
  touch(tmp_path, 'images/a.jpg', 'images/b.jpg', 'masks/b.png', 'masks/a.npy')
  assert problems(tmp_path, without_mask=without_mask) == [
    f'{tmp_path}/images/a.jpg: has no mask {tmp_path}/masks/a.png; '
    f'{tmp_path}/masks/a.npy stands there: save it as one of *.png, *.tif, '
    '*.tiff, *.bmp or *.gif'
  ]


# Names.


def test_unicode_forms_are_one_name(tmp_path):
  composed, decomposed = (
    unicodedata.normalize(form, 'Straße_é/ö') for form in ('NFC', 'NFD')
  )
  touch(tmp_path, f'images/{decomposed}.JPG', f'masks/{composed}.PNG')
  assert pairs(tmp_path) == {composed: 'ö.PNG'}
  touch(tmp_path, f'images/{composed}.jpg')
  assert [line.partition(': ')[2] for line in problems(tmp_path)] == [
    f'{unicodedata.normalize("NFD", "ö")}.JPG and ö.jpg have the same id '
    f'{composed!r}: rename one of them'
  ] * 2
  touch(tmp_path, f'masks/{decomposed}.PNG', 'images/b.jpg', 'masks/b.png')
  (tmp_path / f'images/{composed}.jpg').unlink()
  assert problems(tmp_path)[0].endswith(
    ', as they differ only in the Unicode form: rename one of them'
  )


def test_upper_case_in_names_is_named(tmp_path):
  touch(tmp_path, 'images/S00.jpg', 'images/b.jpg')
  touch(tmp_path, 'masks/s00.png', 'masks/b.png')
  for without_mask in ('error', 'unlabeled'):
    [line] = problems(tmp_path, without_mask=without_mask)
    assert line.endswith(
      'masks/s00.png stands there: names must agree in upper and lower case'
    )


def test_numbered_names_are_not_taken_for_masks_of_others(tmp_path):
  touch(tmp_path, *(f'images/a_{i}.jpg' for i in range(9)))
  touch(tmp_path, 'masks/a_0.png', 'masks/a_77.png')
  assert pairs(tmp_path, without_mask='unlabeled') == {
    'a_0': 'a_0.png',
    **{f'a_{i}': None for i in range(1, 9)},
  }
  assert [
    line.partition(': ')[2].partition(';')[0] for line in problems(tmp_path)
  ] == [f'has no mask {tmp_path}/masks/a_{i}.png' for i in range(1, 9)]


def test_masks_of_which_none_has_the_name_of_an_image_are_refused(tmp_path):
  touch(tmp_path, 'images/a.jpg', 'images/b.jpg', 'masks/1.png', 'masks/2.png')
  message = messages.message_of(
    pairing.list_image_examples,
    tmp_path / 'images',
    tmp_path / 'masks',
    without_mask='unlabeled',
  )
  assert message.startswith(
    'masks: expected masks with the names of the images, as of '
    f'{tmp_path}/images/a.jpg, got 2 others, as {tmp_path}/masks/1.png: '
  )


def test_many_masks_without_an_image_are_counted(tmp_path):
  touch(tmp_path, 'images/a.jpg', 'masks/a.png')
  touch(tmp_path / 'masks', *(f'x{i:02}.png' for i in range(30)))
  listing = pairing.list_image_examples(tmp_path / 'images', tmp_path / 'masks')
  assert len(listing.warnings) == 11
  assert listing.warnings[-1] == '20 more masks are without an image'


def test_a_file_instead_of_a_folder_is_named(tmp_path):
  touch(tmp_path, 'photo.jpg', 'photos/a.jpg')
  message = messages.message_of(
    pairing.list_image_examples, tmp_path / 'photo.jpg'
  )
  assert message.endswith('got a file: give the folder that holds it')
  message = messages.message_of(pairing.list_image_examples, tmp_path / 'photo')
  assert message.endswith(
    f'got no such folder; {tmp_path} holds the folders photos'
  )


def test_an_ending_that_no_file_has(tmp_path):
  touch(tmp_path, 'images/a.jpg')
  assert messages.message_of(
    pairing.list_image_examples,
    tmp_path / 'images',
    endings=pairing.Endings('_rgb.png'),
  ) == (
    f'{tmp_path}/images: expected images (*_rgb.png), got none; it holds '
    'a.jpg, …'
  )
  assert messages.message_of(pairing.Endings, 'sub/_rgb.png') == (
    'image_suffix: expected the end of a file name, as _mask.png, got '
    "'sub/_rgb.png'"
  )
