"""Pascal VOC 2012 segmentation, with the SBD annotations of U2PL and others.

M. Everingham et al.: The Pascal Visual Object Classes challenge, 2010.
B. Hariharan et al.: Semantic contours from inverse detectors, 2011 (SBD).

`train_aug` is what the field calls trainaug: all images that either of them
has annotated but those of VOC's val; VOC's own masks where there are some.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import files
from input_pipeline.sources import archives, audit, masks, records

CLASSES = (
  *('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus'),
  *('car', 'cat', 'chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike'),
  *('person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'),
)
VOID = 255
TABLE = masks.table_of(range(len(CLASSES)), ignored=(VOID,))


class Voc2012(files.Official):
  """Pascal VOC 2012 with 21 classes: train, val, train_aug.

  Ids are those of VOC ('2007_000027'). Tags are the classes in the mask.
  """

  VERSION = tfds.core.Version('1.0.0')
  patterns = ('VOCtrainval*2012*.tar', 'benchmark*.tgz', 'benchmark*.tar*')
  layout = (
    'VOCtrainval_11-May-2012.tar and benchmark.tgz (of SBD), or what is in them'
  )
  counts: ClassVar = {'train': 1464, 'val': 1449, 'train_aug': 10582}

  def contents(self) -> records.Contents:
    """The background and 20 classes."""
    return records.Contents(CLASSES, masks.palette(len(CLASSES)), tags=True)

  def find(self, found: files.Files) -> Mapping[str, audit.Listing]:
    """The official lists, and the union that trainaug is."""
    images = files.pick(found, r'VOC2012/JPEGImages/(?P<id>\w+)\.jpg')
    fine = files.pick(found, r'VOC2012/SegmentationClass/(?P<id>\w+)\.png')
    sets = r'VOC2012/ImageSets/Segmentation/(?P<id>train|val)\.txt'
    lists = files.pick(found, sets)
    coarse = files.pick(found, r'dataset/cls/(?P<id>\w+)\.mat')
    for what, there in (
      ('VOC2012/JPEGImages/*.jpg', images),
      ('VOC2012/SegmentationClass/*.png', fine),
      ('VOC2012/ImageSets/Segmentation/{train,val}.txt', len(lists) == 2),
      ('dataset/cls/*.mat (of SBD)', coarse),
    ):
      if not there:
        raise self.missing(what)
    ids = {split: files.read_list(file) for split, file in lists.items()}
    ids['train_aug'] = sorted({*coarse, *ids['train']} - {*ids['val']})
    of = {'train': fine, 'val': fine, 'train_aug': coarse | fine}
    return {
      split: files.examples_of(
        ids[split], images, of[split], str(lists.get(split, 'SBD'))
      )
      for split in self.counts
    }

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """VOC's palette PNG, or SBD's `.mat` of class indices."""
    if file.name.endswith('.mat'):
      values = files.read_mat(file, 'GTcls', 'Segmentation')
    else:
      values = masks.read_values(file)
    return TABLE.apply(values)
