import dataclasses
import os
import pickle
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

from input_pipeline import datasets
from input_pipeline.builders import folders
from input_pipeline.sources import file_digests, masks, records
from tests.input_pipeline.builders.support import (
  DECODERS,
  ids,
  prepared,
  write_image,
)
from tests.support import messages

LABEL_DECODERS = {**DECODERS, 'label': tfds.decode.SkipDecoding()}

CLASS_LIST = 'sky 70,130,180\nmain road #804080\ncar 0,0,142\n'
SKY, ROAD, CAR = (70, 130, 180), (128, 64, 128), (0, 0, 142)
VOID = (255, 255, 255)

# Values in the file, 5 rows of 3 pixels, and the class ids they mean.
VALUES = ((0, 0, 1), (1, 2, 2), (255, 255, 0), (2, 1, 0), (1, 1, 255))
IDS = ((0, 0, 1), (1, 2, 2), (-1, -1, 0), (2, 1, 0), (1, 1, -1))
COLORS = (
  (SKY, SKY, ROAD),
  (ROAD, CAR, CAR),
  (VOID, VOID, SKY),
  (CAR, ROAD, SKY),
  (ROAD, ROAD, VOID),
)


def palette_mask(path):
  image = PIL.Image.fromarray(np.array(VALUES, np.uint8), 'L')
  colors = np.zeros((256, 3), np.uint8)
  colors[[0, 1, 2, 255]] = SKY, ROAD, CAR, VOID
  image.putpalette(colors.tobytes())
  assert image.mode == 'P'
  image.save(path)


def gray_mask(path):
  PIL.Image.fromarray(np.array(VALUES, np.uint8)).save(path)


def gray16_mask(path):
  PIL.Image.fromarray(np.array(VALUES, np.uint16)).save(path)
  assert PIL.Image.open(path).mode == 'I;16'


def rgb_mask(path):
  PIL.Image.fromarray(np.array(COLORS, np.uint8)).save(path)


def rgba_mask(path):
  opaque = np.full((5, 3, 1), 255, np.uint8)
  pixels = np.concatenate([np.array(COLORS, np.uint8), opaque], axis=-1)
  PIL.Image.fromarray(pixels).save(path)


def make(source, names=('a',), write_mask=gray_mask, class_list=CLASS_LIST):
  """Writes images and masks; returns the options, without `ignore`."""
  (source / 'masks').mkdir(parents=True)
  (source / 'classes.txt').write_text(class_list, 'utf-8')
  for name in names:
    write_image(source / f'images/{name}.jpg')
    write_mask(source / f'masks/{name}.png')
  return {
    'source': str(source),
    'images': 'images',
    'masks': 'masks',
    'classes': 'classes.txt',
  }


def mask_folder(tmp_path, **options):
  return folders.ImageMaskFolder(
    folders.ImageMaskFolderOptions(**options), data_dir=tmp_path / 'prepared'
  )


def labels(builder, split='train'):
  """Returns the class ids of each example, by id."""
  source = builder.as_data_source(split, decoders=LABEL_DECODERS)
  return {
    record['id'].decode(): records.decode_record_label(record['label']).tolist()
    for record in source
  }


@pytest.mark.parametrize(
  ('write_mask', 'ignore'),
  [
    (palette_mask, 255),
    (gray_mask, 255),
    (gray16_mask, 255),
    (rgb_mask, VOID),
    (rgba_mask, VOID),
  ],
)
def test_masks_of_every_kind_are_prepared_pixel_by_pixel(
  tmp_path, write_mask, ignore
):
  options = make(tmp_path / 'roads', ['a'], write_mask)
  builder = prepared(mask_folder(tmp_path, **options, ignore=ignore))
  assert labels(builder) == {'a': [list(row) for row in IDS]}
  [record] = builder.as_data_source('train', decoders=LABEL_DECODERS)
  assert record['image'] == (tmp_path / 'roads/images/a.jpg').read_bytes()
  assert list(record['tags']) == [0, 1, 2]
  assert builder.schema() == records.Schema(
    ('sky', 'main road', 'car'), (SKY, ROAD, CAR), labels=True, tags=True
  )


@pytest.mark.parametrize('label', [None, np.array(IDS, np.int16)])
def test_records_are_encoded_as_by_tfds(tmp_path, label):
  options = make(tmp_path / 'roads')
  builder = mask_folder(tmp_path, **options, ignore=255)
  sample = records.Sample('a/ä', b'jpeg', np.zeros((5, 4, 3)), label, [0, 2])
  for tags in ([0, 2], []):
    sample = dataclasses.replace(sample, tags=tags)
    png = b'' if label is None else records.encode_record_label(label, 3)
    fields = {'image': b'jpeg', 'id': 'a/ä', 'label': png, 'tags': tags}
    features = builder.info.features
    example = example_serializer.ExampleSerializer(
      features.get_serialized_info()
    ).get_tf_example(features.encode_example(fields))
    expected = example.SerializeToString(deterministic=True)
    assert builder.encode(sample) == expected


def test_palettes_are_those_of_values_that_occur(tmp_path):
  options = make(tmp_path / 'roads', ['a'], palette_mask, 'sky\nroad\ncar\n')
  builder = mask_folder(tmp_path, **options, ignore=255)
  [source] = builder.sources()['train']
  sample = builder.read_sample(source)
  palette = PIL.Image.open(source.mask).getpalette()
  assert dict(sample.traits.palette) == {
    i: masks.encode_mask_color(tuple(palette[3 * i : 3 * i + 3]))
    for i in sample.tags
  }
  expected = [int((sample.label == i).sum()) for i in range(3)]
  assert sample.class_pixels.tolist() == expected


def test_more_classes_than_8_bits_are_stored_in_16(tmp_path):
  values = [[0, 299], [254, 255], [256, 65535]]

  def write_mask(path):
    PIL.Image.fromarray(np.array(values, np.uint16)).save(path)

  class_list = '\n'.join(f'class {i}' for i in range(300))
  options = make(tmp_path / 'many', ['a'], write_mask, class_list)
  write_image(tmp_path / 'many/images/a.jpg', 2, 3)
  builder = prepared(mask_folder(tmp_path, **options, ignore=65535))
  assert labels(builder) == {'a': [[0, 299], [254, 255], [256, -1]]}


def test_an_ignored_line_of_the_list_is_not_a_class(tmp_path):
  def write_mask(path):
    pixels = np.array([[0, 1, 2]] * 5, np.uint8)
    PIL.Image.fromarray(pixels).save(path)

  options = make(tmp_path / 'roads', ['a'], write_mask)
  builder = prepared(mask_folder(tmp_path, **options, ignore=0))
  assert labels(builder) == {'a': [[-1, 0, 1]] * 5}
  assert builder.schema().classes == ('main road', 'car')
  assert builder.schema().palette == (ROAD, CAR)


def test_an_unknown_value_is_reported_with_file_count_and_allowed_values(
  tmp_path,
):
  options = make(tmp_path / 'roads', ['a', 'b'])
  builder = mask_folder(tmp_path, **options)
  assert messages.message_of(builder.check) == (
    f'{tmp_path}/roads/masks/a.png: expected values 0…2, got 255 (3 pixels)\n'
    f'{tmp_path}/roads/masks/b.png: expected values 0…2, got 255 (3 pixels)\n'
    '2 files cannot be used; repair or remove them, or set '
    "on_bad_example='skip'"
  )


def test_unknown_values_beside_an_ignored_line(tmp_path):
  options = make(tmp_path / 'roads')
  builder = mask_folder(tmp_path, **options, ignore=1)
  assert (
    'expected values 0, 2, 1 (ignored), got 255 (3 pixels); '
  ) in messages.message_of(builder.check)


def test_unknown_colors_are_named(tmp_path):
  class_list = CLASS_LIST.replace('0,0,142', '0,0,143')
  options = make(tmp_path / 'roads', ['a'], rgb_mask, class_list)
  builder = mask_folder(tmp_path, **options)
  assert messages.message_of(builder.check).startswith(
    f"{tmp_path}/roads/masks/a.png: expected colors 70,130,180 'sky', "
    "128,64,128 'main road', 0,0,143 'car', got 0,0,142 (3 pixels; the most "
    'frequent of 2 such colors); '
  )


def test_rgb_mask_without_a_color_table_is_refused(tmp_path):
  options = make(tmp_path / 'roads', ['a'], rgb_mask, 'sky\nroad\ncar\n')
  builder = mask_folder(tmp_path, **options)
  assert (
    'masks/a.png: expected values, as the class list has no colors, got an RGB '
    'mask: write the lines of the list as `name R,G,B`, or save the mask with '
    'a palette; '
  ) in messages.message_of(builder.check)


def test_a_refused_data_set_leaves_no_file(tmp_path):
  options = make(tmp_path / 'roads')
  builder = mask_folder(tmp_path, **options)
  assert 'got 255' in messages.message_of(builder.download_and_prepare)
  left = [path for path in (tmp_path / 'prepared').rglob('*') if path.is_file()]
  assert not left


def test_skipped_files_are_not_prepared(tmp_path):
  options = make(tmp_path / 'roads', ['a', 'b', 'c'])
  (tmp_path / 'roads/images/b.jpg').write_bytes(b'')
  (tmp_path / 'roads/masks/c.png').unlink()
  builder = mask_folder(tmp_path, **options, ignore=255, on_bad_example='skip')
  assert ids(prepared(builder)) == ['a']
  assert [problem.file.name for problem in builder.check()[0].skipped] == [
    'b.jpg',
    'c.jpg',
  ]


def test_images_without_a_mask_become_a_split_on_request(tmp_path):
  options = make(tmp_path / 'roads', [f'{i:02}' for i in range(12)])
  for i in range(5, 12):
    (tmp_path / f'roads/masks/{i:02}.png').unlink()
  options |= {'ignore': 255, 'val_fraction': 0.4}
  message = messages.message_of(mask_folder(tmp_path, **options).check)
  assert "without_mask='unlabeled'" in message
  options = datasets.DataOptions(
    *('image_mask_folder', str(tmp_path / 'roads'), 'images', 'masks'),
    *('classes.txt', '255', 'unlabeled', 0.4),
  )
  actual = {
    split: datasets.open_dataset_split(
      options, split, str(tmp_path / 'prepared')
    )
    for split in ('train', 'val', 'unlabeled')
  }
  assert actual['unlabeled'].ids() == [f'{i:02}' for i in range(5, 12)]
  assert actual['unlabeled'].label_kinds == ()
  # Val is cut from those that have masks.
  assert sorted([*actual['train'].ids(), *actual['val'].ids()]) == [
    f'{i:02}' for i in range(5)
  ]
  assert actual['train'].label_kinds == ('label', 'tags')


def test_no_unlabeled_split_if_every_image_has_a_mask(tmp_path):
  options = make(tmp_path / 'roads', ['a', 'b'])
  actual = mask_folder(tmp_path, **options, without_mask='unlabeled')
  assert set(actual.sources()) == {'train'}
  assert actual.missing_labels() == {}


def test_a_folder_named_unlabeled_is_refused_with_unlabeled_images(tmp_path):
  options = make(tmp_path / 'roads', [])
  write_image(tmp_path / 'roads/images/unlabeled/x.jpg')
  (tmp_path / 'roads/masks/unlabeled').mkdir()
  options |= {'images': 'images/{split}', 'masks': 'masks/{split}'}
  message = messages.message_of(
    mask_folder, tmp_path, **options, without_mask='unlabeled'
  )
  assert message == (
    'without_mask=unlabeled: expected no folder of this name at {split}, got '
    'one: rename it'
  )


def test_splits_of_masks_in_folders(tmp_path):
  options = make(tmp_path / 'roads', [])
  for split in ('train', 'val'):
    write_image(tmp_path / f'roads/images/{split}/x.jpg')
    (tmp_path / f'roads/masks/{split}').mkdir()
    gray_mask(tmp_path / f'roads/masks/{split}/x.png')
  options |= {'images': 'images/{split}', 'masks': 'masks/{split}'}
  builder = prepared(mask_folder(tmp_path, **options, ignore=255))
  assert labels(builder, 'val') == {'val/x': [list(row) for row in IDS]}
  # Masks of a split are not left out without a word.
  shutil.rmtree(tmp_path / 'roads/images/val')
  builder = mask_folder(tmp_path, **options, ignore=255)
  assert [*builder.sources()] == ['train']
  assert (
    f'{tmp_path}/roads/masks/val: masks of a split without a folder of images'
  ) in builder.warnings()


def test_a_changed_folder_is_another_config(tmp_path):
  source = tmp_path / 'my roads'
  options = make(source, ['a', 'b'])

  def name(**changes):
    builder = mask_folder(tmp_path, **{**options, 'ignore': 255, **changes})
    return builder.builder_config.name

  first = name()
  assert name() == first
  names = {first, name(on_bad_example='skip'), name(split_seed=1)}
  assert len(names) == 3

  pixels = np.array(VALUES, np.uint8)
  pixels[0, 0] = 2  # Of the same size in bytes, and another content.
  PIL.Image.fromarray(pixels).save(source / 'masks/a.png')
  names.add(name())
  assert len(names) == 4
  write_image(source / 'images/a.jpg', 4, 5)
  names.add(name())
  assert len(names) == 5
  (source / 'classes.txt').write_text(CLASS_LIST.replace('car', 'cart'))
  names.add(name())
  assert len(names) == 6
  (source / 'images/b.jpg').rename(source / 'images/c.jpg')
  (source / 'masks/b.png').rename(source / 'masks/c.png')
  names.add(name())
  assert len(names) == 7


def test_the_time_of_a_file_and_the_spelling_of_a_path_are_no_setting(
  tmp_path, monkeypatch
):
  options = make(tmp_path / 'roads', ['a', 'b'])

  def name(source):
    builder = mask_folder(
      tmp_path, **{**options, 'source': str(source), 'ignore': 255}
    )
    return builder.builder_config.name

  first = name(tmp_path / 'roads')
  os.utime(tmp_path / 'roads/masks/a.png', ns=(1, 1))
  # Copied without its times, renamed, and linked.
  shutil.copytree(
    tmp_path / 'roads', tmp_path / 'copy', copy_function=shutil.copyfile
  )
  (tmp_path / 'link').symlink_to(tmp_path / 'roads')
  monkeypatch.chdir(tmp_path)
  names = {
    name(source)
    for source in (
      'roads',
      'roads/',
      './roads/../roads',
      f'{tmp_path}//roads',
      'link',
      tmp_path / 'copy',
    )
  }
  assert names == {first}
  (tmp_path / 'roads/images/a.jpg').rename(tmp_path / 'roads/images/a.JPG')
  assert name('roads') == first


def test_a_changed_folder_is_prepared_again_and_a_moved_one_is_not(tmp_path):
  options = make(tmp_path / 'here/roads')
  write_image(tmp_path / 'here/roads/images/without_mask.jpg')
  options['on_bad_example'] = 'skip'
  first = prepared(mask_folder(tmp_path, **options, ignore=255))
  shutil.move(tmp_path / 'here', tmp_path / 'there')
  options['source'] = str(tmp_path / 'there/roads')
  moved = mask_folder(tmp_path, **options, ignore=255)
  assert moved.data_dir == first.data_dir
  assert ids(moved) == ['a']

  write_image(tmp_path / 'there/roads/images/b.jpg')
  gray_mask(tmp_path / 'there/roads/masks/b.png')
  changed = prepared(mask_folder(tmp_path, **options, ignore=255))
  assert ids(changed) == ['a', 'b']
  assert ids(first) == ['a']


def test_files_are_read_for_their_digests_once(tmp_path, monkeypatch):
  options = make(tmp_path / 'roads')
  prepared(mask_folder(tmp_path, **options, ignore=255))
  read = []
  monkeypatch.setattr(
    file_digests, '_digest_file', lambda path, *_: read.append(path) or 'x'
  )
  mask_folder(tmp_path, **options, ignore=255)
  assert not read
  shutil.move(tmp_path / 'roads', tmp_path / 'moved')
  mask_folder(
    tmp_path, **{**options, 'source': str(tmp_path / 'moved')}, ignore=255
  )
  assert len(read) == 2


def test_other_processes_need_the_records_only(tmp_path):
  options = make(tmp_path / 'roads')
  builder = prepared(mask_folder(tmp_path, **options, ignore=255))
  source = builder.as_data_source('train', decoders=LABEL_DECODERS)
  sent = pickle.dumps((builder, source))
  shutil.rmtree(tmp_path / 'roads')
  builder, source = pickle.loads(sent)
  assert labels(builder) == {'a': [list(row) for row in IDS]}
  assert source[0]['id'] == b'a'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'source': '{0}/no'},
      'source: expected the folder of the images, got {0}/no, which does not '
      'exist',
    ),
    (
      {'masks': 'no'},
      '{0}/roads/no: expected a folder of *.png, *.tif, *.tiff, *.bmp or '
      '*.gif, got no such folder; {0}/roads holds the folders images, masks',
    ),
    (
      {'images': 'no/{{split}}', 'masks': 'masks/{{split}}'},
      'images: expected a folder {0}/roads/no/{{split}} for each split, got '
      'none',
    ),
    (
      {'images': 'images/{{split}}', 'masks': 'masks/{{split}}'},
      'images: expected splits named with letters, digits and _, and not '
      "'all', got the folder {0}/roads/images/a b",
    ),
    (
      {'classes': 'no.txt'},
      'classes: cannot read {0}/roads/no.txt: No such file or directory: give '
      'a text file with a class per line',
    ),
  ],
)
def test_missing_files_are_refused(tmp_path, changes, message):
  options = make(tmp_path / 'roads')
  (tmp_path / 'roads/images/a b').mkdir()
  changes = {key: value.format(tmp_path) for key, value in changes.items()}
  actual = messages.message_of(mask_folder, tmp_path, **{**options, **changes})
  assert actual == message.format(tmp_path)
