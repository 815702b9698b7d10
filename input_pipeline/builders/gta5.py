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

# As Cityscapes, but the license plate is stored as 34.
TABLE = masks.make_table(
  cityscapes.RAW_IDS, {*range(35)} - {*cityscapes.RAW_IDS}
)


class Gta5(files.OfficialBuilder):
  """GTA5 with the 19 classes of Cityscapes and the split train.

  Ids are the official names ('00001'). Some published masks differ in size from
  their image: these images are skipped and reported.
  """

  VERSION = tfds.core.Version('1.0.0')
  patterns = ('[0-9][0-9]_images.zip', '[0-9][0-9]_labels.zip')
  layout = '01_images.zip to 10_images.zip and 01_labels.zip to 10_labels.zip'
  counts: ClassVar = {'train': 24966}
  on_bad_example = 'skip'

  def schema(self) -> records.Schema:
    """Returns the 19 classes of Cityscapes."""
    return records.Schema(cityscapes.CLASSES, cityscapes.PALETTE, tags=True)

  def find_examples(self, sources: files.Files) -> Mapping[str, audit.Listing]:
    """Pairs images and masks of the same number."""
    images = files.match_files(sources, r'images/(?P<id>\d{5})\.png')
    labels = files.match_files(sources, r'labels/(?P<id>\d{5})\.png')
    self.require_files({'images/*.png': images, 'labels/*.png': labels})
    return {'train': files.pair_examples(images, images, labels, 'train')}

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads palette indices, which are the label ids of Cityscapes."""
    return TABLE.apply(masks.read_values(file))
