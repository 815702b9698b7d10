"""Training transforms as users of torch write them, for comparisons.

`Cv2Examples` does the same work with OpenCV and NumPy, `TorchvisionExamples`
decodes with Pillow and uses `torchvision.transforms.v2` on tensors. Both are
map-style data sets for `torch.utils.data.DataLoader`.
"""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import PIL.Image

from input_pipeline import crop_boxes, views

FILL = (127, 127, 127)


@dataclasses.dataclass(frozen=True)
class Cv2Examples:
  """Decodes, scales, crops and flips with OpenCV.

  Attributes:
    records: encoded images and masks.
    augment: function of (image, label, generator) to a dict of arrays.
  """

  records: Sequence[Any]
  augment: Callable[[np.ndarray, np.ndarray | None, np.random.Generator], dict]

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, i: int) -> dict:
    record, rng = self.records[i], np.random.default_rng(i)
    image = cv2.imdecode(
      np.frombuffer(record['image'], np.uint8), cv2.IMREAD_COLOR_RGB
    )
    label = None
    if record.get('label'):
      stored = cv2.imdecode(
        np.frombuffer(record['label'], np.uint8), cv2.IMREAD_UNCHANGED
      )
      label = stored.astype(np.int16) - 1
    example = self.augment(image, label, rng)
    return {**example, 'size': np.array(image.shape[:2])}


def crop_with_cv2(
  size: tuple[int, int],
  scales: tuple[float, float] | None = None,
  area: tuple[float, float] | None = None,
) -> Callable:
  """Returns an augmentation: a random crop, resized by area or by scale.

  Args:
    size: (height, width) of the output in pixels.
    scales: range of the factor by which images are resized before; or None.
    area: range of the area of the crop, which is resized to `size`; or None.
  """
  height, width = size

  def augment(image, label, rng) -> dict:
    if area:
      box = crop_boxes.sample_inception_box(
        rng, image.shape[:2], area, (3 / 4, 4 / 3)
      )
      rows = slice(box.top, box.top + box.height)
      columns = slice(box.left, box.left + box.width)
      image = cv2.resize(image[rows, columns], (width, height))
      label = cv2.resize(
        label[rows, columns], (width, height), interpolation=cv2.INTER_NEAREST
      )
    if scales:
      factor = rng.uniform(*scales)
      image = cv2.resize(image, None, fx=factor, fy=factor)
      label = cv2.resize(
        label, image.shape[1::-1], interpolation=cv2.INTER_NEAREST
      )
    missing = [max(n - m, 0) for n, m in zip(size, label.shape, strict=True)]
    if any(missing):
      sides = (0, missing[0], 0, missing[1], cv2.BORDER_CONSTANT)
      image = cv2.copyMakeBorder(image, *sides, value=FILL)
      label = cv2.copyMakeBorder(label, *sides, value=-1)
    top, left = (
      rng.integers(0, n - m + 1) for n, m in zip(label.shape, size, strict=True)
    )
    image = image[top : top + height, left : left + width]
    label = label[top : top + height, left : left + width]
    if rng.random() < 0.5:
      image, label = image[:, ::-1], label[:, ::-1]
    return {
      'image': np.ascontiguousarray(image),
      'label': np.ascontiguousarray(label),
    }

  return augment


def views_with_cv2(groups: Sequence[views.ViewGroup]) -> Callable:
  """Returns an augmentation: views, resized by averages where they shrink."""

  def augment(image, label, rng) -> dict:
    del label
    example = {}
    for group in groups:
      cut = []
      for _ in range(group.count):
        box = crop_boxes.sample_inception_box(
          rng, image.shape[:2], group.area, group.aspect
        )
        crop = image[
          box.top : box.top + box.height, box.left : box.left + box.width
        ]
        shrinks = box.height > group.size[0]
        filters = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        view = cv2.resize(crop, group.size[::-1], interpolation=filters)
        cut.append(view[:, ::-1] if rng.random() < group.flip else view)
      example[f'views_{group.name}'] = np.stack(cut)
    return example

  return augment


@dataclasses.dataclass(frozen=True)
class TorchvisionExamples:
  """Decodes with Pillow, transforms with torchvision.

  Attributes:
    records: encoded images and masks.
    transform: `torchvision.transforms.v2` of an image and a mask; or, with
      `count`, of an image alone.
    counts: numbers of views of each transform of `transform`; None for one
      transform of image and mask.
  """

  records: Sequence[Any]
  transform: Any
  counts: Sequence[int] | None = None

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, i: int) -> dict:
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    record = self.records[i]
    image = functional.to_image(
      PIL.Image.open(io.BytesIO(record['image'])).convert('RGB')
    )
    if self.counts is not None:
      pairs = zip(self.transform, self.counts, strict=True)
      crops = [[part(image) for _ in range(n)] for part, n in pairs]
      return {f'views{k}': crop for k, crop in enumerate(crops)}
    label = functional.pil_to_tensor(
      PIL.Image.open(io.BytesIO(record['label']))
    )
    image, label = self.transform(image, tv_tensors.Mask(label))
    return {'image': image, 'label': label}


def torchvision_transforms(
  groups: dict[str, Sequence[views.ViewGroup]],
) -> dict[str, tuple[Any, Sequence[int] | None]]:
  """Returns the transform of each method, and its numbers of views.

  Args:
    groups: views of each method that trains on views.
  """
  from torchvision.transforms import v2

  flip = v2.RandomHorizontalFlip()
  whole = {
    'plain crop': v2.Compose([v2.RandomCrop(321, pad_if_needed=True), flip]),
    'ddep': v2.Compose([v2.RandomResizedCrop(512, (0.3, 1.0)), flip]),
    'u2pl': v2.Compose(
      [
        v2.ScaleJitter((375, 500), (0.5, 2.0)),
        v2.RandomCrop(513, pad_if_needed=True),
        flip,
      ]
    ),
  }
  return {name: (transform, None) for name, transform in whole.items()} | {
    name: (
      [v2.Compose([v2.RandomResizedCrop(g.size, g.area), flip]) for g in each],
      [g.count for g in each],
    )
    for name, each in groups.items()
  }
