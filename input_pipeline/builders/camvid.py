"""CamVid: street scenes from a driving car, 11 classes.

G. J. Brostow, J. Fauqueur, R. Cipolla: Semantic object classes in video, 2009;
in the cut to 480x360 pixels and 11 classes of V. Badrinarayanan, A. Kendall,
R. Cipolla: SegNet, 2017. The frames of a split follow each other in time, and
those of `val` lie within a sequence of `train`: its scores are optimistic.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import files
from input_pipeline.sources import archives, audit, masks, records

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

TABLE = masks.table_of(range(len(CLASSES)), ignored=(UNLABELED,))


class Camvid(files.Official):
  """CamVid with 11 classes, from SOURCE/{train,val}/{images,labels}.

  Images are JPEG files, labels PNG files of class ids with 11 where nothing is
  labeled. Ids are 'train/NAME'. Tags are the classes in the mask.
  """

  VERSION = tfds.core.Version('1.1.0')
  layout = '{train,val}/{images,labels}'
  counts: ClassVar = {'train': 367, 'val': 101}

  def contents(self) -> records.Contents:
    """Eleven classes, with masks and tags."""
    return records.Contents(CLASSES, PALETTE, labels=True, tags=True)

  def find(self, found: files.Files) -> Mapping[str, audit.Listing]:
    """Images and masks of the same names, split by split."""
    return {split: self._find(found, split) for split in SPLITS}

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Eleven values, and one that is ignored."""
    return TABLE.apply(masks.read_values(file))

  def _find(self, found: files.Files, split: str) -> audit.Listing:
    images = files.pick(found, rf'{split}/images/(?P<id>[^/]+)\.(?:jpe?g|png)')
    labels = files.pick(found, rf'{split}/labels/(?P<id>[^/]+)\.png')
    for what, there in (('images', images), ('labels', labels)):
      if not there:
        raise self.missing(f'{split}/{what}')
    return files.examples_of(
      images, images, labels, split, name=lambda stem: f'{split}/{stem}'
    )
