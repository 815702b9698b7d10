"""Metrics of ImageNet-S: mIoU, boundary mIoU, image accuracy, F, object sizes.

  metric = ImageNetS.empty(num_classes=50)
  for prediction, label, id in images:
    metric = metric.update(prediction, label, id)
  values = metrics.merge_metrics_across_hosts(metric).compute()

Predictions are classes 0…C with 'other' as 0, after matching, at the original
size of the image; labels are the same, or negative where ignored. All counts
are sums of integers, so that the result does not depend on the order of images
and hosts. Source: the ImageNet-S benchmark (Gao et
al., Large-scale unsupervised semantic segmentation, 2022) and its toolbox.
"""

import dataclasses
import math
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from segcore.eval import metrics

# Groups by the share of the image that a class covers: small, medium small,
# medium large and large, up to 5 %, 25 %, 50 % and above.
SIZES = ('S', 'MS', 'ML', 'L')
_SIZE_LIMITS = (5, 25, 50)  # In %.

_BOUNDARY_WIDTH = 0.03  # As a fraction of the image's diagonal.
_EPSILON = 1e-10  # In pixels: makes the IoU of an absent class 0.
_BETA_SQUARED = (3, 10)  # Numerator and denominator.
# F of an image is rounded to a multiple of this unit, so that sums are exact
# integers; the mean over any number of images is off by less than 5e-13.
_F_UNIT = 2.0**-40

# Groups of pixels: 'other', the sizes, ignored.
_GROUPS = 1 + len(SIZES) + 1
_BLOCK = 2**17  # Pixels that are counted at a time, to bound the memory.


@dataclasses.dataclass(frozen=True, eq=False)
class ImageNetS:
  """Metric that accumulates counts over images; see `segcore.eval.metrics`.

  Attributes:
    regions: number of pixels of each class. The first axis is all pixels, then
      each of `SIZES`; the second is true positives, predicted, labeled.
    boundaries: counts as in `regions`, of boundary pixels only; true positives
      are on the boundary of the class in both prediction and label.
    images: number of images.
    num_correct: number of images whose largest predicted class is in the label.
    f_beta: sum of F over images, in units of 2^-40.

  >>> label = np.array([[0, 1], [1, -1]])
  >>> prediction = np.array([[0, 1], [0, 0]])
  >>> metric = ImageNetS.empty(1).update(prediction, label, 'cat')
  >>> round(metric.compute()['miou'], 6)
  0.5
  """

  regions: Int64[np.ndarray, '5 3 ids']  # ids is C + 1.
  boundaries: Int64[np.ndarray, '5 3 ids']
  images: int
  num_correct: int
  f_beta: int

  @classmethod
  def empty(cls, num_classes: int) -> 'ImageNetS':
    """Returns the counts over no image; `num_classes` is without 'other'."""
    if num_classes < 1:
      raise ValueError(f'num_classes: expected 1 or more, got {num_classes}')
    zeros = np.zeros((1 + len(SIZES), 3, num_classes + 1), np.int64)
    return cls(zeros, zeros, images=0, num_correct=0, f_beta=0)

  def update(
    self,
    prediction: metrics.LabelMap,
    label: metrics.LabelMap,
    id: bytes | str,
  ) -> 'ImageNetS':
    """Returns the counts with one more image; negative labels are ignored.

    Raises:
      ValueError: the maps are empty or of different sizes, a label is above C,
        or a prediction is not in 0…C, also at ignored pixels.
    """
    num_classes = self.regions.shape[-1] - 1
    return self.merge(
      count_imagenet_s_image(prediction, label, id, num_classes)
    )

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
    """Returns the metrics below, fractions in [0, 1]; NaN over no image.

    Returns:
      iou: [C + 1], over the pixels of all images; 0 where a class is absent.
      miou: mean of iou over 0…C.
      miou_without_other: mean of iou over 1…C.
      boundary_iou, boundary_miou: iou and miou over boundary pixels only.
      miou_S, boundary_miou_S, …: of the objects of a size, mean over 'other'
        and the classes that have such objects; NaN if none has.
      image_accuracy: share of images whose largest predicted class is in the
        label.
      f_beta: mean over images of F of the foreground, β² = 0.3.
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


def count_imagenet_s_image(
  prediction: Int[np.ndarray, 'H W'],
  label: Int[np.ndarray, 'H W'],
  id: bytes | str,
  num_classes: int,
) -> ImageNetS:
  """Counts one image; takes and raises what `ImageNetS.update` does.

  Two passes of histograms over the pixels, whose cost hardly depends on the
  number of classes: the masks of 920 classes are never built.
  """
  _check(prediction, label, id, num_classes)
  height, width = label.shape
  label = np.maximum(label, -1)  # Ignored pixels are one region, -1.
  distance = imagenet_s_boundary_width(height, width)
  edges = (
    imagenet_s_boundary_mask(label, distance),
    imagenet_s_boundary_mask(prediction, distance),
  )
  maps = prediction, label, *edges
  side = num_classes + 1

  # First pass, by label: the area of a class decides its size group.
  by_label = np.zeros((2, 1 + side), np.int64)
  for _, labels, on_label, _ in _blocks(*maps):
    by_label += _histogram(_label_cells(labels, on_label, side), by_label.shape)
  labeled = by_label[:, 1:]
  group = _groups(labeled.sum(axis=0))

  counts = _count_by_group(maps, group, side)

  by_group = np.zeros((2, _GROUPS - 1, side), np.int64)
  by_group[:, group, np.arange(side)] = labeled
  regions = np.stack(
    [
      counts[1].sum(axis=(0, 1)),
      counts.sum(axis=(0, 1, 2)),
      by_group.sum(axis=0),
    ],
    axis=1,
  )
  boundaries = np.stack(
    [counts[1, 1, 1], counts[:, :, 1].sum(axis=(0, 1)), by_group[1]], axis=1
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


def imagenet_s_boundary_width(height: int, width: int) -> int:
  """Returns the boundary width in pixels: 3 % of the diagonal, at least 1.

  >>> imagenet_s_boundary_width(375, 500)
  19
  """
  return max(1, round(_BOUNDARY_WIDTH * math.sqrt(height**2 + width**2)))


def imagenet_s_boundary_mask(
  ids: Int[np.ndarray, 'H W'], width: int
) -> Bool[np.ndarray, 'H W']:
  """Returns the pixels within `width` of another id or of the map's edge.

  The distance is the larger one of rows and columns. For each id this is its
  mask minus the mask's erosion by a square of 2 width + 1 with zero padding
  (spec §6.2), computed for all ids at once.

  >>> imagenet_s_boundary_mask(np.zeros((5, 5), int), 2).sum()
  np.int64(24)
  """
  # A square has one id only if all blocks of 2 x 2 in it have: so the mixed
  # blocks are dilated once, instead of eroding a mask for each id.
  mixed = np.zeros(ids.shape, np.uint8)
  corner = ids[:-1, :-1]
  mixed[:-1, :-1] = (
    (corner != ids[1:, :-1])
    | (corner != ids[:-1, 1:])
    | (corner != ids[1:, 1:])
  )
  # The square has 2 width blocks a side; `width` start before its center.
  square = np.ones((2 * width, 2 * width), np.uint8)
  near = cv2.dilate(mixed, square, anchor=(width, width)).view(bool)
  near[:width] = near[-width:] = True
  near[:, :width] = near[:, -width:] = True
  return near


def _check(
  prediction: np.ndarray, label: np.ndarray, id: bytes | str, num_classes: int
) -> None:
  """Raises ValueError unless prediction and label can be compared."""
  name = id.decode() if isinstance(id, bytes) else id
  if prediction.shape != label.shape:
    raise ValueError(
      f'image {name}: expected a prediction of the size of the label, '
      f'{_size(label)}, got {_size(prediction)}: predict at the original size'
    )
  if not label.size:
    raise ValueError(
      f'image {name}: expected a label of at least one pixel, got '
      f'{_size(label)}'
    )
  if label.max() > num_classes:
    raise ValueError(
      f'image {name}: expected labels 0…{num_classes}, or negative to ignore, '
      f'got {label.max()}'
    )
  if prediction.min() < 0 or prediction.max() > num_classes:
    raise ValueError(
      f'image {name}: expected predictions 0…{num_classes}, got '
      f'{prediction.min()}…{prediction.max()}'
    )


def _blocks(*maps: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
  """Yields blocks of rows, the same ones of each map."""
  height, width = maps[0].shape
  rows = max(1, _BLOCK // width)
  for top in range(0, height, rows):
    yield tuple(each[top : top + rows] for each in maps)


def _label_cells(
  label: Int[np.ndarray, 'h W'], on_boundary: Bool[np.ndarray, 'h W'], side: int
) -> Int[np.ndarray, 'h W']:
  """Numbers the pairs (on the boundary, label + 1) row by row."""
  return label.astype(np.int32) + (1 + on_boundary * np.int32(1 + side))


def _histogram(
  cells: Int[np.ndarray, 'h W'], shape: tuple[int, ...]
) -> Int64[np.ndarray, '...']:
  """Counts how often each flat index occurs, as an array of a shape."""
  counts = np.bincount(cells.ravel(), minlength=math.prod(shape))
  return counts.reshape(shape)


def _count_by_group(
  maps: tuple[np.ndarray, ...], group: Int64[np.ndarray, 'ids'], side: int
) -> Int64[np.ndarray, '2 2 2 5 ids']:
  """Counts pixels by their label's group and their prediction.

  The axes are: correct, on the label's boundary, on the prediction's boundary,
  group, predicted class. IoU needs correct pixels only, and a class is in one
  group: this replaces the confusion matrix.

  Args:
    maps: prediction, label, and the boundary masks of label and prediction.
    group: index of the group of each class.
    side: number of ids, C + 1.
  """
  # The first flat index of each (on the label's boundary, label from -1).
  start = np.concatenate([[_GROUPS - 1], group]) * side
  start = np.add.outer(np.arange(2) * 2 * _GROUPS * side, start)
  start = start.astype(np.int32).ravel()
  counts = np.zeros((2, 2, 2, _GROUPS, side), np.int64)
  for predicted, labels, on_label, on_predicted in _blocks(*maps):
    cells = start.take(_label_cells(labels, on_label, side))
    cells += predicted.astype(np.int32)
    cells += (predicted == labels) * np.int32(4 * _GROUPS * side)
    cells += on_predicted * np.int32(_GROUPS * side)
    counts += _histogram(cells, counts.shape)
  return counts[..., :-1, :]  # Without the group of ignored pixels.


def _groups(pixels: Int64[np.ndarray, 'ids']) -> Int64[np.ndarray, 'ids']:
  """Returns the group of each id: 0 for 'other', 1 to 4 by size for classes.

  Args:
    pixels: number of labeled pixels of each id, without ignored ones.
  """
  percent = -(-100 * pixels // max(int(pixels.sum()), 1))  # Rounded up.
  groups = 1 + np.searchsorted(_SIZE_LIMITS, percent)
  groups[0] = 0
  return groups.astype(np.int64)


def _by_size(
  counts: Int64[np.ndarray, '5 3 ids'],
) -> Int64[np.ndarray, '5 3 ids']:
  """Sums the groups of an image to: all pixels, and each size with 'other'.

  'other' is added to the sizes that have objects in the image (spec §6.4).
  """
  sizes = counts[1:].copy()
  occurs = counts[1:, 2].any(axis=-1)
  sizes[occurs] += counts[0]
  sizes[~occurs] = 0
  return np.concatenate([counts.sum(axis=0, keepdims=True), sizes])


def _f_beta(both: int, predicted: int, labeled: int) -> int:
  """Computes F of an image in units of 2^-40, rounded; 0 where undefined.

  F = (1 + β²) P R / (β² P + R) with P = both / predicted, R = both / labeled,
  in exact integers: F = (1 + β²) both / (β² labeled + predicted).
  """
  if not both:
    return 0
  beta, scale = _BETA_SQUARED
  numerator = (beta + scale) * both
  denominator = beta * labeled + scale * predicted
  units = round(1 / _F_UNIT)
  return (2 * units * numerator + denominator) // (2 * denominator)


def _iou(
  counts: Int64[np.ndarray, '5 3 ids'],
) -> Float[np.ndarray, '5 ids']:
  """Computes TP / (predicted + labeled - TP) of each id."""
  both, predicted, labeled = np.moveaxis(counts, 1, 0)
  return both / (predicted + labeled - both + _EPSILON)


def _mean(values: Float[np.ndarray, 'N']) -> float:
  return float(values.mean()) if values.size else float('nan')


def _size(array: np.ndarray) -> str:
  return 'x'.join(map(str, array.shape))
