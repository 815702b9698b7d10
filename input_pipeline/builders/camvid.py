"""CamVid: street scenes from a driving car, with 11 classes.

G. J. Brostow, J. Fauqueur, R. Cipolla: Semantic object classes in video, 2009;
reduced to 480x360 pixels and 11 classes as in V. Badrinarayanan, A. Kendall,
R. Cipolla: SegNet, 2017. The frames of a split are consecutive, and those of
`val` lie within a sequence of `train`: scores on it are optimistic.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import files
from input_pipeline.sources import archives, masks, pairing, records

SPLITS = ('train', 'val')
CLASSES = (
  'Sky',
  'Building',
  'Pole',
  'Road',
  'Pavement',
  'Tree',
  'SignSymbol',
  'Fence',
  'Car',
  'Pedestrian',
  'Bicyclist',
)
PALETTE = (
  (128, 128, 128),
  (128, 0, 0),
  (192, 192, 128),
  (128, 64, 128),
  (60, 40, 222),
  (128, 128, 0),
  (192, 128, 128),
  (64, 64, 128),
  (64, 0, 128),
  (64, 64, 0),
  (0, 128, 192),
)
UNLABELED = 11

TABLE = masks.make_code_table(range(len(CLASSES)), ignored=(UNLABELED,))


class Camvid(files.OfficialBuilder):
  """CamVid with 11 classes, from SOURCE/{train,val}/{images,labels}.

  Images are JPEG files, labels PNG files of class ids with 11 where nothing is
  labeled. Ids are 'train/NAME'. Tags are the classes in the mask.
  """

  VERSION = tfds.core.Version('1.1.0')
  counts: ClassVar = {'train': 367, 'val': 101}

  def schema(self) -> records.Schema:
    """Returns the 11 classes."""
    return records.Schema(CLASSES, PALETTE, labels=True, tags=True)

  def find_examples(
    self, sources: files.Files
  ) -> Mapping[str, pairing.Listing]:
    """Pairs images and masks of the same names."""
    return {split: self._pair(sources, split) for split in SPLITS}

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads values, of which 11 is ignored."""
    return TABLE.apply(masks.read_mask_values(file))

  def _pair(self, sources: files.Files, split: str) -> pairing.Listing:
    images = files.match_source_files(
      sources, rf'{split}/images/(?P<id>[^/]+)\.(?:jpe?g|png)'
    )
    labels = files.match_source_files(
      sources, rf'{split}/labels/(?P<id>[^/]+)\.png'
    )
    self.require_files({f'{split}/images': images, f'{split}/labels': labels})
    return files.pair_images_and_masks(
      images,
      images,
      labels,
      split,
      official_name=lambda stem: f'{split}/{stem}',
    )
