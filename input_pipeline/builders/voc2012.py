"""Pascal VOC 2012 segmentation, with the additional annotations of SBD.

M. Everingham et al.: The Pascal Visual Object Classes challenge, 2010.
B. Hariharan et al.: Semantic contours from inverse detectors, 2011 (SBD).

`train_aug`, also known as trainaug, has all images that either of them
annotates except those of VOC's val, with VOC's own masks where they exist.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import files
from input_pipeline.sources import archives, masks, pairing, records

CLASSES = (
  'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus',
  'car', 'cat', 'chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike',
  'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip
VOID = 255
TABLE = masks.make_code_table(range(len(CLASSES)), ignored=(VOID,))


class Voc2012(files.OfficialBuilder):
  """Pascal VOC 2012 with 21 classes and the splits train, val and train_aug.

  Ids are those of VOC ('2007_000027'). Tags are the classes in the mask.
  """

  VERSION = tfds.core.Version('1.0.0')
  patterns = ('VOCtrainval*2012*.tar', 'benchmark*.tgz', 'benchmark*.tar*')
  counts: ClassVar = {'train': 1464, 'val': 1449, 'train_aug': 10582}

  def schema(self) -> records.Schema:
    """Returns the background and 20 classes."""
    return records.Schema(CLASSES, masks.voc_palette(len(CLASSES)), tags=True)

  def find_examples(
    self, sources: files.Files
  ) -> Mapping[str, pairing.Listing]:
    """Pairs images and masks of the official lists, and of their union."""
    images = files.match_source_files(
      sources, r'VOC2012/JPEGImages/(?P<id>\w+)\.jpg'
    )
    fine = files.match_source_files(
      sources, r'VOC2012/SegmentationClass/(?P<id>\w+)\.png'
    )
    sets = r'VOC2012/ImageSets/Segmentation/(?P<id>train|val)\.txt'
    lists = files.match_source_files(sources, sets)
    coarse = files.match_source_files(sources, r'dataset/cls/(?P<id>\w+)\.mat')
    self.require_files(
      {
        'VOC2012/JPEGImages/*.jpg': images,
        'VOC2012/SegmentationClass/*.png': fine,
        'VOC2012/ImageSets/Segmentation/{train,val}.txt': len(lists) == 2,
        'dataset/cls/*.mat (of SBD)': coarse,
      }
    )
    ids = {
      split: files.read_official_list(file) for split, file in lists.items()
    }
    ids['train_aug'] = sorted({*coarse, *ids['train']} - {*ids['val']})
    labels = {'train': fine, 'val': fine, 'train_aug': coarse | fine}
    return {
      split: files.pair_images_and_masks(
        ids[split], images, labels[split], str(lists.get(split, 'SBD'))
      )
      for split in self.counts
    }

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads a palette PNG of VOC, or a `.mat` file of SBD."""
    if file.name.endswith('.mat'):
      values = files.read_mat_file(file, 'GTcls', 'Segmentation')
    else:
      values = masks.read_mask_values(file)
    return TABLE.apply(values)
