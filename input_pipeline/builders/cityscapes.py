"""Cityscapes: streets of 50 cities, 19 classes.

M. Cordts et al.: The Cityscapes dataset for semantic urban scene understanding,
2016. Masks are the official `labelIds`; the 19 classes ("train ids") are made
here, so nothing has to be run on the download.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import files
from input_pipeline.sources import archives, audit, masks, records

CLASSES = (
  *('road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light'),
  *('traffic sign', 'vegetation', 'terrain', 'sky', 'person', 'rider', 'car'),
  *('truck', 'bus', 'train', 'motorcycle', 'bicycle'),
)
PALETTE = (
  *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156)),
  *((190, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0)),
  *((107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60)),
  *((255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100)),
  *((0, 0, 230), (119, 11, 32)),
)
# The id of each class in `labelIds`.
RAW_IDS = (
  *(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
)
# Ids 0 to 33 are all there are; the license plate's, -1, is written as 255.
TABLE = masks.table_of(RAW_IDS, {*range(34), 255} - {*RAW_IDS})


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
  """Which annotation: `fine` of 5,000 images, or `coarse` of 19,998 others."""

  annotation: str = 'gtFine'
  splits: tuple[str, ...] = ('train', 'val', 'test')


class Cityscapes(files.Official):
  """Cityscapes with 19 classes.

  `fine` has train, val and test, the last without labels; `coarse` has
  train_extra. Ids are the official names ('aachen_000000_000019').
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS: ClassVar = [
    Config('fine'),
    Config('coarse', annotation='gtCoarse', splits=('train_extra',)),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = 'fine'
  patterns = ('leftImg8bit*.zip', 'gtFine*.zip', 'gtCoarse*.zip')

  @property
  def counts(self) -> Mapping[str, int]:
    """Those of the splits of this config."""
    known = {'train': 2975, 'val': 500, 'test': 1525, 'train_extra': 19998}
    return {split: known[split] for split in self.builder_config.splits}

  @property
  def layout(self) -> str:
    """The archives of this config."""
    return {
      'gtFine': 'leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip',
      'gtCoarse': 'leftImg8bit_trainextra.zip and gtCoarse.zip',
    }[self.builder_config.annotation] + ', or what is in them'

  def contents(self) -> records.Contents:
    """19 classes; the test images are not labeled."""
    return records.Contents(CLASSES, PALETTE, tags=True)

  def lacks(self) -> Mapping[str, Sequence[str]]:
    """The masks of test are empty; tags would be made of them."""
    tests = {'test'} & {*self.builder_config.splits}
    return dict.fromkeys(tests, ('label', 'tags'))

  def find(self, found: files.Files) -> Mapping[str, audit.Listing]:
    """Images and masks of all cities, split by split."""
    return {split: self._find(found, split) for split in self.counts}

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Label ids to train ids."""
    return TABLE.apply(masks.read_values(file))

  def _find(self, found: files.Files, split: str) -> audit.Listing:
    kind = self.builder_config.annotation
    images = files.pick(
      found, rf'leftImg8bit/{split}/[^/]+/(?P<id>[^/]+)_leftImg8bit\.png'
    )
    if not images:
      raise self.missing(f'leftImg8bit/{split}/*/*_leftImg8bit.png')
    labels = None
    if split not in self.lacks():
      labels = files.pick(
        found, rf'{kind}/{split}/[^/]+/(?P<id>[^/]+)_{kind}_labelIds\.png'
      )
      if not labels:
        raise self.missing(f'{kind}/{split}/*/*_{kind}_labelIds.png')
    return files.examples_of(images, images, labels, split)
