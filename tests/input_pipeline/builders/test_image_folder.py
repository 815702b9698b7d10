"""Folders of images alone: ids, splits in folders and at random."""

import hashlib

from input_pipeline.builders import folders
from input_pipeline.sources import records
from tests.input_pipeline.builders.support import (
  DECODERS,
  ids,
  prepared,
  write_image,
)
from tests.support import messages


def image_folder(tmp_path, **options):
  return folders.ImageFolder(
    folders.ImageFolderOptions(**options), data_dir=tmp_path / 'prepared'
  )


def test_image_folder_has_images_and_relative_ids(tmp_path):
  for name in ('b.PNG', 'a.jpeg', 'sub/c.JPG'):
    write_image(tmp_path / 'photos' / name)
  builder = prepared(image_folder(tmp_path, source=str(tmp_path / 'photos')))
  assert ids(builder) == ['a', 'b', 'sub/c']
  source = builder.as_data_source('train', decoders=DECODERS)
  assert set(source[0]) == {'image', 'id'}
  assert source[2]['image'] == (tmp_path / 'photos/sub/c.JPG').read_bytes()
  assert records.decode_record_image(source[1]['image'])[0].tolist() == [
    [0, 1, 2],
    [3, 4, 5],
    [6, 7, 8],
  ]
  assert builder.schema() == records.Schema((), (), labels=False)


def test_splits_in_folders(tmp_path):
  for split, name in (('train', 'x'), ('test', 'y/x'), ('.trash', 'z')):
    write_image(tmp_path / f'photos/{split}/images/{name}.jpg')
  (tmp_path / 'photos/notes').mkdir()
  builder = prepared(
    image_folder(
      tmp_path, source=str(tmp_path / 'photos'), images='{split}/images'
    )
  )
  assert set(builder.info.splits) == {'train', 'test'}
  assert ids(builder, 'train') == ['train/x']
  assert ids(builder, 'test') == ['test/y/x']


def test_val_fraction_follows_the_stated_rule(tmp_path):
  names = [f'{i:03}' for i in range(40)]
  for name in names:
    write_image(tmp_path / f'photos/{name}.png')
  expected = {
    name
    for name in names
    if int(hashlib.sha256(f'3:{name}'.encode()).hexdigest()[:16], 16)
    < 0.25 * 16**16
  }
  assert 0 < len(expected) < 20
  builder = image_folder(
    tmp_path, source=str(tmp_path / 'photos'), val_fraction=0.25, split_seed=3
  )
  examples = builder.sources()
  assert {example.id for example in examples['val']} == expected
  assert {example.id for example in examples['train']} == {
    name for name in names if name not in expected
  }


def test_val_fraction_that_leaves_a_split_empty_is_refused(tmp_path):
  write_image(tmp_path / 'photos/a.jpg')
  message = messages.message_of(
    image_folder, tmp_path, source=str(tmp_path / 'photos'), val_fraction=1e-9
  )
  assert message == (
    'val_fraction=1e-09 leaves no image for val of 1: choose another '
    'val_fraction or split_seed'
  )
