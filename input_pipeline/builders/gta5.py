"""GTA5: rendered streets with the classes of Cityscapes.

S. Richter et al.: Playing for data: ground truth from computer games, 2016.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import cityscapes, files
from input_pipeline.sources import archives, audit, masks, records

# Here the license plate is 34.
TABLE = masks.table_of(cityscapes.RAW_IDS, {*range(35)} - {*cityscapes.RAW_IDS})


class Gta5(files.Official):
  """GTA5 with the 19 classes of Cityscapes; one split, train.

  Ids are the official names ('00001'). Some published masks are not as large as
  their image: these images are left out and listed.
  """

  VERSION = tfds.core.Version('1.0.0')
  patterns = ('[0-9][0-9]_images.zip', '[0-9][0-9]_labels.zip')
  layout = '01_images.zip to 10_images.zip and 01_labels.zip to 10_labels.zip'
  counts: ClassVar = {'train': 24966}
  on_bad_example = 'skip'

  def contents(self) -> records.Contents:
    """The classes of Cityscapes."""
    return records.Contents(cityscapes.CLASSES, cityscapes.PALETTE, tags=True)

  def find(self, found: files.Files) -> Mapping[str, audit.Listing]:
    """Images and masks of the same number."""
    images = files.pick(found, r'images/(?P<id>\d{5})\.png')
    labels = files.pick(found, r'labels/(?P<id>\d{5})\.png')
    for what, there in (('images', images), ('labels', labels)):
      if not there:
        raise self.missing(f'{what}/*.png')
    return {'train': files.examples_of(images, images, labels, 'train')}

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Palette indices are the label ids of Cityscapes."""
    return TABLE.apply(masks.read_values(file))
