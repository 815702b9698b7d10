"""SYNTHIA-RAND-CITYSCAPES: rendered streets with classes of Cityscapes.

G. Ros et al.: The SYNTHIA dataset, 2016.
"""

from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline import batch
from input_pipeline.builders import cityscapes
from input_pipeline.sources import archives, masks
from runtime import errors

# The id of each class of Cityscapes; three classes (terrain, truck, train)
# never occur.
RAW_IDS = (
  3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11,
)  # fmt: skip
NUM_RAW = 23  # Including 0, void.
TABLE = masks.CodeTable(
  {
    **dict.fromkeys(range(NUM_RAW), batch.IGNORE),
    **{raw: i for i, raw in enumerate(RAW_IDS)},
  }
)


class Synthia(cityscapes.RenderedBuilder):
  """SYNTHIA-RAND-CITYSCAPES with the 19 classes of Cityscapes; split train.

  Ids are the official names ('0000000').
  """

  VERSION = tfds.core.Version('1.0.0')
  patterns = ('*RAND_CITYSCAPES*.zip', '*RAND_CITYSCAPES*.tar')
  folders = ('RGB', 'GT/LABELS')
  id_pattern = r'\d+'
  counts: ClassVar = {'train': 9400}

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads the class from the red channel, of 16 bits.

    OpenCV orders channels as blue, green, red.
    """
    data = np.frombuffer(file.read_bytes(), np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if pixels is None:
      raise errors.UserError('expected a PNG file, got none or a damaged one')
    if pixels.dtype != np.uint16 or pixels.ndim != 3:
      raise errors.UserError(
        'expected 16 bits in three channels, got '
        f'{pixels.dtype} pixels of shape {pixels.shape}: take GT/LABELS of the '
        'official archive'
      )
    return TABLE.apply(pixels[..., -1].astype(np.int32))
