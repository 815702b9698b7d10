import dataclasses
import pathlib

import numpy as np
import PIL.Image
import pytest

from input_pipeline import datasets, image_folder
from input_pipeline.builders import camvid
from input_pipeline.sources import class_counts, fingerprints, records
from runtime import errors
from tests.support import messages


def write_pair(source, name, mask):
  split, stem = name.split('/')
  for part in ('images', 'labels'):
    (source / split / part).mkdir(parents=True, exist_ok=True)
  mask = np.array(mask, np.uint8)
  photograph = np.full((*mask.shape, 3), (200, 90, 10), np.uint8)
  PIL.Image.fromarray(photograph).save(source / split / f'images/{stem}.png')
  PIL.Image.fromarray(mask).save(source / split / f'labels/{stem}.png')


@pytest.fixture
def root(tmp_path):
  """A folder of data sets with a small CamVid in it."""
  source = tmp_path / 'all' / 'camvid'
  write_pair(source, 'train/0002', [[11, 0, 3], [3, 3, 3]])
  write_pair(source, 'train/0001', [[1], [2], [11], [10]])
  write_pair(source, 'train/0003', [[5, 5, 5, 5]])
  write_pair(source, 'val/0001', [[8]])
  return tmp_path / 'all'


@pytest.fixture(autouse=True)
def no_source(monkeypatch):
  monkeypatch.delenv('SEG_DATA_DIR', raising=False)


def open_camvid(tmp_path, split='train', **options):
  return datasets.open_dataset_split(
    datasets.DataOptions('camvid', **options), split, str(tmp_path / 'prepared')
  )


@pytest.mark.parametrize('by_variable', [False, True])
def test_an_opened_split_has_the_records_of_its_files(
  root, tmp_path, monkeypatch, by_variable
):
  if by_variable:
    monkeypatch.setenv('SEG_DATA_DIR', str(root))
    split = open_camvid(tmp_path)
  else:
    split = open_camvid(tmp_path, source=str(root / 'camvid'))
  assert split.name == 'camvid train'
  assert split.ids() == ['train/0001', 'train/0002', 'train/0003']
  assert split.sizes() == [(4, 1), (2, 3), (1, 4)]
  assert len(split) == 3
  assert split.classes == camvid.CLASSES
  assert split.palette[3] == (128, 64, 128)
  assert split.label_kinds == ('label', 'tags')
  record = split.records[1]
  label = records.decode_record_label(record['label'])
  assert label.tolist() == [[-1, 0, 3], [3, 3, 3]]
  image = records.decode_record_image(record['image'])
  assert image.tolist() == [[[200, 90, 10]] * 3] * 2
  assert [int(tag) for tag in record['tags']] == [0, 3]


def test_source_takes_precedence_over_the_variable(root, tmp_path, monkeypatch):
  monkeypatch.setenv('SEG_DATA_DIR', str(tmp_path / 'elsewhere'))
  split = open_camvid(tmp_path, 'val', source=str(root / 'camvid'))
  assert split.ids() == ['val/0001']


def test_a_prepared_data_set_needs_no_source(root, tmp_path, capsys):
  open_camvid(tmp_path, source=str(root / 'camvid'))
  assert capsys.readouterr().out  # The audit.
  assert open_camvid(tmp_path, 'val').ids() == ['val/0001']
  assert capsys.readouterr().out == ''


def test_sizes_and_ids_of_a_selection(root, tmp_path):
  split = open_camvid(tmp_path, source=str(root / 'camvid'))
  assert split.sizes() == [(4, 1), (2, 3), (1, 4)]  # Not its selection's.
  chosen = split.select(np.array([2, 0]))
  assert chosen.name == 'camvid train (2 of 3 images)'
  assert chosen.ids() == ['train/0003', 'train/0001']
  assert chosen.sizes() == [(1, 4), (4, 1)]


def count_classes(counts, num_classes=11):
  """Returns the row of class counts of an image, from a dict."""
  return [counts.get(c, 0) for c in range(num_classes)]


def test_pixels_of_classes_are_counted_at_preparation(
  root, tmp_path, monkeypatch
):
  split = open_camvid(tmp_path, source=str(root / 'camvid'))
  (path,) = (tmp_path / 'prepared').rglob('class-pixels-train.npy')
  expected = [
    count_classes({1: 1, 2: 1, 10: 1}),
    count_classes({0: 1, 3: 4}),
    count_classes({5: 4}),
  ]
  assert np.load(path).tolist() == expected
  # Stored numbers need no mask.
  count = class_counts.count_class_pixels
  monkeypatch.setattr(class_counts, 'count_class_pixels', None)
  assert split.class_pixels().tolist() == expected
  assert split.class_pixels().dtype == np.int64
  chosen = split.select(np.array([2, 0, 0]))
  assert chosen.class_pixels().tolist() == [expected[i] for i in (2, 0, 0)]
  again = chosen.select(np.array([1]))
  assert again.class_pixels().tolist() == [expected[0]]
  # Records that an earlier version has prepared lack them.
  monkeypatch.setattr(class_counts, 'count_class_pixels', count)
  for content in (None, b'damaged', path.read_bytes()[:-4]):
    path.unlink()
    if content is not None:
      path.write_bytes(content)
    assert again.class_pixels().tolist() == [expected[0]]
    assert np.load(path).tolist() == expected


def test_pixels_of_classes_without_a_place_to_store_them(root, tmp_path):
  split = open_camvid(tmp_path, source=str(root / 'camvid'))
  expected = split.class_pixels().tolist()
  unstored = dataclasses.replace(split, stored_class_pixels=None)
  assert unstored.class_pixels().tolist() == expected
  path = tmp_path / 'prepared/class_counts.npy'
  path.mkdir()
  stored = dataclasses.replace(split.stored_class_pixels, path=path)
  unwritable = dataclasses.replace(split, stored_class_pixels=stored)
  assert unwritable.class_pixels().tolist() == expected
  assert not datasets.concatenate_splits([split, split]).stored_class_pixels


def test_concatenated_splits_keep_their_order(root, tmp_path):
  train, val = (
    open_camvid(tmp_path, split, source=str(root / 'camvid'))
    for split in ('train', 'val')
  )
  joined = datasets.concatenate_splits([train, val])
  names = ['train/0001', 'train/0002', 'train/0003', 'val/0001']
  assert joined.ids() == names
  actual = [joined.records[i]['id'].decode() for i in range(len(joined))]
  assert actual == names
  assert joined.records[-1]['id'] == b'val/0001'
  with pytest.raises(IndexError):
    joined.records[4]
  assert joined.sizes() == [(4, 1), (2, 3), (1, 4), (1, 1)]
  assert joined.name == 'camvid train and camvid val'
  # Classes of another data set would mean something else.
  assert joined.label_kinds == ()
  picked = joined.select(np.array([0, 3]))
  assert picked.records[1]['id'] == b'val/0001'
  assert datasets.concatenate_splits([train]) is train


def test_check_available_reports_missing_files_and_prepares_nothing(
  root, tmp_path
):
  there = datasets.DataOptions('camvid', source=str(root / 'camvid'))
  gone = datasets.DataOptions('camvid', source=str(root / 'nowhere'))
  data_dir = str(tmp_path / 'prepared')
  datasets.check_dataset_available(there, data_dir)
  with pytest.raises(errors.MissingInput, match='which does not exist'):
    datasets.check_dataset_available(gone, data_dir)
  assert not list(tmp_path.rglob('dataset_info.json'))
  datasets.prepare_dataset(there, data_dir)
  datasets.check_dataset_available(gone, data_dir)


def test_require_labels_names_the_missing_kind():
  split = datasets.Split(
    name='photographs train',
    version='v',
    classes=(),
    palette=(),
    label_kinds=('tags',),
    records=[],
    index=fingerprints.ImageIndex.from_samples([]),
  )
  split.require_labels('tags', 'classification')
  message = messages.message_of(
    lambda: split.require_labels('label', 'fine-tuning')
  )
  assert message == (
    'photographs train has no label, which fine-tuning needs: choose another '
    'data set'
  )


@pytest.mark.parametrize(
  ('name', 'nearest'),
  [
    ('ade', 'ade20k'),
    ('', ''),
    ('coco', ''),
    ('camvid/', 'camvid'),
    ('image_folder/', 'image_folder'),
    ('Shapes/scenes', 'shapes'),
  ],
)
def test_an_unknown_data_set_is_refused(name, nearest):
  hint = f', did you mean {nearest}?' if nearest else ''
  assert messages.message_of(lambda: datasets.DataOptions(name)) == (
    'name: expected a data set of shapes, camvid, voc2012, pascal_context, '
    'ade20k, cityscapes, gta5, synthia, imagenet, imagenet_s, image_folder, '
    f'image_mask_folder, image_tag_folder, got {name!r}{hint}'
  )


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('camvid/11', 'camvid'),
    ('cityscapes/rough', 'cityscapes/ with one of fine, coarse'),
    ('imagenet_s', 'imagenet_s/ with one of 50, 300, 919'),
  ],
)
def test_an_unknown_config_is_refused(name, expected, tmp_path):
  options = datasets.DataOptions(name)
  assert messages.message_of(
    lambda: datasets.dataset_builder(options, str(tmp_path))
  ) == (f'name: expected {expected}, got {name!r}')


@pytest.mark.parametrize('name', ['shapes', 'shapes/scene'])
def test_an_unknown_config_of_shapes_is_refused(name, tmp_path):
  options = datasets.DataOptions(name)
  assert messages.message_of(
    lambda: datasets.dataset_builder(options, str(tmp_path))
  ) == (
    'name: expected shapes/ with one of scenes, single, source, target, '
    'scenes_128, single_128, source_128, target_128, natural, '
    f'natural_single, natural_128, natural_single_128, got {name!r}'
  )


def test_an_unknown_split_is_refused(root, tmp_path):
  message = messages.message_of(
    lambda: open_camvid(tmp_path, 'test', source=str(root / 'camvid'))
  )
  assert message == "split: expected one of train, val of camvid, got 'test'"


def test_an_empty_source_is_refused(tmp_path):
  assert messages.message_of(lambda: open_camvid(tmp_path)) == (
    'source is empty: give the folder of camvid '
    '({train,val}/{images,labels}), or set SEG_DATA_DIR to the folder that '
    'holds a folder camvid'
  )


def test_a_missing_source_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('SEG_DATA_DIR', str(tmp_path))
  folder = tmp_path / 'camvid'
  assert messages.message_of(lambda: open_camvid(tmp_path)) == (
    f'source: expected a folder or an archive, got {folder}, which does not '
    'exist: give the folder of camvid ({train,val}/{images,labels}), or set '
    'SEG_DATA_DIR to the folder that holds a folder camvid'
  )


def test_folders_need_a_source(tmp_path):
  for name in ('image_folder', 'image_mask_folder'):
    fields = {'masks': 'm', 'classes': 'c'} if 'mask' in name else {}
    options = datasets.DataOptions(name, **fields)
    assert messages.message_of(
      lambda o=options: datasets.dataset_builder(o, str(tmp_path))
    ) == ('source is empty: give the folder of the images')


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('voc2012', {'classes': 'a.txt'}),
    ('cityscapes/fine', {'on_bad_example': 'skip'}),
    ('image_folder', {'ignore': '255'}),
    ('shapes/scenes', {'source': 'here'}),
  ],
)
def test_a_field_that_the_data_set_does_not_read_is_refused(name, fields):
  ((field, value),) = fields.items()
  assert messages.message_of(lambda: datasets.DataOptions(name, **fields)) == (
    f'{field}: expected no value, as {name.partition("/")[0]} does not read '
    f'it, got {value!r}: remove it'
  )


def test_a_folder_of_images_opens_with_its_options(tmp_path):
  folder = tmp_path / 'mine' / 'photos'
  folder.mkdir(parents=True)
  for name in ('b', 'a'):
    image = np.full((3, 5, 3), ord(name), np.uint8)
    PIL.Image.fromarray(image).save(folder / f'{name}.png')
  options = datasets.DataOptions(
    'image_folder', source=str(tmp_path / 'mine'), images='photos'
  )
  split = datasets.open_dataset_split(
    options, 'train', str(tmp_path / 'prepared')
  )
  assert split.ids() == ['a', 'b']
  assert split.sizes() == [(3, 5)] * 2
  assert split.classes == split.label_kinds == ()
  assert set(split.records[0]) == {'image', 'id'}
  image = records.decode_record_image(split.records[1]['image'])
  np.testing.assert_array_equal(image, np.full((3, 5, 3), 98))


def test_a_data_dir_that_cannot_be_written_is_reported(root, tmp_path):
  occupied = tmp_path / 'prepared'
  occupied.write_text('a file')
  message = messages.message_of(
    lambda: open_camvid(tmp_path, source=str(root / 'camvid'))
  )
  assert message.startswith('camvid cannot be prepared: ')
  assert str(occupied) in message


def test_default_data_dir(monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', '/data/records')
  assert datasets.default_data_dir() == '/data/records'
  monkeypatch.setenv('TFDS_DATA_DIR', '~/records')
  assert datasets.default_data_dir() == str(pathlib.Path.home() / 'records')
  monkeypatch.delenv('TFDS_DATA_DIR')
  actual = datasets.default_data_dir()
  assert actual == str(pathlib.Path.home() / 'tensorflow_datasets')


def test_records_prepared_by_another_process_meanwhile_are_used(
  root, tmp_path, monkeypatch
):
  whole = camvid.Camvid.download_and_prepare
  calls = []

  def late(self, *arguments, **fields):
    """The other one is faster: its records are there when ours are ready."""
    calls.append(self)
    if len(calls) > 1:
      return whole(self, *arguments, **fields)
    open_camvid(tmp_path, source=str(root / 'camvid'))
    raise FileExistsError(17, 'Cannot rename', self.data_dir)

  monkeypatch.setattr(camvid.Camvid, 'download_and_prepare', late)
  split = open_camvid(tmp_path, source=str(root / 'camvid'))
  assert len(calls) == 2
  assert split.ids() == ['train/0001', 'train/0002', 'train/0003']


def test_a_folder_opens_without_records(root, tmp_path):
  folder = root / 'camvid' / 'train' / 'images'
  (folder / 'broken.jpg').write_bytes(b'no image')
  opened = image_folder.open_image_folder(folder, ('a',), ((1, 2, 3),))
  split, skipped = opened.split, opened.skipped
  assert split.ids() == ['0001', '0002', '0003']
  assert split.sizes() == [(4, 1), (2, 3), (1, 4)]
  assert split.label_kinds == ()
  assert [problem.file.name for problem in skipped] == ['broken.jpg']
  image = records.decode_record_image(split.records[0]['image'])
  assert image.tolist() == [[[200, 90, 10]]] * 4
  message = messages.message_of(
    lambda: image_folder.open_image_folder(
      tmp_path / 'nowhere', ('a',), ((0, 0, 0),)
    )
  )
  assert 'nowhere' in message
