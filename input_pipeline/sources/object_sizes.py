"""Sizes of the objects in label maps, as shares of their images.

An object is the largest connected region of a class in an image. The class with
the most pixels of an image is not counted: it is the background there. Counts
are a histogram over half octaves of the share, which merges across images.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Int16, Int64

from input_pipeline.sources import label_pixels

# Bin b holds shares in (2^(-(b+1)/2), 2^(-b/2)]; the last one all below.
NUM_BINS = 32
# Longest side of the label map on which regions are measured.
_MAX_SIDE = 256


def object_shares(label: Int16[np.ndarray, 'H W']) -> list[float]:
  """Measures the objects of a label map, as shares of its pixels."""
  step = -(-max(label.shape) // _MAX_SIDE)
  # In rows one after the other first: NumPy is slow where it skips pixels.
  small = np.ascontiguousarray(label[::step, ::step])
  small = np.maximum(small, -1) + 1  # 0 where ignored.
  if small.max(initial=0) < 256:
    small = small.astype(np.uint8)  # Faster to compare and to count.
  counts = label_pixels.count_label_pixels(small, 1)
  counts[0] = 0
  present = np.flatnonzero(counts)
  shares = []
  # An int, as NumPy compares scalars of its own at 64 bits.
  for value in present[present != counts.argmax()].tolist():
    region = (small == value).view(np.uint8)
    x, y, width, height = cv2.boundingRect(region)
    # OpenCV's statistics take several times as long as the regions. Their
    # number is below 2**14, as no two of them touch.
    num_labels, regions = cv2.connectedComponents(
      region[y : y + height, x : x + width], connectivity=8, ltype=cv2.CV_16U
    )
    largest = counts[value]
    if num_labels > 2:  # The first is the rest of the box.
      kind = np.uint8 if num_labels <= 256 else np.int16
      areas = label_pixels.count_label_pixels(regions.astype(kind))
      largest = areas[1:].max()
    shares.append(float(largest) / small.size)
  return shares


def object_share_histogram(
  shares: Sequence[float] | np.ndarray,
) -> Int64[np.ndarray, 'B']:
  """Counts shares by bin."""
  bins = [min(int(-2 * math.log2(s)), NUM_BINS - 1) for s in shares]
  return np.bincount(bins, minlength=NUM_BINS).astype(np.int64)


def object_share_quantile(
  counts: Sequence[int] | np.ndarray, fraction: float
) -> float | None:
  """Returns the share below which a fraction of the objects is.

  Args:
    counts: number of objects of each bin.
    fraction: fraction of the objects, in [0, 1].

  Returns:
    The middle of a bin, on a logarithmic scale; None without objects.

  >>> counts = object_share_histogram([0.01, 0.04, 0.5])
  >>> round(object_share_quantile(counts, 0.5), 3)
  0.037
  """
  if not sum(counts):
    return None
  # From the smallest shares, the last bin, upward.
  reached = np.cumsum(counts[::-1]) >= max(fraction * sum(counts), 1)
  index = len(counts) - 1 - int(reached.argmax())
  return 2.0 ** (-(index + 0.5) / 2)
