"""SYNTHIA-RAND-CITYSCAPES: rendered streets with classes of Cityscapes.

G. Ros et al.: The SYNTHIA dataset, 2016.
"""

from collections.abc import Mapping
from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline import batch
from input_pipeline.builders import cityscapes, files
from input_pipeline.sources import archives, audit, masks, records
from runtime import errors

# The id of each class of Cityscapes; three of them (terrain, truck, train)
# never occur.
RAW_IDS = (
  *(3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11),
)
NUM_RAW = 23  # 0 is void.
TABLE = masks.Table(
  {
    **dict.fromkeys(range(NUM_RAW), batch.IGNORE),
    **{raw: i for i, raw in enumerate(RAW_IDS)},
  }
)


class Synthia(files.Official):
  """SYNTHIA-RAND-CITYSCAPES with the 19 classes of Cityscapes; one split.

  Ids are the official names ('0000000').
  """

  VERSION = tfds.core.Version('1.0.0')
  patterns = ('*RAND_CITYSCAPES*.zip', '*RAND_CITYSCAPES*.tar')
  layout = (
    'RAND_CITYSCAPES/{RGB,GT/LABELS}/*.png, unpacked from '
    'SYNTHIA_RAND_CITYSCAPES.rar (by unrar)'
  )
  counts: ClassVar = {'train': 9400}

  def contents(self) -> records.Contents:
    """The classes of Cityscapes."""
    return records.Contents(cityscapes.CLASSES, cityscapes.PALETTE, tags=True)

  def find(self, found: files.Files) -> Mapping[str, audit.Listing]:
    """Images and masks of the same number."""
    images = files.pick(found, r'RGB/(?P<id>\d+)\.png')
    labels = files.pick(found, r'GT/LABELS/(?P<id>\d+)\.png')
    for what, there in (('RGB', images), ('GT/LABELS', labels)):
      if not there:
        raise self.missing(f'{what}/*.png')
    return {'train': files.examples_of(images, images, labels, 'train')}

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """The class is in the last channel, as OpenCV orders them, of 16 bits."""
    data = np.frombuffer(file.read_bytes(), np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if pixels is None:
      raise errors.UserError('is no PNG file, or damaged')
    if pixels.dtype != np.uint16 or pixels.ndim != 3:
      raise errors.UserError(
        f'has {pixels.dtype} pixels of shape {pixels.shape}, expected 16 bits '
        'in three channels: take GT/LABELS of the official archive'
      )
    return TABLE.apply(pixels[..., -1].astype(np.int32))
