"""Evaluation metrics: immutable counts on the host, exact for any data set.

  metric = ConfusionMatrix.empty(num_classes=21)
  for prediction, label, id in images:
    metric = metric.update(prediction, label, id)
  values = merge_metrics_across_hosts(metric).compute()

Counts are int64 numpy arrays: the pixels of ImageNet-S val alone overflow
int32, the largest integer type of jax by default.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float, Int, Int64, UInt32

# Numbers by name; per-class values are arrays.
Values = Mapping[str, float | np.ndarray]
# Class ids of the pixels of an image.
LabelMap = Int[np.ndarray, 'H W']


@runtime_checkable
class Metric(Protocol):
  """Interface of metrics: update with one image, merge, compute.

  A metric is a frozen dataclass whose fields are counts: int64 arrays or ints.
  A classmethod `empty`, with arguments of its own, returns the metric over no
  image.
  """

  def update(self, prediction: Any, label: Any, id: bytes | str) -> 'Metric':
    """Returns the metric with one more image counted."""
    ...

  def merge(self, other: 'Metric') -> 'Metric':
    """Returns the metric over the images of both."""
    ...

  def compute(self) -> Values:
    """Returns the values over all images counted so far."""
    ...


@runtime_checkable
class Counts(Protocol):
  """Counts that hosts merge: a dataclass of int64 arrays or ints."""

  def merge(self, other: Any) -> Any:
    """Returns the counts of both."""
    ...


C = TypeVar('C', bound=Counts)


@dataclasses.dataclass(frozen=True, eq=False)
class ConfusionMatrix:
  """Number of pixels by label (rows) and predicted class (columns).

  Attributes:
    counts: number of pixels; a row is a label, a column a prediction.

  >>> label = np.array([[0, 1], [1, -1]])
  >>> prediction = np.array([[0, 1], [0, 0]])
  >>> metric = ConfusionMatrix.empty(2).update(prediction, label, 'cat')
  >>> metric.compute()['iou']
  array([0.5, 0.5])
  """

  counts: Int64[np.ndarray, 'C C']

  @classmethod
  def empty(cls, num_classes: int) -> 'ConfusionMatrix':
    """Returns the matrix over no image, all zeros.

    Raises:
      ValueError: `num_classes` is below 1.
    """
    if num_classes < 1:
      raise ValueError(f'num_classes: expected >= 1, got {num_classes}')
    return cls(np.zeros((num_classes, num_classes), np.int64))

  def update(
    self, prediction: LabelMap, label: LabelMap, id: bytes | str
  ) -> 'ConfusionMatrix':
    """Returns the matrix with one image counted; negative labels are ignored.

    Raises:
      ValueError: the maps differ in size, a label is C or more, or a prediction
        is outside of 0…C-1 at any pixel; the message names the image.
    """
    num_classes = len(self.counts)
    if prediction.shape != label.shape:
      raise ValueError(
        f'image {_name(id)}: expected a prediction of the size of the label, '
        f'{_size(label)}, got {_size(prediction)}: predict at the original size'
      )
    if label.size == 0:
      return self
    if label.max() >= num_classes:
      raise ValueError(
        f'image {_name(id)}: expected labels 0…{num_classes - 1}, or negative '
        f'ones to ignore, got {label.max()}'
      )
    if prediction.min() < 0 or prediction.max() >= num_classes:
      raise ValueError(
        f'image {_name(id)}: expected predictions 0…{num_classes - 1}, got '
        f'{prediction.min()}…{prediction.max()}'
      )
    valid = label >= 0
    # In int64: 919 * 920 overflows the int16 of a label.
    cells = label[valid].astype(np.int64) * num_classes + prediction[valid]
    # One histogram over pairs (label, prediction), not a mask of each class.
    counts = np.bincount(cells, minlength=num_classes**2)
    return type(self)(self.counts + counts.reshape(self.counts.shape))

  def merge(self, other: 'ConfusionMatrix') -> 'ConfusionMatrix':
    """Returns the matrix over the images of both."""
    if self.counts.shape != other.counts.shape:
      raise ValueError(
        f'merge: expected a confusion matrix of {len(self.counts)} classes, '
        f'got {len(other.counts)}'
      )
    return type(self)(self.counts + other.counts)

  def compute(self) -> Values:
    """Returns the metrics, fractions in [0, 1]; NaN where nothing is counted.

    Returns:
      iou: [C], intersection over union; NaN for a class that neither occurs nor
        is predicted.
      miou: mean of `iou` over the other classes.
      pixel_accuracy: share of labeled pixels that are predicted correctly.
      mean_class_accuracy: mean over the classes that occur of the share of
        their pixels that are predicted correctly.
    """
    correct = np.diagonal(self.counts)
    labeled = self.counts.sum(axis=1)
    predicted = self.counts.sum(axis=0)
    iou = _ratio(correct, labeled + predicted - correct)
    pixel_accuracy = _ratio(correct.sum(keepdims=True), labeled.sum())
    return {
      'miou': _mean(iou),
      'pixel_accuracy': float(pixel_accuracy[0]),
      'mean_class_accuracy': _mean(_ratio(correct, labeled)),
      'iou': iou,
    }


def mean_iou_of_classes(
  iou: Float[np.ndarray, 'C'], class_ids: Sequence[int]
) -> float:
  """Averages the IoU of some classes; NaN, without a warning, if none has one.

  The other classes are still predicted: a pixel of one of these classes that is
  predicted as another one is wrong, as in the mean over 16 or 13 of the 19
  classes that is published for SYNTHIA.

  Args:
    iou: intersection over union of all classes; NaN where it has no value.
    class_ids: classes that are averaged.
  """
  return _mean(iou[list(class_ids)])


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """Share of images whose class of the highest score is one of their tags.

  Images without tags are not counted: no prediction could be correct.

  >>> metric = Accuracy.empty()
  >>> scores, tags = np.array([0.2, 0.8]), np.array([False, True])
  >>> metric.update(scores, tags, 'cat').compute()
  {'accuracy': 1.0}
  """

  correct: int
  total: int

  @classmethod
  def empty(cls) -> 'Accuracy':
    """Returns the accuracy over no image."""
    return cls(correct=0, total=0)

  def update(
    self,
    prediction: Float[np.ndarray, 'C'],
    label: Bool[np.ndarray, 'C'],
    id: bytes | str,
  ) -> 'Accuracy':
    """Returns the accuracy with one image counted.

    Args:
      prediction: score of each class.
      label: tags; True for each class in the image.
      id: id of the image, for messages.

    Raises:
      ValueError: the numbers of scores and tags differ, or a score is NaN.
    """
    if prediction.shape != label.shape:
      raise ValueError(
        f'image {_name(id)}: expected a score for each of {_size(label)} tags, '
        f'got {_size(prediction)}'
      )
    if np.isnan(prediction).any():
      raise ValueError(
        f'image {_name(id)}: expected numbers as scores, got NaN'
      )
    if not label.any():
      return self
    correct = int(label[np.argmax(prediction)])
    return type(self)(self.correct + correct, self.total + 1)

  def merge(self, other: 'Accuracy') -> 'Accuracy':
    """Returns the accuracy over the images of both."""
    return type(self)(self.correct + other.correct, self.total + other.total)

  def compute(self) -> Values:
    """Returns the accuracy in [0, 1]; NaN over no image."""
    return {'accuracy': self.correct / self.total if self.total else np.nan}


def merge_metrics_across_hosts(metric: C) -> C:
  """Merges the metrics of all processes, exactly; each gets the same result.

  Every process must call it, with counts of the same shapes. With one process
  the metric itself is returned.
  """
  if jax.process_count() == 1:
    return metric
  fields = {
    field.name: getattr(metric, field.name)
    for field in dataclasses.fields(metric)
  }
  # Sums are taken on the hosts in int64; a collective sum would overflow.
  sent = {name: encode_metric_counts(value) for name, value in fields.items()}
  received = multihost_utils.process_allgather(sent)
  metrics = []
  for process in range(jax.process_count()):
    counts = {
      name: decode_metric_counts(received[name][process], np.shape(value))
      for name, value in fields.items()
    }
    metrics.append(
      dataclasses.replace(
        metric,
        **{
          name: int(counts[name]) if isinstance(value, int) else counts[name]
          for name, value in fields.items()
        },
      )
    )
  return functools.reduce(lambda merged, other: merged.merge(other), metrics)


def encode_metric_counts(
  counts: Int64[np.ndarray, '*shape'] | int,
) -> UInt32[np.ndarray, 'N']:
  """Views int64 counts as two uint32 words each.

  jax, without its x64 mode, would narrow int64 to int32 in a collective.
  """
  return np.asarray(counts, np.int64).reshape(-1).view(np.uint32)


def decode_metric_counts(
  words: UInt32[np.ndarray, 'N'], shape: tuple[int, ...]
) -> Int64[np.ndarray, '...']:
  """Inverts `encode_metric_counts`; returns counts of the given shape."""
  return np.ascontiguousarray(words).view(np.int64).reshape(shape)


def _ratio(
  part: Int[np.ndarray, 'N'], whole: np.ndarray | np.integer
) -> Float[np.ndarray, 'N']:
  """Divides part by whole; NaN where the whole is 0."""
  ratio = np.full(part.shape, np.nan)
  return np.divide(part, whole, out=ratio, where=np.asarray(whole) > 0)


def _mean(values: Float[np.ndarray, 'N']) -> float:
  """Averages the values that are not NaN; NaN, without a warning, if none."""
  known = values[~np.isnan(values)]
  return float(known.mean()) if known.size else float('nan')


def _name(id: bytes | str) -> str:
  return id.decode() if isinstance(id, bytes) else id


def _size(array: np.ndarray) -> str:
  return 'x'.join(map(str, array.shape))
