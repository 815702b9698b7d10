"""What ImageNet-S measures: regions, boundaries, images, by size of objects.

  metric = ImageNetS.empty(num_classes=50)
  for prediction, label, id in images:
    metric = metric.update(prediction, label, id)
  values = metrics.merge_across_hosts(metric).compute()

Predictions are matched, at the original size, and 0…C with 'other' as 0; labels
likewise, or negative where ignored. Everything is a sum of integers, so that no
order of images or hosts changes a bit. Source: the ImageNet-S benchmark (Gao et
al., Large-scale unsupervised semantic segmentation, 2022) and its toolbox.
"""

import dataclasses
import math
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from segcore.eval import metrics

# By the share of an image that a class covers: up to 5 %, 25 %, 50 %, above.
SIZES = ('S', 'MS', 'ML', 'L')
_SIZE_LIMITS = (5, 25, 50)  # In %.

_BOUNDARY_WIDTH = 0.03  # Of an image's diagonal.
_EPSILON = 1e-10  # Pixels: a class that is nowhere has an IoU of 0.
_BETA_SQUARED = (3, 10)  # As a fraction.
# F of an image is rounded to a multiple of this, so that sums are exact: of any
# number of images, the mean is off by less than 5e-13.
_F_UNIT = 2.0**-40

# Where a pixel is counted: 'other', the sizes, ignored.
_GROUPS = 1 + len(SIZES) + 1
_BLOCK = 2**17  # Pixels that are counted at once, so that memory stays small.


@dataclasses.dataclass(frozen=True, eq=False)
class ImageNetS:
  """Counts of all images so far.

  Attributes:
    regions: pixels of each class. The first axis is what they are of: all
      images, then each of `SIZES`; the second is both (prediction and label
      agree), predicted, labeled.
    boundaries: the same of boundary pixels; 'both' are on the boundary of the
      class in prediction and label.
    images: their number.
    num_correct: those whose largest predicted class occurs in the label.
    f_beta: sum of F over images, in units of 2^-40.

  >>> label = np.array([[0, 1], [1, -1]])
  >>> prediction = np.array([[0, 1], [0, 0]])
  >>> metric = ImageNetS.empty(1).update(prediction, label, 'cat')
  >>> round(metric.compute()['miou'], 6)
  0.5
  """

  regions: Int64[np.ndarray, '5 3 ids']  # C+1 of them.
  boundaries: Int64[np.ndarray, '5 3 ids']
  images: int
  num_correct: int
  f_beta: int

  @classmethod
  def empty(cls, num_classes: int) -> 'ImageNetS':
    """Returns the counts of no image; num_classes is without 'other'."""
    if num_classes < 1:
      raise ValueError(f'num_classes is {num_classes}; allowed: 1 or more')
    none = np.zeros((1 + len(SIZES), 3, num_classes + 1), np.int64)
    return cls(none, none, images=0, num_correct=0, f_beta=0)

  def update(
    self,
    prediction: Int[np.ndarray, 'H W'],
    label: Int[np.ndarray, 'H W'],
    id: bytes | str,
  ) -> 'ImageNetS':
    """Returns the counts with one image more; negative labels are ignored.

    Raises:
      ValueError: the maps are empty or of different sizes, a label is above C,
        or a prediction outside 0…C, at any pixel; with the image's id.
    """
    num_classes = self.regions.shape[-1] - 1
    return self.merge(count_image(prediction, label, id, num_classes))

  def merge(self, other: 'ImageNetS') -> 'ImageNetS':
    """Returns the counts over the images of both."""
    if self.regions.shape != other.regions.shape:
      raise ValueError(
        f'cannot merge counts of {self.regions.shape[-1] - 1} and '
        f'{other.regions.shape[-1] - 1} classes'
      )
    return type(self)(
      self.regions + other.regions,
      self.boundaries + other.boundaries,
      images=self.images + other.images,
      num_correct=self.num_correct + other.num_correct,
      f_beta=self.f_beta + other.f_beta,
    )

  def compute(self) -> metrics.Values:
    """Returns the fractions below, in [0, 1]; NaN over no image.

    iou [C+1]: intersection over union, of pixels of all images; 0 where a class
    neither occurs nor is predicted. miou: its mean. miou_without_other: its
    mean over 1…C. boundary_iou [C+1], boundary_miou: the same of boundaries.
    miou_S, boundary_miou_S and so on: of objects of a size, the mean over
    the classes that occur, with 'other'; NaN if none does. image_accuracy:
    share of images whose largest predicted class occurs. f_beta: mean over
    images of F of the foreground, β² = 0.3.
    """
    iou, boundary_iou = _iou(self.regions), _iou(self.boundaries)
    occurs = self.regions[:, 2] > 0
    values: dict[str, float | np.ndarray] = {
      'miou': iou[0].mean(),
      'miou_without_other': iou[0, 1:].mean(),
      'boundary_miou': boundary_iou[0].mean(),
      'image_accuracy': self.num_correct / max(self.images, 1),
      'f_beta': self.f_beta * _F_UNIT / max(self.images, 1),
    }
    values = {
      name: float(value) if self.images else float('nan')
      for name, value in values.items()
    }
    for i, size in enumerate(SIZES, 1):
      values[f'miou_{size}'] = _mean(iou[i, occurs[i]])
      values[f'boundary_miou_{size}'] = _mean(boundary_iou[i, occurs[i]])
    return {**values, 'iou': iou[0], 'boundary_iou': boundary_iou[0]}


def count_image(
  prediction: Int[np.ndarray, 'H W'],
  label: Int[np.ndarray, 'H W'],
  id: bytes | str,
  num_classes: int,
) -> ImageNetS:
  """The counts of one image; arguments and errors are those of `update`.

  What it costs does not depend on how many classes there are or occur.
  """
  _check(prediction, label, id, num_classes)
  height, width = label.shape
  label = np.maximum(label, -1)  # All that is ignored is one region.
  distance = boundary_width(height, width)
  edges = boundary_mask(label, distance), boundary_mask(prediction, distance)
  maps = prediction, label, *edges
  side = num_classes + 1

  # First by label: how large its classes are decides where pixels count.
  by_label = np.zeros((2, 1 + side), np.int64)
  for _, labels, on_label, _ in _blocks(*maps):
    by_label += _histogram(_label_cells(labels, on_label, side), by_label.shape)
  labeled = by_label[:, 1:]
  group = _groups(labeled.sum(axis=0))

  # Then by group and prediction, apart by: equal, on boundary of the label, on
  # that of the prediction. A class is in one group, so no confusion matrix is
  # needed.
  start = np.concatenate([[_GROUPS - 1], group]) * side
  start = np.add.outer(np.arange(2) * 2 * _GROUPS * side, start)
  start = start.astype(np.int32).ravel()
  found = np.zeros((2, 2, 2, _GROUPS, side), np.int64)
  for predicted, labels, on_label, on_predicted in _blocks(*maps):
    cells = start.take(_label_cells(labels, on_label, side))
    cells += predicted.astype(np.int32)
    cells += (predicted == labels) * np.int32(4 * _GROUPS * side)
    cells += on_predicted * np.int32(_GROUPS * side)
    found += _histogram(cells, found.shape)
  found = found[..., :-1, :]  # Less what is ignored.

  own = np.zeros((2, _GROUPS - 1, side), np.int64)
  own[:, group, np.arange(side)] = labeled
  regions = np.stack(
    [found[1].sum(axis=(0, 1)), found.sum(axis=(0, 1, 2)), own.sum(axis=0)],
    axis=1,
  )
  boundaries = np.stack(
    [found[1, 1, 1], found[:, :, 1].sum(axis=(0, 1)), own[1]], axis=1
  )
  _, predicted, labels = regions.sum(axis=0)
  largest = 1 + int(predicted[1:].argmax())
  foreground = int(regions[1:, 1, 1:].sum())
  return ImageNetS(
    _by_size(regions),
    _by_size(boundaries),
    images=1,
    num_correct=int(predicted[largest] > 0 and labels[largest] > 0),
    f_beta=_f_beta(foreground, int(predicted[1:].sum()), int(labels[1:].sum())),
  )


def boundary_width(height: int, width: int) -> int:
  """How wide boundaries are, in pixels: 3 % of the diagonal, at least 1.

  >>> boundary_width(375, 500), boundary_width(1, 1)
  (19, 1)
  """
  return max(1, round(_BOUNDARY_WIDTH * math.sqrt(height**2 + width**2)))


def boundary_mask(
  ids: Int[np.ndarray, 'H W'], width: int
) -> Bool[np.ndarray, 'H W']:
  """Where another id, or the outside of the map, is at most `width` away.

  Away is counted in the larger of rows and columns. That is each id's mask less
  its erosion by a square of 2 width + 1, zeros around; of all ids at once.

  >>> boundary_mask(np.zeros((5, 5), int), 2).sum()
  np.int64(24)
  """
  # A square is of one id if all blocks of 2 x 2 in it are.
  mixed = np.zeros(ids.shape, np.uint8)
  corner = ids[:-1, :-1]
  mixed[:-1, :-1] = (
    (corner != ids[1:, :-1])
    | (corner != ids[:-1, 1:])
    | (corner != ids[1:, 1:])
  )
  # A square has 2 width blocks a side; `width` of them start before its center.
  square = np.ones((2 * width, 2 * width), np.uint8)
  near = cv2.dilate(mixed, square, anchor=(width, width)).view(bool)
  near[:width] = near[-width:] = True
  near[:, :width] = near[:, -width:] = True
  return near


def _check(
  prediction: np.ndarray, label: np.ndarray, id: bytes | str, num_classes: int
) -> None:
  """Raises ValueError unless an image can be counted."""
  name = id.decode() if isinstance(id, bytes) else id
  if prediction.shape != label.shape:
    raise ValueError(
      f'image {name}: the prediction is {_size(prediction)} and the label '
      f'{_size(label)}; predict at the original size'
    )
  if not label.size:
    raise ValueError(
      f'image {name}: its label is {_size(label)}; expected at least one pixel'
    )
  if label.max() > num_classes:
    raise ValueError(
      f'image {name}: label {label.max()} found; allowed: 0…{num_classes}, or '
      'negative to ignore'
    )
  if prediction.min() < 0 or prediction.max() > num_classes:
    raise ValueError(
      f'image {name}: predictions {prediction.min()}…{prediction.max()} found; '
      f'allowed: 0…{num_classes}'
    )


def _blocks(*maps: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
  """The same rows of each map, a few at a time."""
  height, width = maps[0].shape
  rows = max(1, _BLOCK // width)
  for top in range(0, height, rows):
    yield tuple(each[top : top + rows] for each in maps)


def _label_cells(
  label: Int[np.ndarray, 'h W'], on_boundary: Bool[np.ndarray, 'h W'], side: int
) -> Int[np.ndarray, 'h W']:
  """Numbers the pairs of (on the boundary, label from -1)."""
  return label.astype(np.int32) + (1 + on_boundary * np.int32(1 + side))


def _histogram(
  cells: Int[np.ndarray, 'h W'], shape: tuple[int, ...]
) -> Int64[np.ndarray, '...']:
  """How often each cell occurs, laid out in a shape."""
  counts = np.bincount(cells.ravel(), minlength=math.prod(shape))
  return counts.reshape(shape)


def _groups(pixels: Int64[np.ndarray, 'ids']) -> Int64[np.ndarray, 'ids']:
  """0 for 'other', and for each class 1 and more, by its size in the image.

  Args:
    pixels: of each class; what is ignored is not part of the image.
  """
  percent = -(-100 * pixels // max(int(pixels.sum()), 1))  # Rounded up.
  groups = 1 + np.searchsorted(_SIZE_LIMITS, percent)
  groups[0] = 0
  return groups.astype(np.int64)


def _by_size(
  counts: Int64[np.ndarray, '5 3 ids'],
) -> Int64[np.ndarray, '5 3 ids']:
  """From the groups of an image to: all of it, and each size with 'other'.

  The 'other' of an image counts for the sizes that occur in it.
  """
  sizes = counts[1:].copy()
  occurs = counts[1:, 2].any(axis=-1)
  sizes[occurs] += counts[0]
  sizes[~occurs] = 0
  return np.concatenate([counts.sum(axis=0, keepdims=True), sizes])


def _f_beta(both: int, predicted: int, labeled: int) -> int:
  """F of one image in units of 2^-40, rounded; 0 where it is undefined.

  F = (1 + β²) P R / (β² P + R) with P = both / predicted, R = both / labeled.
  """
  if not both:
    return 0
  part, whole = _BETA_SQUARED
  above = (part + whole) * both
  below = part * labeled + whole * predicted
  unit = round(1 / _F_UNIT)
  return (2 * unit * above + below) // (2 * below)


def _iou(
  counts: Int64[np.ndarray, '5 3 ids'],
) -> Float[np.ndarray, '5 ids']:
  both, predicted, labeled = np.moveaxis(counts, 1, 0)
  return both / (predicted + labeled - both + _EPSILON)


def _mean(values: Float[np.ndarray, 'N']) -> float:
  return float(values.mean()) if values.size else float('nan')


def _size(array: np.ndarray) -> str:
  return 'x'.join(map(str, array.shape))
