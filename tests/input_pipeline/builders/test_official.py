import collections
import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil
import signal

import numpy as np
import PIL.Image
import pytest

from input_pipeline import datasets, prepare, report
from input_pipeline.builders import files, shards
from input_pipeline.sources import records
from runtime import errors
from tests.support import official

# What is in none of the tables below is ignored.
IGNORED = -1
VOC2012 = {i: i for i in range(21)}
# 0 and the 59 ids of the 459, in the order of their labels.
CONTEXT_IDS = (
  *(0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80),
  *(85, 98, 104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232),
  *(258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366),
  *(368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
CONTEXT_60 = {i: 0 for i in range(460)} | {
  raw: i for i, raw in enumerate(CONTEXT_IDS)
}
CONTEXT_59 = {raw: i - 1 for raw, i in CONTEXT_60.items() if i > 0}
ADE20K = {raw: raw - 1 for raw in range(1, 151)}
CITYSCAPES = {
  **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9},
  **{23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18},
}
SYNTHIA = {
  **{3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10},
  **{10: 11, 17: 12, 8: 13, 18: 14, 19: 15, 20: 16, 12: 17, 11: 18},
}
IMAGENET_S_50 = (
  *('n01443537', 'n01491361', 'n01531178', 'n01644373', 'n02104029'),
  *('n02119022', 'n02123597', 'n02133161', 'n02165456', 'n02281406'),
  *('n02325366', 'n02342885', 'n02396427', 'n02483362', 'n02504458'),
  *('n02510455', 'n02690373', 'n02747177', 'n02783161', 'n02814533'),
  *('n02859443', 'n02917067', 'n02992529', 'n03014705', 'n03047690'),
  *('n03095699', 'n03197337', 'n03201208', 'n03445777', 'n03452741'),
  *('n03584829', 'n03630383', 'n03775546', 'n03791053', 'n03874599'),
  *('n03891251', 'n04026417', 'n04335435', 'n04380533', 'n04404412'),
  *('n04447861', 'n04507155', 'n04522168', 'n04557648', 'n04562935'),
  *('n04612504', 'n06794110', 'n07749582', 'n07831146', 'n12998815'),
)
# 919 sorted names of which the five targets of merges have the ids 256 to 260.
IMAGENET_S_919 = (
  *(f'n0100{i:04}' for i in range(1, 256)),
  *('n02808440', 'n03773504', 'n03832673', 'n04355933', 'n15075141'),
  *(f'n2000{i:04}' for i in range(261, 920)),
)
IMAGENET_S_300 = tuple(f'n0200{i:04}' for i in range(1, 301))
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


@dataclasses.dataclass(frozen=True)
class Expected:
  """A record."""

  id: str
  image: bytes
  label: list | None  # Rows of class ids.
  tags: list


def grid(values, width):
  """The values in rows; the last row is filled with the first values."""
  return np.resize(values, (-(-len(values) // width), width)).tolist()


def photo(values, seed, kind='JPEG'):
  """An image as large as a mask."""
  return official.image(kind, seed, len(values), len(values[0]))


def labeled(name, image, values, table):
  """The record of an image and the mask of the same size."""
  label = [[table.get(value, IGNORED) for value in row] for row in values]
  tags = sorted({i for row in label for i in row} - {IGNORED})
  return Expected(name, image, label, tags)


def found_in(split):
  """The records of a split, in the form of `Expected`."""
  return [
    Expected(
      record['id'].decode(),
      record['image'],
      records.decode_label(record['label']).tolist()
      if 'label' in split.label_kinds
      else None,
      [int(tag) for tag in record['tags']],
    )
    for record in split.records
  ]


def voc2012(source):
  masks = {
    '2007_000039': [[0, 20, 255], [1, 1, 15]],
    '2007_000032': grid([*range(21), 255], 6),
    '2007_000033': [[255, 5]],
    '2007_000061': [[4], [0]],
  }
  sbd = {
    '2008_000008': grid(range(21), 7),
    '2008_000002': [[13, 0, 0]],
    '2007_000033': [[5, 5]],  # In VOC's val.
    '2007_000039': [[9, 9, 9], [9, 9, 9]],  # VOC has a mask of it, too.
  }
  every = {**sbd, **masks, '2009_000001': [[0]]}
  images = {
    name: photo(values, i) for i, (name, values) in enumerate(every.items())
  }
  lists = {
    'train': ['2007_000039', '2007_000032'],
    'val': ['2007_000061', '2007_000033'],
  }
  official.voc2012(source, images, masks, lists, sbd)
  record = {
    name: labeled(name, images[name], values, VOC2012)
    for name, values in every.items()
  }
  train_aug = ['2007_000032', '2007_000039', '2008_000002', '2008_000008']
  return {
    split: [record[name] for name in names]
    for split, names in {**lists, 'train_aug': train_aug}.items()
  }


def pascal_context(source, labels, table):
  """Labels are `mats` or `json`."""
  masks = {
    '2008_000008': [[0, 2, 458, 458], [0, 9, 284, 284]],
    '2008_000003': grid(CONTEXT_IDS, 6),
    '2008_000002': grid(CONTEXT_IDS[::-1], 10),
  }
  if labels == 'mats':
    masks['2008_000003'] = grid(range(460), 20)
    masks['2008_000008'] = [[0, 2, 458, 459], [1, 9, 284, 457]]
  lists = {'train': ['2008_000008', '2008_000003'], 'val': ['2008_000002']}
  images = {
    name: photo(values, i) for i, (name, values) in enumerate(masks.items())
  }
  official.voc2010(source, {**images, '2008_000007': b'not labeled'}, lists)
  if labels == 'mats':
    official.label_maps(source, masks)
  else:
    phases = {name: split for split in lists for name in lists[split]}
    official.detail_json(source, masks, phases)
  return {
    split: [labeled(key, images[key], masks[key], table) for key in names]
    for split, names in lists.items()
  }


def ade20k(source):
  masks = {
    'train': {
      'ADE_train_00000001': grid(range(151), 19),
      'ADE_train_00000002': [[0, 150, 1], [2, 0, 0]],
    },
    'val': {'ADE_val_00000001': [[149, 0]]},
  }
  splits = {
    split: {
      name: (photo(values, len(name) + i), values)
      for i, (name, values) in enumerate(listed.items())
    }
    for split, listed in masks.items()
  }
  official.ade20k(source, splits)
  return {
    split: [labeled(name, *actual, ADE20K) for name, actual in listed.items()]
    for split, listed in splits.items()
  }


def streets(masks):
  """(PNG, values) of each of some masks."""
  return {
    name: (photo(values, i, 'PNG'), values)
    for i, (name, values) in enumerate(masks.items())
  }


def cityscapes_fine(source):
  splits = {
    'train': streets(
      {
        'aachen_000000_000019': grid([*range(34), 255], 7),
        'zurich_000121_000019': [[7, 33], [0, 255]],
      }
    ),
    'val': streets({'frankfurt_000000_000294': [[26, 24, 3]]}),
    # The masks in the archive are no labels.
    'test': streets({'berlin_000000_000019': [[3, 3], [3, 3]]}),
  }
  official.cityscapes(source, splits)
  expected = {
    split: [labeled(key, *actual, CITYSCAPES) for key, actual in listed.items()]
    for split, listed in splits.items()
  }
  ((name, (png, _)),) = splits['test'].items()
  return {**expected, 'test': [Expected(name, png, None, [])]}


def cityscapes_coarse(source):
  masks = {
    'augsburg_000000_000000': grid([*range(34), 255], 5),
    'troisdorf_000000_000073': [[0, 0, 23]],
  }
  extra = streets(masks)
  fine = streets({'aachen_000000_000019': [[7]]})
  splits = {'train': fine, 'train_extra': extra}
  official.cityscapes(source, splits, 'gtCoarse')
  return {
    'train_extra': [
      labeled(name, *actual, CITYSCAPES) for name, actual in extra.items()
    ]
  }


def gta5(source):
  examples = streets(
    {
      '00001': grid(range(35), 7),
      '00002': [[7, 34], [33, 0]],
      '02501': [[8, 8, 8]],
    }
  )
  first = {name: examples[name] for name in ('00001', '00002')}
  official.gta5(source, [first, {'02501': examples['02501']}])
  return {
    'train': [
      labeled(name, *actual, CITYSCAPES) for name, actual in examples.items()
    ]
  }


def synthia(source):
  examples = streets(
    {'0000000': grid(range(23), 6), '0000001': [[22, 3], [21, 0], [11, 12]]}
  )
  official.synthia(source, examples)
  return {
    'train': [
      labeled(name, *actual, SYNTHIA) for name, actual in examples.items()
    ]
  }


def train_images():
  """Of ImageNet's train; one of CMYK, and the PNG that is called .JPEG."""
  return {
    'n02105855_2933': official.image('PNG', 1),
    'n02105855_10': official.image('JPEG', 2),
    'n01440764_2': official.image('JPEG', 3, mode='L'),
    'n01440764_10026': official.image('JPEG', 4, mode='CMYK'),
    'n01443537_10': official.image('JPEG', 5),
  }


def of_train(images):
  """Records of `train_images`."""
  numbers = {'n01440764': 0, 'n01443537': 1, 'n02105855': 2}
  names = [
    *('n01440764_10026', 'n01440764_2', 'n01443537_10'),
    *('n02105855_10', 'n02105855_2933'),
  ]
  return [
    Expected(f'{name[:9]}/{name}', images[name], None, [numbers[name[:9]]])
    for name in names
  ]


def of_val(images):
  """Records of val, whose images are of the classes 1, 2, 0 and 1."""
  return [
    Expected(f'{wnid}/{official.val_name(i)}', images[i], None, [tag])
    for wnid, i, tag in (
      ('n01440764', 3, 0),
      ('n01443537', 1, 1),
      ('n01443537', 4, 1),
      ('n02105855', 2, 2),
    )
  ]


def imagenet(source):
  train = train_images()
  val = {i: official.image('JPEG', 10 + i) for i in (1, 2, 3, 4)}
  official.imagenet_train(source, train)
  official.imagenet_val(source, val)
  wnids = ['n02105855', 'n01440764', 'n01443537']
  official.imagenet_devkit(source, wnids, [3, 1, 2, 3])
  return {'train': of_train(train), 'val': of_val(val)}


def imagenet_21k(source):
  train = train_images()
  official.imagenet_train(source, train, 'fall11_whole.tar')
  return {'train': of_train(train)}


def imagenet_s_50(source):
  """Goldfish is class 1, tiger shark 2, agaric 50; tench (n01440764) none."""
  semi = {
    'n01443537/n01443537_10': grid([*range(51), 1000], 13),
    'n12998815/n12998815_7': [[0, 50, 1000]],
  }
  val = {
    'n01491361/ILSVRC2012_val_00000236': [[2, 0], [1000, 1000]],
    'n01443537/ILSVRC2012_val_00000005': [[1, 2, 50]],
  }
  train = {
    'n12998815_7': photo(semi['n12998815/n12998815_7'], 1),
    'n01443537_10': photo(semi['n01443537/n01443537_10'], 2),
    'n01443537_9': official.image('JPEG', 3),
    'n01440764_9': official.image('JPEG', 4),
  }
  images = {
    5: photo(val['n01443537/ILSVRC2012_val_00000005'], 5),
    236: photo(val['n01491361/ILSVRC2012_val_00000236'], 6),
    7: official.image('JPEG', 7),
    8: official.image('JPEG', 8),
  }
  official.imagenet_train(source, train)
  official.imagenet_val(source, images)
  mappings = {
    'validation': [
      (name.replace('n01491361', 'n01440764'), name) for name in val
    ],
    'test': [
      ('n01440764/ILSVRC2012_val_00000008', 'n12998815/ILSVRC2012_val_00000008')
    ],
  }
  official.imagenet_s(source, 50, IMAGENET_S_50, list(semi), mappings)
  official.imagenet_s_masks(source, 50, semi, val)
  table = {i: i for i in range(51)}
  return {
    'train': [
      Expected('n01443537/n01443537_10', train['n01443537_10'], None, [1]),
      Expected('n01443537/n01443537_9', train['n01443537_9'], None, [1]),
      Expected('n12998815/n12998815_7', train['n12998815_7'], None, [50]),
    ],
    'train_semi': [
      labeled(name, train[name[10:]], values, table)
      for name, values in semi.items()
    ],
    'val': [
      labeled(name, images[int(name[-5:])], values, table)
      for name, values in val.items()
    ],
    'test': [
      Expected('n12998815/ILSVRC2012_val_00000008', images[8], None, [50])
    ],
  }


def imagenet_s_300(source):
  """Without merges; labels are stored in 16 bits."""
  name = 'n02000300/n02000300_1'
  of_val = 'n02000256/ILSVRC2012_val_00000001'
  values = grid([*range(301), 1000], 20)
  train = {
    'n02000300_1': photo(values, 1),
    'n04356056_1': official.image('JPEG', 2),
  }
  images = {1: photo([[256]], 3), 2: official.image('JPEG', 4)}
  of_test = 'n02000001/ILSVRC2012_val_00000002'
  official.imagenet_train(source, train)
  official.imagenet_val(source, images)
  mappings = {'validation': [(of_val, of_val)], 'test': [(of_test, of_test)]}
  official.imagenet_s(source, 300, IMAGENET_S_300, [name], mappings)
  official.imagenet_s_masks(source, 300, {name: values}, {of_val: [[256]]})
  table = {i: i for i in range(301)}
  return {
    'train': [Expected(name, train['n02000300_1'], None, [300])],
    'train_semi': [labeled(name, train['n02000300_1'], values, table)],
    'val': [labeled(of_val, images[1], [[256]], table)],
    'test': [Expected(of_test, images[2], None, [1])],
  }


def imagenet_s_919(source):
  """Images of merged classes are in the folders that they are merged into."""
  semi = {
    'n04355933/n04356056_10': grid([*range(920), 1000], 41),
    'n20000919/n20000919_3': [[919, 0], [256, 1000]],
  }
  val = {
    'n02808440/ILSVRC2012_val_00000003': [[256, 255, 257]],
    'n15075141/ILSVRC2012_val_00000001': [[260, 512, 768, 919]],
  }
  train = {
    'n01000255_1': official.image('JPEG', 1),
    'n02808440_1': official.image('JPEG', 2),
    'n03642806_1': official.image('JPEG', 3),
    'n03887697_1': official.image('JPEG', 4),
    'n04008634_1': official.image('JPEG', 5),
    'n04356056_10': photo(semi['n04355933/n04356056_10'], 6),
    'n04493381_1': official.image('JPEG', 7),
    'n20000919_3': photo(semi['n20000919/n20000919_3'], 8),
    'n09999999_1': official.image('JPEG', 9),  # Of no class.
  }
  images = {
    1: photo([[0] * 4], 11),
    2: official.image('JPEG', 12),
    3: photo([[0] * 3], 13),
  }
  official.imagenet_train(source, train)
  official.imagenet_val(source, images)
  first, second, third = (official.val_name(i) for i in (1, 2, 3))
  mappings = {
    'validation': [
      (f'n04493381/{third}', f'n02808440/{third}'),
      (f'n03887697/{first}', f'n15075141/{first}'),
    ],
    'test': [(f'n04008634/{second}', f'n03773504/{second}')],
  }
  official.imagenet_s(source, 919, IMAGENET_S_919, list(semi), mappings)
  official.imagenet_s_masks(source, 919, semi, val)
  table = {i: i for i in range(920)}
  return {
    'train': [
      Expected(f'{wnid}/{key}', train[key], None, [class_id])
      for wnid, key, class_id in (
        ('n01000255', 'n01000255_1', 255),
        ('n02808440', 'n02808440_1', 256),
        ('n02808440', 'n04493381_1', 256),
        ('n03773504', 'n04008634_1', 257),
        ('n03832673', 'n03642806_1', 258),
        ('n04355933', 'n04356056_10', 259),
        ('n15075141', 'n03887697_1', 260),
        ('n20000919', 'n20000919_3', 919),
      )
    ],
    'train_semi': [
      labeled(name, train[name[10:]], values, table)
      for name, values in semi.items()
    ],
    'val': [
      labeled(name, images[int(name[-1])], values, table)
      for name, values in val.items()
    ],
    'test': [Expected(f'n03773504/{second}', images[2], None, [257])],
  }


# Name of the data set, and what writes its archives, by name of the case.
CASES = {
  'voc2012': ('voc2012', voc2012),
  **{
    f'context_{number}_{labels}': (
      f'pascal_context/{number}',
      functools.partial(pascal_context, labels=labels, table=table),
    )
    for labels in ('mats', 'json')
    for number, table in ((59, CONTEXT_59), (60, CONTEXT_60))
  },
  'ade20k': ('ade20k', ade20k),
  'cityscapes_fine': ('cityscapes/fine', cityscapes_fine),
  'cityscapes_coarse': ('cityscapes/coarse', cityscapes_coarse),
  'gta5': ('gta5', gta5),
  'synthia': ('synthia', synthia),
  'imagenet_1k': ('imagenet/1k', imagenet),
  'imagenet_21k': ('imagenet/21k', imagenet_21k),
  'imagenet_s_50': ('imagenet_s/50', imagenet_s_50),
  'imagenet_s_300': ('imagenet_s/300', imagenet_s_300),
  'imagenet_s_919': ('imagenet_s/919', imagenet_s_919),
}


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A case whose archives were prepared."""

  name: str  # Of the data set.
  source: pathlib.Path
  data_dir: pathlib.Path
  expected: dict
  printed: str

  def open(self, split):
    options = datasets.DataOptions(self.name)
    return datasets.open_split(options, split, str(self.data_dir))

  def builder(self):
    return datasets.builder(datasets.DataOptions(self.name), str(self.data_dir))


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """Prepares a case, once."""

  @functools.cache
  def make(case):
    name, write = CASES[case]
    folder = tmp_path_factory.mktemp(case)
    source, data_dir = folder / 'archives', folder / 'records'
    expected = write(source)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      options = datasets.DataOptions(name, source=str(source))
      datasets.prepare(options, str(data_dir))
    return Prepared(name, source, data_dir, expected, printed.getvalue())

  return make


@pytest.fixture(autouse=True)
def no_source(monkeypatch):
  monkeypatch.delenv('SEG_DATA_DIR', raising=False)


def splits_of(name, source, tmp_path, splits):
  """Records of some splits, prepared from a source."""
  options = datasets.DataOptions(name, source=str(source))
  return {
    split: found_in(
      datasets.open_split(options, split, str(tmp_path / 'records'))
    )
    for split in splits
  }


def refusal(name, source, tmp_path):
  """The error message about a source."""
  options = datasets.DataOptions(name, source=str(source))
  with pytest.raises(errors.UserError) as caught:
    datasets.builder(options, str(tmp_path / 'records')).check()
  message = str(caught.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize('case', CASES)
def test_records_open_without_their_source(prepared, case):
  made = prepared(case)
  with moved_away(made.source):
    for split, expected in made.expected.items():
      opened = made.open(split)
      has_no_label = all(record.label is None for record in expected)
      assert ('label' in opened.label_kinds) != has_no_label
      assert found_in(opened) == expected
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


@pytest.mark.parametrize('case', CASES)
def test_folders_give_the_records_of_the_archives(prepared, case, tmp_path):
  made = prepared(case)
  official.extract(made.source, tmp_path / 'folders')
  actual = splits_of(made.name, tmp_path / 'folders', tmp_path, made.expected)
  assert actual == made.expected


@pytest.mark.parametrize('case', CASES)
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
  builder = datasets.builder(options, str(tmp_path))
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


@pytest.mark.parametrize('case', CASES)
def test_a_folder_without_the_data_set_is_refused(case, tmp_path):
  name, _ = CASES[case]
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'notes.txt').write_text('nothing')
  message = refusal(name, tmp_path / 'other', tmp_path)
  assert message.startswith(f'source: expected {name.partition("/")[0]} as ')
  assert f', got {tmp_path}/other without ' in message


def write_one(name, source, values):
  """A source in which one mask has the given values; its file."""
  jpeg, png = photo(values, 1), photo(values, 1, 'PNG')
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
  assert f', got {wrong} (1 pixels)' in message


def test_an_image_without_a_mask_is_refused(prepared, tmp_path):
  official.extract(prepared('ade20k').source, tmp_path / 'source')
  root = tmp_path / 'source' / 'ADEChallengeData2016'
  (root / 'annotations/training/ADE_train_00000002.png').unlink()
  assert refusal('ade20k', tmp_path / 'source', tmp_path).startswith(
    f'{root}/images/training/ADE_train_00000002.jpg: has no mask'
  )


def test_a_listed_image_that_is_missing_is_refused(prepared, tmp_path):
  official.extract(prepared('voc2012').source, tmp_path / 'source')
  root = tmp_path / 'source' / 'VOCdevkit' / 'VOC2012'
  (root / 'JPEGImages/2007_000061.jpg').unlink()
  assert refusal('voc2012', tmp_path / 'source', tmp_path).startswith(
    f'{root}/ImageSets/Segmentation/val.txt: lists 2007_000061, which has no '
    'image'
  )


def test_a_city_with_a_hyphen(tmp_path):
  examples = streets(
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
    labeled(name, *example, CITYSCAPES) for name, example in examples.items()
  ]


def test_cityscapes_with_all_archives_in_one_folder(tmp_path):
  source = tmp_path / 'source'
  fine = cityscapes_fine(source)
  coarse = cityscapes_coarse(source)
  assert splits_of('cityscapes/fine', source, tmp_path, fine) == fine
  assert splits_of('cityscapes/coarse', source, tmp_path, coarse) == coarse


def test_gta5_masks_of_another_size_are_skipped_and_reported(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(datasets, '_PRINTED_REPORTS', set())
  examples = streets({'00001': [[7, 0]], '00002': [[8, 0]], '00003': [[9, 11]]})
  png, _ = examples['00002']
  official.gta5(
    tmp_path / 'source', [{**examples, '00002': (png, [[8], [8], [8]])}]
  )
  actual = splits_of('gta5', tmp_path / 'source', tmp_path, ['train'])
  assert actual['train'] == [
    labeled(name, *examples[name], CITYSCAPES) for name in ('00001', '00003')
  ]
  printed = capsys.readouterr().out
  assert '1 files are skipped:' in printed
  assert (
    f'{tmp_path}/source/01_labels.zip:labels/00002.png: expected a mask of 2x1 '
    'pixels as its image, got 1x3'
  ) in printed
  # Skipped files are reported once in every process that opens the data set.
  splits_of('gta5', '', tmp_path, ['train'])
  assert 'labels/00002.png' not in capsys.readouterr().out
  datasets._PRINTED_REPORTS.clear()
  splits_of('gta5', '', tmp_path, ['train'])
  assert 'labels/00002.png: expected a mask of 2x1' in capsys.readouterr().out


def test_synthia_masks_of_eight_bits_are_refused(tmp_path):
  official.synthia(tmp_path / 'source', streets({'0000000': [[3, 4]]}))
  file = tmp_path / 'source/RAND_CITYSCAPES/GT/LABELS/0000000.png'
  file.write_bytes(official.gray_png([[3, 4]]))
  message = refusal('synthia', tmp_path / 'source', tmp_path)
  assert message.startswith(
    f'{file}: expected 16 bits in three channels, got uint8 pixels of shape '
    '(1, 2)'
  )


def test_imagenet_in_folders_of_classes(tmp_path):
  train = train_images()
  val = {i: official.image('JPEG', 10 + i) for i in (1, 2, 3, 4)}
  classes = {1: 'n01443537', 2: 'n02105855', 3: 'n01440764', 4: 'n01443537'}
  official.imagenet_folders(
    tmp_path / 'source', train, {(classes[i], i): val[i] for i in val}
  )
  actual = splits_of(
    'imagenet', tmp_path / 'source', tmp_path, ['train', 'val']
  )
  assert actual == {'train': of_train(train), 'val': of_val(val)}


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
  train = train_images()
  source = tmp_path / 'source'
  official.imagenet_train(source, train, 'fall11_whole.tar')
  shutil.unpack_archive(source / 'fall11_whole.tar', tmp_path / 'classes')
  members = {
    f'winter21_whole/{path.name}': path.read_bytes()
    for path in (tmp_path / 'classes').iterdir()
  }
  (source / 'fall11_whole.tar').unlink()
  official.write_archive(source / 'winter21_whole.tar.gz', members)
  actual = splits_of('imagenet/21k', source, tmp_path, ['train'])
  assert actual == {'train': of_train(train)}


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
  official.imagenet_devkit(source, wnids, [3, 1])
  assert 'ground_truth' in refusal('imagenet', source, tmp_path)


def test_imagenet_s_with_the_older_list_name(prepared, tmp_path):
  made = prepared('imagenet_s_50')
  source = tmp_path / 'source'
  shutil.copytree(made.source, source)
  (source / 'data/names/ImageNetS_im50_train_semi.txt').unlink()
  names = [record.id for record in made.expected['train_semi']]
  official.imagenet_s(source, 50, IMAGENET_S_50, names, {}, older=True)
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
  with pytest.raises(errors.UserError, match=rf', got {value} \(1 pixels\)'):
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


def ten_scenes(source):
  """Seven images of train and three of val."""
  splits = {
    split: {
      f'ADE_{split}_{i:08}': (photo([[i, 0]], 10 * count + i), [[i, 0]])
      for i in range(1, count + 1)
    }
    for split, count in (('train', 7), ('val', 3))
  }
  official.ade20k(source, splits)
  return source


def ten_streets(source):
  """Ten images; 3, 4 and 8 have masks of another size."""
  examples = streets({f'{i:05}': [[6 + i, 0]] for i in range(1, 11)})
  for name in ('00003', '00004', '00008'):
    examples[name] = (examples[name][0], [[7], [7]])
  official.gta5(source, [examples])
  return source


@pytest.fixture
def small_shards(monkeypatch):
  """Two images a shard; pages are empty."""
  monkeypatch.setattr(shards, 'IMAGES_PER_SHARD', 2)
  monkeypatch.setattr(report, 'draw', lambda path, *_: path.touch())


@pytest.fixture
def read(monkeypatch):
  """How often each image was read by a builder, by id."""
  counts = collections.Counter()

  sample = files.FileBuilder.read_sample

  def counted(self, source):
    counts[source.id] += 1
    return sample(self, source)

  monkeypatch.setattr(files.FileBuilder, 'read_sample', counted)
  return counts


def run(name, source, data_dir, *flags):
  return prepare.main(
    [name, f'--source={source}', f'--data_dir={data_dir}', *flags]
  )


def files_below(folder):
  """Bytes of all files."""
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


@pytest.mark.parametrize(
  ('name', 'write', 'lengths'),
  [
    ('ade20k', ten_scenes, {'train': [1, 2, 2, 2], 'val': [1, 2]}),
    # The second of five shards has no record, the fourth has one.
    ('gta5', ten_streets, {'train': [2, 2, 1, 2]}),
  ],
)
def test_shard_subsets_write_the_same_files_as_one_process(
  name, write, lengths, tmp_path, small_shards, read, capsys
):
  source = write(tmp_path / 'source')
  assert run(name, source, tmp_path / 'whole') == 0
  assert set(read.values()) == {1}
  assert len(read) == 10
  printed = capsys.readouterr().out
  read.clear()
  parts = tmp_path / 'parts'
  for part in ('2/3', '0/3'):
    assert run(name, source, parts, f'--shard={part}') == 0
    assert 'shards are written; the process' in capsys.readouterr().out
  assert not (parts / name).exists()
  assert run(name, source, parts, '--shard=1/3') == 0
  assert set(read.values()) == {1}
  assert len(read) == 10
  assert capsys.readouterr().out == printed.replace(
    str(tmp_path / 'whole'), str(parts)
  )
  whole = files_below(tmp_path / 'whole' / name)
  assert files_below(parts / name) == whole
  records = [path for path in whole if '.array_record-' in path]
  assert len(records) == sum(len(actual) for actual in lengths.values())
  # Of the work in progress nothing is left.
  assert not any((parts / '.parts').rglob('*.array_record*'))
  for split, actual in lengths.items():
    opened = datasets.open_split(datasets.DataOptions(name), split, str(parts))
    info = datasets.builder(datasets.DataOptions(name), str(parts)).info
    assert info.splits[split].shard_lengths == actual
    assert [r['id'].decode() for r in opened.records] == opened.ids()


def test_rerunning_a_shard_subset_reads_nothing(
  tmp_path, small_shards, read, capsys
):
  source = ten_scenes(tmp_path / 'source')
  for _ in range(2):
    assert run('ade20k', source, tmp_path / 'records', '--shard=1/3') == 0
    assert capsys.readouterr().out.startswith('2 of 6 shards are written')
  # The second and the fifth of the shards of 1 + 2 + 2 + 2 and 1 + 2 images.
  assert dict(read) == {
    'ADE_train_00000002': 1,
    'ADE_train_00000003': 1,
    'ADE_val_00000001': 1,
  }


def ctrl_c():
  raise KeyboardInterrupt


def sigterm():
  signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize('stop', [ctrl_c, sigterm])
@pytest.mark.parametrize('flags', [(), ('--shard=0/1',)])
def test_an_interrupted_run_continues(
  flags, stop, tmp_path, small_shards, read, monkeypatch, capsys
):
  source = ten_scenes(tmp_path / 'source')
  assert run('ade20k', source, tmp_path / 'whole') == 0
  read.clear()
  counted = files.FileBuilder.read_sample

  def interrupted(self, source):
    if source.id == 'ADE_train_00000005':
      stop()
    return counted(self, source)

  again = tmp_path / 'again'
  with monkeypatch.context() as patch:
    patch.setattr(files.FileBuilder, 'read_sample', interrupted)
    assert run('ade20k', source, again, *flags) == 75
  captured = capsys.readouterr()
  assert captured.err.endswith(
    'interrupted: finished shards are kept, the same command continues\n'
  )
  assert not (again / 'ade20k' / '1.0.0').exists()
  # The third shard is of images 4 and 5; nothing of it is left.
  unfinished = [path for path in again.rglob('train-00002*')]
  assert unfinished == []
  assert {f'ADE_train_{i:08}' for i in (1, 2, 3)} <= set(read)
  read.clear()
  assert run('ade20k', source, again, *flags) == 0
  assert dict(read) == {
    **{f'ADE_train_{i:08}': 1 for i in (4, 5, 6, 7)},
    **{f'ADE_val_{i:08}': 1 for i in (1, 2, 3)},
  }
  assert files_below(again / 'ade20k') == files_below(
    tmp_path / 'whole' / 'ade20k'
  )


@pytest.mark.parametrize('stop', [ctrl_c, sigterm])
def test_an_interrupted_check_writes_nothing(
  stop, tmp_path, monkeypatch, capsys
):
  source = ten_scenes(tmp_path / 'source')
  monkeypatch.setattr(files.FileBuilder, 'read_sample', lambda *_: stop())
  before = signal.getsignal(signal.SIGTERM)
  assert run('ade20k', source, tmp_path / 'records', '--check') == 75
  assert capsys.readouterr().err == 'interrupted: nothing was written\n'
  assert signal.getsignal(signal.SIGTERM) is before


def test_check_refuses_a_shard_subset(tmp_path, capsys):
  assert run('ade20k', tmp_path, tmp_path, '--check', '--shard=0/2') == 2
  assert capsys.readouterr().err == (
    'error: --shard=0/2 contradicts --check, which reads all files: remove one '
    'of them\n'
  )


def test_prepared_files_are_not_read_again(tmp_path, read, capsys):
  source, records_dir = ten_scenes(tmp_path / 'source'), tmp_path / 'records'
  assert run('ade20k', source, records_dir) == 0
  folder = records_dir / 'ade20k' / '1.0.0'
  audited = (folder / 'audit.txt').read_text()
  first = capsys.readouterr().out
  assert first.startswith(audited)
  read.clear()
  assert run('ade20k', tmp_path / 'elsewhere', records_dir) == 0
  assert capsys.readouterr().out == (
    'ade20k was prepared before, its files are not read again; their audit is '
    f'in {folder}/audit.txt\n{first.removeprefix(audited)}'
  )
  assert not read


def test_shards_of_changed_files_are_written_again(
  tmp_path, small_shards, read
):
  official.extract(ten_scenes(tmp_path / 'zip'), tmp_path / 'source')
  records_dir = tmp_path / 'records'
  assert run('ade20k', tmp_path / 'source', records_dir, '--shard=0/2') == 0
  root = tmp_path / 'source' / 'ADEChallengeData2016'
  mask = root / 'annotations/training/ADE_train_00000001.png'
  mask.write_bytes(official.gray_png([[150, 150]]))
  assert run('ade20k', tmp_path / 'source', records_dir, '--shard=1/2') == 0
  assert read['ADE_train_00000001'] == 1
  assert run('ade20k', tmp_path / 'source', records_dir) == 0
  assert read['ADE_train_00000001'] == 2
  assert set(read.values()) == {1, 2}
  split = datasets.open_split(
    datasets.DataOptions('ade20k'), 'train', str(records_dir)
  )
  assert found_in(split)[0].label == [[149, 149]]


def test_a_bad_file_of_another_shard_subset_is_reported_at_the_end(
  tmp_path, small_shards, read, capsys
):
  official.extract(ten_scenes(tmp_path / 'zip'), tmp_path / 'source')
  arguments = ('ade20k', tmp_path / 'source', tmp_path / 'records')
  root = tmp_path / 'source' / 'ADEChallengeData2016'
  mask = root / 'annotations/training/ADE_train_00000003.png'
  whole = mask.read_bytes()
  mask.write_bytes(official.gray_png([[151, 0]]))
  assert run(*arguments, '--shard=1/2') == 0  # Judged when all are there.
  assert run(*arguments, '--shard=0/2') == 2
  assert capsys.readouterr().err.startswith(
    f'error: {mask}: expected values 1…150, '
  )
  mask.write_bytes(whole)
  read.clear()
  assert run(*arguments, '--shard=0/2') == 0
  assert 'ADE_train_00000003' not in read  # It is of the other part.
  assert run(*arguments, '--shard=1/2') == 0
  assert dict(read) == {'ADE_train_00000002': 1, 'ADE_train_00000003': 1}
  split = datasets.open_split(
    datasets.DataOptions('ade20k'), 'train', str(tmp_path / 'records')
  )
  assert [record.label for record in found_in(split)] == [
    [[i, -1]] for i in range(7)
  ]


def test_changed_annotations_are_read_again(tmp_path, small_shards, read):
  masks = {
    name: [[2, 9]] for name in ('2008_000002', '2008_000003', '2008_000007')
  }
  lists = {'train': list(masks)[:2], 'val': list(masks)[2:]}
  phases = {name: split for split in lists for name in lists[split]}
  source = tmp_path / 'source'
  official.voc2010(source, dict.fromkeys(masks, photo([[0, 0]], 1)), lists)
  official.detail_json(source, masks, phases)
  arguments = ('pascal_context/59', source, tmp_path / 'records')
  assert run(*arguments, '--shard=0/2') == 0
  official.detail_json(source, {**masks, '2008_000002': [[2, 458]]}, phases)
  assert run(*arguments) == 0
  split = datasets.open_split(
    datasets.DataOptions('pascal_context/59'),
    'train',
    str(tmp_path / 'records'),
  )
  assert found_in(split)[0].label == [[0, 58]]


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
