"""Builders of published benchmarks, on small archives of the official form."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

from input_pipeline import datasets
from input_pipeline.builders import official_files
from input_pipeline.sources import audit
from runtime import errors
from tests.support import archive_files, official, official_imagenet
from tests.support import official_cases as cases

OFFICIAL_COUNTS = {
  'voc2012': {'train': '1,464', 'val': '1,449', 'train_aug': '10,582'},
  'pascal_context': {'train': '4,998', 'val': '5,105'},
  'ade20k': {'train': '20,210', 'val': '2,000'},
  'cityscapes/fine': {'train': '2,975', 'val': '500', 'test': '1,525'},
  'cityscapes/coarse': {'train_extra': '19,998'},
  'gta5': {'train': '24,966'},
  'synthia': {'train': '9,400'},
  'imagenet/1k': {'train': '1,281,167', 'val': '50,000'},
  'imagenet/21k': {'train': '12,743,321'},
  'imagenet_s/50': {
    **{'train': '64,431', 'train_semi': '500', 'val': '752', 'test': '1,682'},
  },
  'imagenet_s/300': {
    **{'train': '384,862', 'train_semi': '3,000'},
    **{'val': '4,097', 'test': '9,088'},
  },
  'imagenet_s/919': {
    **{'train': '1,183,322', 'train_semi': '9,190'},
    **{'val': '12,419', 'test': '27,423'},
  },
}


def test_the_files_of_every_config_are_listed():
  listed = {
    '/'.join(filter(None, (name, config)))
    for name, layouts in official_files.LAYOUTS.items()
    for config in layouts
  }
  # With the names of the data sets that have a default config, or none.
  defaults = {'pascal_context', 'cityscapes', 'imagenet', 'camvid'}
  pascal = {'pascal_context/59', 'pascal_context/60'}
  others = {*OFFICIAL_COUNTS} - {'pascal_context'}
  assert listed == others | defaults | pascal


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A case whose archives are prepared."""

  name: str  # Of the data set.
  source: pathlib.Path
  data_dir: pathlib.Path
  expected: dict
  printed: str

  def open(self, split):
    options = datasets.DataOptions(self.name)
    return datasets.open_dataset_split(options, split, str(self.data_dir))

  def builder(self):
    return datasets.dataset_builder(
      datasets.DataOptions(self.name), str(self.data_dir)
    )


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """Prepares each case once."""

  @functools.cache
  def make(case):
    name, write = cases.CASES[case]
    folder = tmp_path_factory.mktemp(case)
    source, data_dir = folder / 'archives', folder / 'records'
    expected = write(source)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      options = datasets.DataOptions(name, source=str(source))
      datasets.prepare_dataset(options, str(data_dir))
    return Prepared(name, source, data_dir, expected, printed.getvalue())

  return make


@pytest.fixture(autouse=True)
def no_source(monkeypatch):
  monkeypatch.delenv('SEG_DATA_DIR', raising=False)


def splits_of(name, source, tmp_path, splits):
  """Prepares a source and returns the records of some splits."""
  options = datasets.DataOptions(name, source=str(source))
  return {
    split: cases.read_records(
      datasets.open_dataset_split(options, split, str(tmp_path / 'records'))
    )
    for split in splits
  }


def refusal(name, source, tmp_path):
  """The error message about a source."""
  options = datasets.DataOptions(name, source=str(source))
  with pytest.raises(errors.UserError) as caught:
    datasets.dataset_builder(options, str(tmp_path / 'records')).check()
  message = str(caught.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize('case', cases.CASES)
def test_records_open_without_their_source(prepared, case):
  made = prepared(case)
  with moved_away(made.source):
    for split, expected in made.expected.items():
      opened = made.open(split)
      has_no_label = all(record.label is None for record in expected)
      assert ('label' in opened.label_kinds) != has_no_label
      assert cases.read_records(opened) == expected
      assert opened.ids() == [record.id for record in expected]
      for size, record in zip(opened.sizes(), expected, strict=True):
        width, height = PIL.Image.open(io.BytesIO(record.image)).size
        assert size == (height, width)


@contextlib.contextmanager
def moved_away(folder):
  away = folder.rename(folder.with_name('away'))
  try:
    yield
  finally:
    away.rename(folder)


@pytest.mark.parametrize('case', cases.CASES)
def test_folders_give_the_records_of_the_archives(prepared, case, tmp_path):
  made = prepared(case)
  archive_files.extract(made.source, tmp_path / 'folders')
  actual = splits_of(made.name, tmp_path / 'folders', tmp_path, made.expected)
  assert actual == made.expected


@pytest.mark.parametrize('case', cases.CASES)
def test_counts_that_differ_from_the_official_ones_are_warnings(prepared, case):
  made = prepared(case)
  name = made.name.partition('/')[0]
  counts = OFFICIAL_COUNTS.get(made.name) or OFFICIAL_COUNTS[name]
  assert set(counts) == set(made.expected)
  warnings = [
    line for line in made.printed.splitlines() if 'official number' in line
  ]
  assert warnings == [
    f'warning: {name} {split}: expected {count} images, the official number, '
    f'got {len(made.expected[split])}: scores on it cannot be compared with '
    'published ones'
    for split, count in counts.items()
  ]


def test_official_counts_cause_no_warning(prepared, tmp_path, monkeypatch):
  options = datasets.DataOptions(
    'ade20k', source=str(prepared('ade20k').source)
  )
  builder = datasets.dataset_builder(options, str(tmp_path))
  monkeypatch.setattr(type(builder), 'counts', {'train': 2, 'val': 1})
  actual, _ = builder.check()
  assert actual.warnings == ()


@pytest.mark.parametrize(
  ('case', 'count', 'names'),
  [
    ('voc2012', 21, {0: 'background', 1: 'aeroplane', 20: 'tvmonitor'}),
    ('context_59_mats', 59, {0: 'aeroplane', 5: 'bicycle', 36: 'person'}),
    ('context_60_mats', 60, {0: 'background', 1: 'aeroplane', 59: 'wood'}),
    ('ade20k', 150, {0: 'wall', 12: 'person', 20: 'car', 149: 'flag'}),
    ('cityscapes_fine', 19, {0: 'road', 9: 'terrain', 11: 'person', 13: 'car'}),
    ('gta5', 19, {8: 'vegetation', 14: 'truck', 18: 'bicycle'}),
    ('synthia', 19, {3: 'wall', 12: 'rider', 16: 'train', 17: 'motorcycle'}),
    ('imagenet_1k', 3, {0: 'n01440764', 2: 'n02105855'}),
    ('imagenet_s_50', 51, {0: 'other', 1: 'n01443537', 50: 'n12998815'}),
    ('imagenet_s_919', 920, {0: 'other', 259: 'n04355933', 919: 'n20000919'}),
  ],
)
def test_class_names(prepared, case, count, names):
  made = prepared(case)
  split = made.open(next(iter(made.expected)))
  assert len(split.classes) == len(split.palette) == count
  assert {i: split.classes[i] for i in names} == names
  if case.startswith('context_59'):
    assert list(split.classes) == sorted(split.classes)


def test_label_kinds_of_splits(prepared):
  assert prepared('cityscapes_fine').open('val').label_kinds == (
    'label',
    'tags',
  )
  assert prepared('imagenet_1k').open('val').label_kinds == ('tags',)
  assert prepared('imagenet_s_50').open('train').label_kinds == ('tags',)
  assert prepared('imagenet_s_50').open('train_semi').label_kinds == (
    'label',
    'tags',
  )


def test_cityscapes_test_has_no_labels(prepared):
  split = prepared('cityscapes_fine').open('test')
  with pytest.raises(errors.UserError, match='cityscapes/fine test has no lab'):
    split.require_labels('label', 'evaluation')
  # Tags are made of masks, so there are none of them either.
  assert split.label_kinds == ()


def test_one_archive_is_a_source(prepared, tmp_path):
  made = prepared('ade20k')
  source = made.source / 'ADEChallengeData2016.zip'
  assert splits_of('ade20k', source, tmp_path, made.expected) == made.expected


@pytest.mark.parametrize('case', cases.CASES)
def test_a_folder_without_the_data_set_is_refused(case, tmp_path):
  name, _ = cases.CASES[case]
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'notes.txt').write_text('nothing')
  message = refusal(name, tmp_path / 'other', tmp_path)
  assert message.startswith(f'source: expected {name.partition("/")[0]} as ')
  assert f', got {tmp_path}/other without ' in message


def write_one(name, source, values):
  """Writes a source with one mask of the given values; returns that mask."""
  jpeg, png = cases.photo(values, 1), cases.photo(values, 1, 'PNG')
  good = [[0] * len(values[0])] * len(values)
  if name == 'voc2012':
    images = dict.fromkeys(('2007_000032', '2007_000033'), jpeg)
    masks = {'2007_000032': values, '2007_000033': good}
    lists = {'train': ['2007_000032'], 'val': ['2007_000033']}
    official.voc2012(source, images, masks, lists, {'2007_000033': good})
    return 'SegmentationClass/2007_000032.png'
  if name.startswith('context'):
    images = dict.fromkeys(('2008_000002', '2008_000003'), jpeg)
    masks = {'2008_000002': values, '2008_000003': good}
    lists = {'train': ['2008_000002'], 'val': ['2008_000003']}
    official.voc2010(source, images, lists)
    if name == 'context_mats':
      official.label_maps(source, masks)
      return 'trainval/2008_000002.mat'
    masks['2008_000003'] = [[2] * len(values[0])] * len(values)
    phases = {name: split for split in lists for name in lists[split]}
    official.detail_json(source, masks, phases)
    return 'trainval_merged.json:2008_000002.jpg'
  if name == 'ade20k':
    official.ade20k(
      source, {'train': {'a': (jpeg, values)}, 'val': {'b': (jpeg, good)}}
    )
    return 'annotations/training/a.png'
  official.synthia(source, {'0000000': (png, values)})
  return 'GT/LABELS/0000000.png'


@pytest.mark.parametrize(
  ('case', 'name', 'values', 'wrong'),
  [
    ('voc2012', 'voc2012', [[0, 1, 21]], 21),
    ('context_mats', 'pascal_context/59', [[0, 459, 460]], 460),
    ('context_mats', 'pascal_context/60', [[65535, 1, 2]], 65535),
    ('context_json', 'pascal_context/59', [[2, 2, 1, 0]], 1),
    ('context_json', 'pascal_context/60', [[2, 2, 459, 0]], 459),
    ('ade20k', 'ade20k', [[0, 150], [151, 1]], 151),
    ('synthia', 'synthia', [[0, 22], [23, 1]], 23),
  ],
)
def test_an_unknown_mask_value_is_refused(case, name, values, wrong, tmp_path):
  file = write_one(case, tmp_path / 'source', values)
  message = refusal(name, tmp_path / 'source', tmp_path)
  assert f'{file}: expected values ' in message
  assert f', got {wrong} (1 pixel)' in message


def test_an_image_without_a_mask_is_refused(prepared, tmp_path):
  archive_files.extract(prepared('ade20k').source, tmp_path / 'source')
  root = tmp_path / 'source' / 'ADEChallengeData2016'
  (root / 'annotations/training/ADE_train_00000002.png').unlink()
  assert refusal('ade20k', tmp_path / 'source', tmp_path).startswith(
    f'{root}/images/training/ADE_train_00000002.jpg: has no mask'
  )


def test_a_listed_image_that_is_missing_is_refused(prepared, tmp_path):
  archive_files.extract(prepared('voc2012').source, tmp_path / 'source')
  root = tmp_path / 'source' / 'VOCdevkit' / 'VOC2012'
  (root / 'JPEGImages/2007_000061.jpg').unlink()
  assert refusal('voc2012', tmp_path / 'source', tmp_path).startswith(
    f'{root}/ImageSets/Segmentation/val.txt: lists 2007_000061, which has no '
    'image'
  )


def test_a_city_with_a_hyphen(tmp_path):
  examples = cases.streets(
    {
      'bad-honnef_000000_000000': [[7, 0]],
      'muhlheim-ruhr_000000_000000': [[33, 8]],
      'nuremberg_000000_000000': [[11, 11]],
    }
  )
  source = tmp_path / 'source'
  official.cityscapes(source, {'train_extra': examples}, 'gtCoarse')
  actual = splits_of('cityscapes/coarse', source, tmp_path, ['train_extra'])
  assert actual['train_extra'] == [
    cases.labeled(name, *example, cases.CITYSCAPES)
    for name, example in examples.items()
  ]


def test_cityscapes_with_all_archives_in_one_folder(tmp_path):
  source = tmp_path / 'source'
  fine = cases.cityscapes_fine(source)
  coarse = cases.cityscapes_coarse(source)
  assert splits_of('cityscapes/fine', source, tmp_path, fine) == fine
  assert splits_of('cityscapes/coarse', source, tmp_path, coarse) == coarse


def test_gta5_masks_of_another_size_are_skipped_and_reported(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(audit, '_PRINTED_REPORTS', set())
  examples = cases.streets(
    {'00001': [[7, 0]], '00002': [[8, 0]], '00003': [[9, 11]]}
  )
  png, _ = examples['00002']
  official.gta5(
    tmp_path / 'source', [{**examples, '00002': (png, [[8], [8], [8]])}]
  )
  actual = splits_of('gta5', tmp_path / 'source', tmp_path, ['train'])
  assert actual['train'] == [
    cases.labeled(name, *examples[name], cases.CITYSCAPES)
    for name in ('00001', '00003')
  ]
  printed = capsys.readouterr().out
  assert '1 file is skipped:' in printed
  assert (
    f'{tmp_path}/source/01_labels.zip:labels/00002.png: expected a mask of 2x1 '
    'pixels as its image, got 1x3'
  ) in printed
  # Skipped files are reported once in every process that opens the data set.
  splits_of('gta5', '', tmp_path, ['train'])
  assert 'labels/00002.png' not in capsys.readouterr().out
  audit._PRINTED_REPORTS.clear()
  splits_of('gta5', '', tmp_path, ['train'])
  assert 'labels/00002.png: expected a mask of 2x1' in capsys.readouterr().out


def test_synthia_masks_of_eight_bits_are_refused(tmp_path):
  official.synthia(tmp_path / 'source', cases.streets({'0000000': [[3, 4]]}))
  file = tmp_path / 'source/RAND_CITYSCAPES/GT/LABELS/0000000.png'
  file.write_bytes(official.gray_png([[3, 4]]))
  message = refusal('synthia', tmp_path / 'source', tmp_path)
  assert message.startswith(
    f'{file}: expected 16 bits in three channels, got uint8 pixels of shape '
    '(1, 2)'
  )


def test_imagenet_in_folders_of_classes(tmp_path):
  train = cases.train_images()
  val = {i: official.image('JPEG', 10 + i) for i in (1, 2, 3, 4)}
  classes = {1: 'n01443537', 2: 'n02105855', 3: 'n01440764', 4: 'n01443537'}
  official_imagenet.imagenet_folders(
    tmp_path / 'source', train, {(classes[i], i): val[i] for i in val}
  )
  actual = splits_of(
    'imagenet', tmp_path / 'source', tmp_path, ['train', 'val']
  )
  assert actual == {
    'train': cases.train_records(train),
    'val': cases.val_records(val),
  }


@pytest.mark.parametrize('name', ['imagenet/1k', 'imagenet/21k'])
def test_imagenet_in_a_folder_of_tar_files_of_classes(prepared, name, tmp_path):
  case = name.replace('/', '_')
  made = prepared(case)
  source = tmp_path / 'source'
  shutil.copytree(made.source, source)
  for outer in [*source.glob('*_train.tar'), *source.glob('*_whole.tar')]:
    shutil.unpack_archive(outer, source)
    outer.unlink()
  assert (source / 'n01440764.tar').exists()
  assert splits_of(name, source, tmp_path, made.expected) == made.expected


def test_imagenet_21k_in_a_compressed_tar_file(tmp_path):
  train = cases.train_images()
  source = tmp_path / 'source'
  official_imagenet.imagenet_train(source, train, 'fall11_whole.tar')
  shutil.unpack_archive(source / 'fall11_whole.tar', tmp_path / 'classes')
  members = {
    f'winter21_whole/{path.name}': path.read_bytes()
    for path in (tmp_path / 'classes').iterdir()
  }
  (source / 'fall11_whole.tar').unlink()
  archive_files.write_archive(source / 'winter21_whole.tar.gz', members)
  actual = splits_of('imagenet/21k', source, tmp_path, ['train'])
  assert actual == {'train': cases.train_records(train)}


def test_imagenet_val_without_its_classes_is_refused(prepared, tmp_path):
  shutil.copytree(prepared('imagenet_1k').source, tmp_path / 'source')
  (tmp_path / 'source' / 'ILSVRC2012_devkit_t12.tar.gz').unlink()
  assert refusal('imagenet', tmp_path / 'source', tmp_path).startswith(
    'source: expected imagenet as '
  )


def test_imagenet_devkit_with_too_few_lines_is_refused(prepared, tmp_path):
  source = tmp_path / 'source'
  shutil.copytree(prepared('imagenet_1k').source, source)
  wnids = ['n02105855', 'n01440764', 'n01443537']
  official_imagenet.imagenet_devkit(source, wnids, [3, 1])
  assert 'ground_truth' in refusal('imagenet', source, tmp_path)


def test_imagenet_s_with_the_older_list_name(prepared, tmp_path):
  made = prepared('imagenet_s_50')
  source = tmp_path / 'source'
  shutil.copytree(made.source, source)
  (source / 'data/names/ImageNetS_im50_train_semi.txt').unlink()
  names = [record.id for record in made.expected['train_semi']]
  official_imagenet.imagenet_s(
    source, 50, cases.IMAGENET_S_50, names, {}, older=True
  )
  actual = splits_of('imagenet_s/50', source, tmp_path, made.expected)
  assert actual == made.expected


@pytest.mark.parametrize(
  ('size', 'value', 'png'),
  [
    (50, 51, official.rgb_coded_png([[51, 0]])),
    (919, 920, official.rgb_coded_png([[920, 0]])),
    (919, 999, official.rgb_coded_png([[999, 1000]])),
    (919, 1001, official.rgb_coded_png([[1001, 0]])),
  ],
)
def test_imagenet_s_refuses_unknown_ids(prepared, size, value, png, tmp_path):
  builder = prepared(f'imagenet_s_{size}').builder()
  (tmp_path / 'mask.png').write_bytes(png)
  with pytest.raises(errors.UserError, match=rf', got {value} \(1 pixel\)'):
    builder.read_mask(tmp_path / 'mask.png')


def test_imagenet_s_refuses_masks_in_other_encodings(prepared, tmp_path):
  builder = prepared('imagenet_s_50').builder()
  (tmp_path / 'gray.png').write_bytes(official.gray_png([[1]]))
  with pytest.raises(errors.UserError, match='expected RGB, got values'):
    builder.read_mask(tmp_path / 'gray.png')
  blue = PIL.Image.fromarray(np.array([[[1, 0, 1]]], np.uint8))
  blue.save(tmp_path / 'blue.png')
  with pytest.raises(errors.UserError, match='got blue pixels'):
    builder.read_mask(tmp_path / 'blue.png')


def test_a_damaged_detail_json_is_refused(prepared, tmp_path):
  source = tmp_path / 'source'
  shutil.copytree(prepared('context_59_json').source, source)
  file = source / 'trainval_merged.json'
  whole = json.loads(file.read_text())
  del whole['annos_segmentation'][0]['segmentation']
  for text in (file.read_text()[:-9], json.dumps(whole)):
    file.write_text(text)
    message = refusal('pascal_context', source, tmp_path)
    assert message.startswith(f'{file}: expected the list of the Detail API')
