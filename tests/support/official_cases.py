"""The published benchmarks as small archives, with the records they must give.

Expected class ids are written out here, independently of the builders.
"""

import dataclasses
import functools

import numpy as np

from input_pipeline.sources import records
from tests.support import official, official_imagenet

# Class id of values that are not in the tables below.
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
# Folder of the class, image, and class id; merged classes are in one folder.
IMAGENET_S_919_TRAIN = (
  ('n01000255', 'n01000255_1', 255),
  ('n02808440', 'n02808440_1', 256),
  ('n02808440', 'n04493381_1', 256),
  ('n03773504', 'n04008634_1', 257),
  ('n03832673', 'n03642806_1', 258),
  ('n04355933', 'n04356056_10', 259),
  ('n15075141', 'n03887697_1', 260),
  ('n20000919', 'n20000919_3', 919),
)
IMAGENET_S_300 = tuple(f'n0200{i:04}' for i in range(1, 301))


@dataclasses.dataclass(frozen=True)
class Expected:
  """The expected content of a record."""

  id: str
  image: bytes
  label: list | None  # Rows of class ids.
  tags: list


def grid(values, width):
  """Arranges values in rows; repeats the first values in the last row."""
  return np.resize(values, (-(-len(values) // width), width)).tolist()


def photo(values, seed, kind='JPEG'):
  """Returns an image of the size of a mask."""
  return official.image(kind, seed, len(values), len(values[0]))


def labeled(name, image, values, table):
  """Returns the record of an image and its mask, by a table of class ids."""
  label = [[table.get(value, IGNORED) for value in row] for row in values]
  tags = sorted({i for row in label for i in row} - {IGNORED})
  return Expected(name, image, label, tags)


def read_records(split):
  """Reads the records of a split as `Expected`."""
  return [
    Expected(
      record['id'].decode(),
      record['image'],
      records.decode_record_label(record['label']).tolist()
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
  """Writes Pascal Context with labels as `mats` or `json`."""
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


def ten_scenes(source):
  """Writes seven images of train and three of val."""
  splits = {
    split: {
      f'ADE_{split}_{i:08}': (photo([[i, 0]], 10 * count + i), [[i, 0]])
      for i in range(1, count + 1)
    }
    for split, count in (('train', 7), ('val', 3))
  }
  official.ade20k(source, splits)
  return source


def streets(masks):
  """Returns (PNG, values) for each mask."""
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
  """Returns images of ImageNet's train, one in CMYK and one PNG named .JPEG."""
  return {
    'n02105855_2933': official.image('PNG', 1),
    'n02105855_10': official.image('JPEG', 2),
    'n01440764_2': official.image('JPEG', 3, mode='L'),
    'n01440764_10026': official.image('JPEG', 4, mode='CMYK'),
    'n01443537_10': official.image('JPEG', 5),
  }


def train_records(images):
  """Returns the records of `train_images`."""
  numbers = {'n01440764': 0, 'n01443537': 1, 'n02105855': 2}
  names = [
    *('n01440764_10026', 'n01440764_2', 'n01443537_10'),
    *('n02105855_10', 'n02105855_2933'),
  ]
  return [
    Expected(f'{name[:9]}/{name}', images[name], None, [numbers[name[:9]]])
    for name in names
  ]


def val_records(images):
  """Returns the records of val, with images of the classes 1, 2, 0 and 1."""
  return [
    Expected(f'{wnid}/{official_imagenet.val_name(i)}', images[i], None, [tag])
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
  official_imagenet.imagenet_train(source, train)
  official_imagenet.imagenet_val(source, val)
  wnids = ['n02105855', 'n01440764', 'n01443537']
  official_imagenet.imagenet_devkit(source, wnids, [3, 1, 2, 3])
  return {'train': train_records(train), 'val': val_records(val)}


def imagenet_21k(source):
  train = train_images()
  official_imagenet.imagenet_train(source, train, 'fall11_whole.tar')
  return {'train': train_records(train)}


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
  official_imagenet.imagenet_train(source, train)
  official_imagenet.imagenet_val(source, images)
  mappings = {
    'validation': [
      (name.replace('n01491361', 'n01440764'), name) for name in val
    ],
    'test': [
      ('n01440764/ILSVRC2012_val_00000008', 'n12998815/ILSVRC2012_val_00000008')
    ],
  }
  official_imagenet.imagenet_s(source, 50, IMAGENET_S_50, list(semi), mappings)
  official_imagenet.imagenet_s_masks(source, 50, semi, val)
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
  """Writes a variant without merges, whose labels are stored in 16 bits."""
  name = 'n02000300/n02000300_1'
  of_val = 'n02000256/ILSVRC2012_val_00000001'
  values = grid([*range(301), 1000], 20)
  train = {
    'n02000300_1': photo(values, 1),
    'n04356056_1': official.image('JPEG', 2),
  }
  images = {1: photo([[256]], 3), 2: official.image('JPEG', 4)}
  of_test = 'n02000001/ILSVRC2012_val_00000002'
  official_imagenet.imagenet_train(source, train)
  official_imagenet.imagenet_val(source, images)
  mappings = {'validation': [(of_val, of_val)], 'test': [(of_test, of_test)]}
  official_imagenet.imagenet_s(source, 300, IMAGENET_S_300, [name], mappings)
  official_imagenet.imagenet_s_masks(
    source, 300, {name: values}, {of_val: [[256]]}
  )
  table = {i: i for i in range(301)}
  return {
    'train': [Expected(name, train['n02000300_1'], None, [300])],
    'train_semi': [labeled(name, train['n02000300_1'], values, table)],
    'val': [labeled(of_val, images[1], [[256]], table)],
    'test': [Expected(of_test, images[2], None, [1])],
  }


def imagenet_s_919(source):
  """Writes images of merged classes in the folders of the merged classes."""
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
  official_imagenet.imagenet_train(source, train)
  official_imagenet.imagenet_val(source, images)
  first, second, third = (official_imagenet.val_name(i) for i in (1, 2, 3))
  mappings = {
    'validation': [
      (f'n04493381/{third}', f'n02808440/{third}'),
      (f'n03887697/{first}', f'n15075141/{first}'),
    ],
    'test': [(f'n04008634/{second}', f'n03773504/{second}')],
  }
  official_imagenet.imagenet_s(
    source, 919, IMAGENET_S_919, list(semi), mappings
  )
  official_imagenet.imagenet_s_masks(source, 919, semi, val)
  table = {i: i for i in range(920)}
  return {
    'train': [
      Expected(f'{wnid}/{key}', train[key], None, [class_id])
      for wnid, key, class_id in IMAGENET_S_919_TRAIN
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
    f'context_{count}_{labels}': (
      f'pascal_context/{count}',
      functools.partial(pascal_context, labels=labels, table=table),
    )
    for labels in ('mats', 'json')
    for count, table in ((59, CONTEXT_59), (60, CONTEXT_60))
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
