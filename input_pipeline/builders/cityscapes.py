"""Cityscapes: streets of 50 cities, with 19 classes.

M. Cordts et al.: The Cityscapes dataset for semantic urban scene understanding,
2016. Masks are the official `labelIds`, which are mapped to the 19 classes
("train ids") here; the official scripts need not be run on the download.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import files
from input_pipeline.sources import archives, masks, pairing, records

CLASSES = (
  'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light',
  'traffic sign', 'vegetation', 'terrain', 'sky', 'person', 'rider', 'car',
  'truck', 'bus', 'train', 'motorcycle', 'bicycle',
)  # fmt: skip
PALETTE = (
  (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156),
  (190, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0),
  (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
  (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100),
  (0, 0, 230), (119, 11, 32),
)  # fmt: skip
# The id of each class in `labelIds`.
RAW_IDS = (
  7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33,
)  # fmt: skip
# All other ids are ignored. The license plate's, -1, is stored as 255.
TABLE = masks.make_code_table(RAW_IDS, {*range(34), 255} - {*RAW_IDS})


@dataclasses.dataclass(eq=False)
class CityscapesConfig(tfds.core.BuilderConfig):
  """The annotation: `fine` of 5,000 images, or `coarse` of 19,998 others.

  Attributes:
    annotation: name of the annotation in archives, folders and masks.
    splits: names of the splits.
  """

  annotation: str = 'gtFine'
  splits: tuple[str, ...] = ('train', 'val', 'test')


class Cityscapes(files.OfficialBuilder):
  """Cityscapes with 19 classes.

  `fine` has train, val and test, the last without labels; `coarse` has
  train_extra. Ids are the official names ('aachen_000000_000019').
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS: ClassVar = [
    CityscapesConfig('fine'),
    CityscapesConfig('coarse', annotation='gtCoarse', splits=('train_extra',)),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = 'fine'
  patterns = ('leftImg8bit*.zip', 'gtFine*.zip', 'gtCoarse*.zip')

  @property
  def counts(self) -> Mapping[str, int]:
    """Returns the official number of images of each split of this config."""
    counts = {'train': 2975, 'val': 500, 'test': 1525, 'train_extra': 19998}
    return {split: counts[split] for split in self.builder_config.splits}

  def schema(self) -> records.Schema:
    """Returns the 19 classes."""
    return records.Schema(CLASSES, PALETTE, tags=True)

  def missing_labels(self) -> Mapping[str, Sequence[str]]:
    """Returns both kinds of label for test, whose official masks are empty."""
    tests = {'test'} & {*self.builder_config.splits}
    return dict.fromkeys(tests, ('label', 'tags'))

  def find_examples(
    self, sources: files.Files
  ) -> Mapping[str, pairing.Listing]:
    """Pairs images and masks of all cities."""
    return {split: self._pair(sources, split) for split in self.counts}

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads label ids and maps them to train ids."""
    return TABLE.apply(masks.read_mask_values(file))

  def _pair(self, sources: files.Files, split: str) -> pairing.Listing:
    kind = self.builder_config.annotation
    images = files.match_source_files(
      sources, rf'leftImg8bit/{split}/[^/]+/(?P<id>[^/]+)_leftImg8bit\.png'
    )
    self.require_files({f'leftImg8bit/{split}/*/*_leftImg8bit.png': images})
    labels = None
    if split not in self.missing_labels():
      labels = files.match_source_files(
        sources, rf'{kind}/{split}/[^/]+/(?P<id>[^/]+)_{kind}_labelIds\.png'
      )
      self.require_files({f'{kind}/{split}/*/*_{kind}_labelIds.png': labels})
    return files.pair_images_and_masks(images, images, labels, split)


class RenderedBuilder(files.OfficialBuilder):
  """A data set of rendered streets with the 19 classes; split train.

  Attributes:
    folders: names of the folders of images and of masks, which are PNG files.
    id_pattern: regular expression of a file's name, which is its id.
  """

  folders: ClassVar[tuple[str, str]]
  id_pattern: ClassVar[str]

  def schema(self) -> records.Schema:
    """Returns the 19 classes of Cityscapes."""
    return records.Schema(CLASSES, PALETTE, tags=True)

  def find_examples(
    self, sources: files.Files
  ) -> Mapping[str, pairing.Listing]:
    """Pairs images and masks of the same number."""
    images, labels = (
      files.match_source_files(
        sources, rf'{folder}/(?P<id>{self.id_pattern})\.png'
      )
      for folder in self.folders
    )
    self.require_files(
      {
        f'{folder}/*.png': matches
        for folder, matches in zip(self.folders, (images, labels), strict=True)
      }
    )
    return {
      'train': files.pair_images_and_masks(images, images, labels, 'train')
    }
