"""GTA5: rendered streets with the classes of Cityscapes.

S. Richter et al.: Playing for data: ground truth from computer games, 2016.
"""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import cityscapes
from input_pipeline.sources import archives, masks

# As Cityscapes, but the license plate is stored as 34.
TABLE = masks.make_code_table(
  cityscapes.RAW_IDS, {*range(35)} - {*cityscapes.RAW_IDS}
)


class Gta5(cityscapes.RenderedBuilder):
  """GTA5 with the 19 classes of Cityscapes and the split train.

  Ids are the official names ('00001'). Some published masks differ in size from
  their image: these images are skipped and reported.
  """

  VERSION = tfds.core.Version('1.0.0')
  patterns = ('[0-9][0-9]_images.zip', '[0-9][0-9]_labels.zip')
  folders = ('images', 'labels')
  id_pattern = r'\d{5}'
  counts: ClassVar = {'train': 24966}
  on_bad_example = 'skip'

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads palette indices, which are the label ids of Cityscapes."""
    return TABLE.apply(masks.read_mask_values(file))
