"""ADE20K as in the scene parsing challenge of 2016, with 150 classes.

B. Zhou et al.: Scene parsing through ADE20K dataset, 2017.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import files
from input_pipeline.sources import archives, masks, pairing, records

CLASSES = (
  'wall', 'building', 'sky', 'floor', 'tree', 'ceiling', 'road', 'bed',
  'windowpane', 'grass', 'cabinet', 'sidewalk', 'person', 'earth', 'door',
  'table', 'mountain', 'plant', 'curtain', 'chair', 'car', 'water',
  'painting', 'sofa', 'shelf', 'house', 'sea', 'mirror', 'rug', 'field',
  'armchair', 'seat', 'fence', 'desk', 'rock', 'wardrobe', 'lamp',
  'bathtub', 'railing', 'cushion', 'base', 'box', 'column', 'signboard',
  'chest of drawers', 'counter', 'sand', 'sink', 'skyscraper', 'fireplace',
  'refrigerator', 'grandstand', 'path', 'stairs', 'runway', 'case',
  'pool table', 'pillow', 'screen door', 'stairway', 'river', 'bridge',
  'bookcase', 'blind', 'coffee table', 'toilet', 'flower', 'book', 'hill',
  'bench', 'countertop', 'stove', 'palm', 'kitchen island', 'computer',
  'swivel chair', 'boat', 'bar', 'arcade machine', 'hovel', 'bus', 'towel',
  'light', 'truck', 'tower', 'chandelier', 'awning', 'streetlight',
  'booth', 'television receiver', 'airplane', 'dirt track', 'apparel',
  'pole', 'land', 'bannister', 'escalator', 'ottoman', 'bottle', 'buffet',
  'poster', 'stage', 'van', 'ship', 'fountain', 'conveyer belt', 'canopy',
  'washer', 'plaything', 'swimming pool', 'stool', 'barrel', 'basket',
  'waterfall', 'tent', 'bag', 'minibike', 'cradle', 'oven', 'ball',
  'food', 'step', 'tank', 'trade name', 'microwave', 'pot', 'animal',
  'bicycle', 'lake', 'dishwasher', 'screen', 'blanket', 'sculpture',
  'hood', 'sconce', 'vase', 'traffic light', 'tray', 'ashcan', 'fan',
  'pier', 'crt screen', 'plate', 'monitor', 'bulletin board', 'shower',
  'radiator', 'glass', 'clock', 'flag',
)  # fmt: skip
# Value 0 is 'other'; value k is class k - 1.
TABLE = masks.make_code_table(range(1, len(CLASSES) + 1), ignored=(0,))

_FOLDERS = {'train': 'training', 'val': 'validation'}


class Ade20k(files.OfficialBuilder):
  """ADE20K with 150 classes and the splits train and val.

  Ids are the official names ('ADE_train_00000001'). Tags are the classes in the
  mask.
  """

  VERSION = tfds.core.Version('1.0.0')
  patterns = ('ADEChallengeData2016*.zip',)
  counts: ClassVar = {'train': 20210, 'val': 2000}

  def schema(self) -> records.Schema:
    """Returns the 150 classes."""
    return records.Schema(CLASSES, masks.voc_palette(len(CLASSES)), tags=True)

  def find_examples(
    self, sources: files.Files
  ) -> Mapping[str, pairing.Listing]:
    """Pairs images and masks of the same names."""
    listings = {}
    for split, folder in _FOLDERS.items():
      images = files.match_source_files(
        sources, rf'images/{folder}/(?P<id>\w+)\.jpg'
      )
      labels = files.match_source_files(
        sources, rf'annotations/{folder}/(?P<id>\w+)\.png'
      )
      self.require_files(
        {f'images/{folder}/*': images, f'annotations/{folder}/*': labels}
      )
      listings[split] = files.pair_images_and_masks(
        images, images, labels, split
      )
    return listings

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads values, of which 0 is ignored."""
    return TABLE.apply(masks.read_mask_values(file))
