"""Numbers of pixels of each class in a label map."""

import cv2
import numpy as np
from jaxtyping import Int, Int64

# Counts of OpenCV are float32, which holds integers up to this number.
_MAX_COUNT = 2**24


def count_label_pixels(
  label: Int[np.ndarray, 'H W'], num_classes: int = 0
) -> Int64[np.ndarray, 'C']:
  """Counts the pixels of each class in a label map.

  Args:
    label: class ids, negative where ignored.
    num_classes: least length C of the result, which covers all ids.

  >>> count_label_pixels(np.array([[0, 2, 2, -1]]))
  array([1, 0, 2])
  """
  # NumPy takes several times as long to count, and to select pixels.
  shifted = np.maximum(label, -1).astype(np.int16) + 1
  length = max(int(shifted.max(initial=0)), num_classes) + 1
  shifted = shifted.astype(np.uint8 if length <= 256 else np.uint16)
  counts = np.zeros(length, np.int64)
  rows = max(_MAX_COUNT // max(label.shape[1], 1), 1)
  for start in range(0, label.shape[0], rows):
    block = shifted[start : start + rows]
    histogram = cv2.calcHist([block], [0], None, [length], [0, length])
    counts += histogram.ravel().astype(np.int64)
  return counts[1:]
