"""Counts from which the mIoU of every candidate threshold follows.

sweep = ThresholdSweep.empty(num_generated=919, num_classes=919)
for categories, attention, label in images:
  sweep.update(categories, attention, label)
threshold, miou = sweep.merge_across_hosts().best()
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int, Int32, Int64

from pass_luss.benchmark import matching
from segcore.eval import metrics

# Candidates for a threshold that is chosen on masks: 0, 0.01, … 0.8.
THRESHOLDS = tuple(round(0.01 * i, 2) for i in range(81))

_BINS = len(THRESHOLDS) + 1
_ABSENT = -1


@dataclasses.dataclass(eq=False)
class ThresholdSweep:
  """Pixels and images by thresholds passed, category and class.

  A pixel is foreground for a threshold if its attention is at least that
  threshold. So pixels are binned by the number of sorted thresholds they reach.
  One pass over the images serves all thresholds.

  A row is a pair of a category and a class that occur in the same image. Of 919
  x 919, a seventh do in ImageNet-S's val; an array of all pairs is 0.55 GB.

  Attributes:
    num_generated: number K of categories without 'other'.
    num_classes: number C of classes without 'other'.
    pairs: category (C + 1) + class of each row; -1 for spare rows at the end.
    pixels: number of pixels of each pair by thresholds passed.
    images: number of images of each pair by thresholds passed by the most
      attended pixel of the category; not counted for class 0.
  """

  num_generated: int
  num_classes: int
  pairs: Int64[np.ndarray, 'rows']
  pixels: Int64[np.ndarray, 'rows bins']
  images: Int32[np.ndarray, 'rows bins'] | Int64[np.ndarray, 'rows bins']

  def __post_init__(self):
    self._num_rows = int(np.count_nonzero(self.pairs != _ABSENT))
    self._row_of_pair = np.full(
      (self.num_generated + 1, self.num_classes + 1), _ABSENT, np.int32
    )
    used = self.pairs[: self._num_rows]
    self._row_of_pair.reshape(-1)[used] = np.arange(self._num_rows)

  @classmethod
  def empty(cls, num_generated: int, num_classes: int) -> 'ThresholdSweep':
    """Returns the counts over no image; both numbers are without 'other'."""
    return cls(
      num_generated,
      num_classes,
      np.zeros(0, np.int64),
      np.zeros((0, _BINS), np.int64),
      np.zeros((0, _BINS), np.int32),
    )

  def update(
    self,
    categories: Int[np.ndarray, 'H W'],
    attention: Float[np.ndarray, 'H W'],
    label: Int[np.ndarray, 'H W'],
  ) -> None:
    """Adds the counts of one image in place; ignores negative labels."""
    passed = np.searchsorted(THRESHOLDS, attention, side='right')
    present, category = _number_present_ids(categories)
    # Ignored pixels are class 0 of this histogram.
    classes, class_index = _number_present_ids(np.maximum(label, -1) + 1)
    shape = (len(present), len(classes), _BINS)
    cells = (category * shape[1] + class_index) * _BINS + passed
    counts = np.bincount(cells.ravel(), minlength=np.prod(shape)).reshape(shape)
    # Also on ignored pixels: the benchmark's matching counts predictions there.
    occurs = counts.any(axis=1)
    highest = _BINS - 1 - np.argmax(occurs[:, ::-1], axis=1)

    counts, classes = counts[:, classes > 0], classes[classes > 0] - 1
    rows = self._find_rows(
      np.add.outer(present * (self.num_classes + 1), classes)
    )
    self.pixels[rows] += counts
    self.images[rows[:, classes > 0], highest[:, None]] += 1

  def merge(self, other: 'ThresholdSweep') -> 'ThresholdSweep':
    """Returns the counts over the images of both."""
    merged = ThresholdSweep.empty(self.num_generated, self.num_classes)
    for each in (self, other):
      used = slice(each._num_rows)
      rows = merged._find_rows(each.pairs[used])
      merged.pixels[rows] += each.pixels[used]
      merged.images[rows] += each.images[used]
    return merged

  def merge_across_hosts(self) -> 'ThresholdSweep':
    """Merges the counts of all hosts, which must call it together."""
    if jax.process_count() == 1:
      return self
    # Hosts exchange arrays of one shape.
    sizes = multihost_utils.process_allgather(np.int32(self._num_rows))
    self._resize(int(np.max(sizes)))
    return metrics.merge_metrics_across_hosts(self)

  def best(self, by_name: bool = False) -> tuple[float, float]:
    """Returns the threshold of the highest mIoU, and that mIoU.

    Among equal mIoUs the lowest threshold wins.

    Args:
      by_name: whether categories are the classes; else they are matched.
    """
    mious = [
      _mean_iou(confusion, None if by_name else images)
      for confusion, images in self._foregrounds()
    ][::-1]
    best = int(np.argmax(mious))
    return THRESHOLDS[best], mious[best]

  def count_foreground(self, threshold: float) -> int:
    """Counts the labeled pixels that reach one of `THRESHOLDS`."""
    pixels = self.pixels[: self._num_rows]
    return int(pixels[:, THRESHOLDS.index(threshold) + 1 :].sum())

  def foreground_auc(self) -> float | None:
    """Computes how well attention tells objects from 'other'.

    Returns:
      The area under the ROC curve: the probability that a pixel of a class has
      more attention than one of 'other'. 0.5 is chance; where it is lower,
      'other' is attended instead. Pixels between the same two thresholds, and
      all above the highest one, count as equal. None unless there are both.
    """
    used = slice(self._num_rows)
    is_other = self.pairs[used] % (self.num_classes + 1) == 0
    other, objects = (
      self.pixels[used][rows].sum(axis=0, dtype=np.float64)
      for rows in (is_other, ~is_other)
    )
    if not other.any() or not objects.any():
      return None
    below = np.cumsum(other) - other / 2
    return float(objects @ below / (objects.sum() * other.sum()))

  def _foregrounds(
    self,
  ) -> Iterator[
    tuple[Int64[np.ndarray, 'generated classes'], Int64[np.ndarray, 'K C']]
  ]:
    """Yields the counts of each threshold, from the highest to the lowest.

    They are the pixels by predicted category and class, and the images by
    category and class without 'other'. Both are reused for the next one.
    """
    used = slice(self._num_rows)
    pairs = self.pairs[used]
    pixels = np.zeros(self._row_of_pair.shape, np.int64)
    images = np.zeros_like(pixels)
    pixels.reshape(-1)[pairs] = self.pixels[used].sum(axis=1)
    labeled = pixels.sum(axis=0)
    pixels[:] = 0
    for bin_index in range(_BINS - 1, 0, -1):
      # Foreground pixels of the i-th threshold pass at least i + 1 of them.
      pixels.reshape(-1)[pairs] += self.pixels[used, bin_index]
      images.reshape(-1)[pairs] += self.images[used, bin_index]
      # All others are 'other'.
      pixels[0] = labeled - pixels[1:].sum(axis=0)
      yield pixels, images[1:, 1:]

  def _find_rows(
    self, pairs: Int64[np.ndarray, '*shape']
  ) -> Int32[np.ndarray, '*shape']:
    """Returns the rows of different pairs; adds those that are missing."""
    row_of_pair = self._row_of_pair.reshape(-1)  # A view.
    missing = pairs[row_of_pair[pairs] == _ABSENT]
    start, stop = self._num_rows, self._num_rows + missing.size
    if stop > len(self.pairs):
      self._resize(stop + stop // 8)
    self.pairs[start:stop] = missing
    row_of_pair[missing] = np.arange(start, stop)
    self._num_rows = stop
    return row_of_pair[pairs]

  def _resize(self, num_rows: int) -> None:
    """Changes the number of rows; new ones are spare."""
    # In place: the system moves large blocks without a second copy.
    self.pixels.resize((num_rows, _BINS), refcheck=False)
    self.images.resize((num_rows, _BINS), refcheck=False)
    self.pairs.resize(num_rows, refcheck=False)
    self.pairs[self._num_rows :] = _ABSENT


def _number_present_ids(
  ids: Int[np.ndarray, 'H W'],
) -> tuple[Int64[np.ndarray, 'N'], Int64[np.ndarray, 'H W']]:
  """Returns the ids that occur, sorted, and each pixel's place among them."""
  # Faster than np.unique, which sorts the pixels.
  present = np.flatnonzero(np.bincount(ids.ravel()))
  places = np.zeros(present[-1] + 1, np.int64)
  places[present] = np.arange(len(present))
  return present, places[ids]


def _mean_iou(
  confusion: Int64[np.ndarray, 'generated classes'],
  images: Int64[np.ndarray, 'K C'] | None,
) -> float:
  """Computes the mIoU, after Hungarian matching if there are `images`."""
  classes = range(len(confusion))
  if images is not None:
    classes = matching.Cooccurrence(images).match().classes
  matched = np.zeros((confusion.shape[1],) * 2, np.int64)
  np.add.at(matched, np.array(classes), confusion)
  intersection = np.diagonal(matched)
  union = matched.sum(axis=0) + matched.sum(axis=1) - intersection
  return float(np.mean(intersection / (union + 1e-10)))
