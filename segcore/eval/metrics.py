"""Evaluation metrics: immutable counts on the host, exact for any data set.

  metric = ConfusionMatrix.empty(num_classes=21)
  for prediction, label, id in images:
    metric = metric.update(prediction, label, id)
  values = merge_across_hosts(metric).compute()

Everything is counted in int64 with numpy: the pixels of ImageNet-S val alone
overflow int32, which is as far as jax counts by default.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float, Int, Int64, UInt32

# Numbers by name; per-class values are arrays.
Values = Mapping[str, float | np.ndarray]


@runtime_checkable
class Metric(Protocol):
  """What the evaluator needs: update with one image, merge, compute.

  A metric is a frozen dataclass whose fields are counts: int64 arrays or ints.
  It starts from a classmethod `empty`, whose arguments are its own.
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
  """What hosts merge: a dataclass whose fields are int64 arrays or ints."""

  def merge(self, other: Any) -> Any:
    """Returns the counts of both."""
    ...


C = TypeVar('C', bound=Counts)


@dataclasses.dataclass(frozen=True, eq=False)
class ConfusionMatrix:
  """How many pixels of each class were taken for each class.

  counts: rows are labels, columns are predictions.

  >>> label = np.array([[0, 1], [1, -1]])
  >>> prediction = np.array([[0, 1], [0, 0]])
  >>> metric = ConfusionMatrix.empty(2).update(prediction, label, 'cat')
  >>> metric.compute()['iou']
  array([0.5, 0.5])
  """

  counts: Int64[np.ndarray, 'C C']

  @classmethod
  def empty(cls, num_classes: int) -> 'ConfusionMatrix':
    """Returns the matrix of no pixel."""
    if num_classes < 1:
      raise ValueError(f'num_classes is {num_classes}; allowed: 1 or more')
    return cls(np.zeros((num_classes, num_classes), np.int64))

  def update(
    self,
    prediction: Int[np.ndarray, 'H W'],
    label: Int[np.ndarray, 'H W'],
    id: bytes | str,
  ) -> 'ConfusionMatrix':
    """Returns the matrix with one image counted; negative labels are ignored.

    Raises ValueError, with the image's id, for maps of different sizes, for a
    label of C or more, and for a prediction outside 0…C-1 at any pixel.
    """
    num_classes = len(self.counts)
    if prediction.shape != label.shape:
      raise ValueError(
        f'image {_name(id)}: the prediction is {_size(prediction)} and the '
        f'label {_size(label)}; predict at the original size'
      )
    if label.size == 0:
      return self
    if label.max() >= num_classes:
      raise ValueError(
        f'image {_name(id)}: label {label.max()} found; allowed: '
        f'0…{num_classes - 1}, or negative to ignore'
      )
    if prediction.min() < 0 or prediction.max() >= num_classes:
      raise ValueError(
        f'image {_name(id)}: predictions {prediction.min()}…{prediction.max()} '
        f'found; allowed: 0…{num_classes - 1}'
      )
    valid = label >= 0
    # Widened first: 919 * 920 does not fit in the int16 of a label.
    cells = label[valid].astype(np.int64) * num_classes + prediction[valid]
    counts = np.bincount(cells, minlength=num_classes**2)
    return type(self)(self.counts + counts.reshape(self.counts.shape))

  def merge(self, other: 'ConfusionMatrix') -> 'ConfusionMatrix':
    """Returns the matrix over the images of both."""
    if self.counts.shape != other.counts.shape:
      raise ValueError(
        f'cannot merge confusion matrices of {len(self.counts)} and '
        f'{len(other.counts)} classes'
      )
    return type(self)(self.counts + other.counts)

  def compute(self) -> Values:
    """Returns the fractions below, in [0, 1]; those of nothing are NaN.

    iou [C]: intersection over union; NaN where a class neither occurs nor is
    predicted. miou: its mean over the other classes. pixel_accuracy: share of
    the valid pixels that are right. mean_class_accuracy: mean, over the classes
    that occur, of the share of their pixels that are right.
    """
    right = np.diagonal(self.counts)
    labeled = self.counts.sum(axis=1)
    predicted = self.counts.sum(axis=0)
    iou = _ratio(right, labeled + predicted - right)
    pixel_accuracy = _ratio(right.sum(keepdims=True), labeled.sum())
    return {
      'miou': _mean(iou),
      'pixel_accuracy': float(pixel_accuracy[0]),
      'mean_class_accuracy': _mean(_ratio(right, labeled)),
      'iou': iou,
    }


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """Share of the images whose best-scored class is one of their tags.

  An image without tags is not counted: no class can be right.

  >>> metric = Accuracy.empty()
  >>> scores, tags = np.array([0.2, 0.8]), np.array([False, True])
  >>> metric.update(scores, tags, 'cat').compute()
  {'accuracy': 1.0}
  """

  right: int
  total: int

  @classmethod
  def empty(cls) -> 'Accuracy':
    """Returns the accuracy over no image."""
    return cls(right=0, total=0)

  def update(
    self,
    prediction: Float[np.ndarray, 'C'],
    label: Bool[np.ndarray, 'C'],
    id: bytes | str,
  ) -> 'Accuracy':
    """Returns the accuracy with one image counted: its scores and its tags."""
    if prediction.shape != label.shape:
      raise ValueError(
        f'image {_name(id)}: {_size(prediction)} scores for {_size(label)} tags'
      )
    if np.isnan(prediction).any():
      raise ValueError(f'image {_name(id)}: a score is NaN')
    if not label.any():
      return self
    right = int(label[np.argmax(prediction)])
    return type(self)(self.right + right, self.total + 1)

  def merge(self, other: 'Accuracy') -> 'Accuracy':
    """Returns the accuracy over the images of both."""
    return type(self)(self.right + other.right, self.total + other.total)

  def compute(self) -> Values:
    """Returns the accuracy in [0, 1]; NaN over no image."""
    return {'accuracy': self.right / self.total if self.total else np.nan}


def merge_across_hosts(metric: C) -> C:
  """Merges the metrics of all processes; each gets the same, exact to the bit.

  Every process must call it, with counts of the same shape. On one process it
  returns the metric itself.
  """
  if jax.process_count() == 1:
    return metric
  fields = {
    field.name: getattr(metric, field.name)
    for field in dataclasses.fields(metric)
  }
  sent = {name: encode_int64(value) for name, value in fields.items()}
  received = multihost_utils.process_allgather(sent)
  metrics = []
  for process in range(jax.process_count()):
    counts = {
      name: decode_int64(received[name][process], np.shape(value))
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


def encode_int64(
  counts: Int64[np.ndarray, '*shape'] | int,
) -> UInt32[np.ndarray, 'N']:
  """Lays the bits of int64 counts out as two uint32 each.

  Without its x64 mode jax would narrow int64 to int32 on the way.
  """
  return np.asarray(counts, np.int64).reshape(-1).view(np.uint32)


def decode_int64(
  words: UInt32[np.ndarray, 'N'], shape: tuple[int, ...]
) -> Int64[np.ndarray, '...']:
  """Undoes `encode_int64`."""
  return np.ascontiguousarray(words).view(np.int64).reshape(shape)


def _ratio(
  part: Int[np.ndarray, 'N'], whole: np.ndarray | np.integer
) -> Float[np.ndarray, 'N']:
  """part / whole; NaN where the whole is 0."""
  missing = np.full(part.shape, np.nan)
  return np.divide(part, whole, out=missing, where=np.asarray(whole) > 0)


def _mean(values: Float[np.ndarray, 'N']) -> float:
  """Mean of what is not NaN; NaN, without a warning, if nothing is left."""
  known = values[~np.isnan(values)]
  return float(known.mean()) if known.size else float('nan')


def _name(id: bytes | str) -> str:
  return id.decode() if isinstance(id, bytes) else id


def _size(array: np.ndarray) -> str:
  return 'x'.join(map(str, array.shape))
