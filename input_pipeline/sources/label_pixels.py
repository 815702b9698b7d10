"""Numbers of pixels of each class in a label map."""

import cv2
import numpy as np
from jaxtyping import Int, Int64, UInt8

# Counts of OpenCV are float32, which holds integers up to this number.
_MAX_COUNT = 2**24


def count_label_pixels(
  label: Int[np.ndarray, 'H W'] | UInt8[np.ndarray, 'H W'],
  num_classes: int = 0,
) -> Int64[np.ndarray, 'C']:
  """Counts the pixels of each class in a label map.

  Args:
    label: class ids, negative where ignored; those of uint8 are counted in
      less time.
    num_classes: least length C of the result, which covers all ids.

  >>> count_label_pixels(np.array([[0, 2, 2, -1]]))
  array([1, 0, 2])
  """
  if label.dtype not in (np.uint8, np.int16):
    label = np.maximum(label, -1).astype(np.int16)
  largest = int(label.max()) if label.size else -1
  length = max(largest + 1, num_classes)
  counts = np.zeros(length, np.int64)
  if not length:
    return counts
  # Negative ids are above the range of the histogram without their sign. NumPy
  # takes several times as long to count, and to select pixels.
  ids = label.view(f'u{label.itemsize}')
  rows = max(_MAX_COUNT // max(label.shape[1], 1), 1)
  for start in range(0, label.shape[0], rows):
    block = ids[start : start + rows]
    histogram = cv2.calcHist([block], [0], None, [length], [0, length])
    counts += histogram.ravel().astype(np.int64)
  return counts
