"""Geometric transforms on the host, from a record to an example.

A transform maps (example, random generator) to an example. Random choices are
made first (crops by `crop_boxes`) and then applied by functions without
randomness, so that both can be tested alone.

  transform = Compose((Decode(num_classes=9), RandomFlip(), Crop((64, 64))))
  example = transform(record, np.random.default_rng(0))
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Shaped, UInt8

from input_pipeline import batch, crop_boxes
from input_pipeline.sources import records

Example = Mapping[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]
Padding = tuple[int, int]  # Before and after.


@dataclasses.dataclass(frozen=True)
class Fill:
  """Color and label of the padding around an image.

  Attributes:
    image: value of each color channel, 0 to 255; the default is mid-gray, which
      is nearly 0 on the device.
    label: class id; a negative id is ignored.
  """

  image: tuple[int, int, int] = (127, 127, 127)
  label: int = batch.IGNORE

  def __post_init__(self):
    if len(self.image) != 3 or not all(0 <= v <= 255 for v in self.image):
      raise ValueError(
        f'image: expected three values of 0 to 255, got {self.image}'
      )


# Mean color of ImageNet, 0 after the usual normalization.
MEAN_COLOR = (124, 116, 104)

# Fills by their names in configs. 'paper' is as in the code of U2PL's authors:
# padding is trained and evaluated as class 0.
FILLS = {
  'ignored': Fill(),
  'mean': Fill(MEAN_COLOR),
  'paper': Fill(MEAN_COLOR, 0),
}


def _check_fill(fill: str) -> None:
  if fill not in FILLS:
    raise ValueError(f'fill: expected one of {tuple(FILLS)}, got {fill!r}')


def check_image_size(name: str, size: tuple[int, int]) -> None:
  """Checks that a size is a positive (height, width).

  Raises:
    ValueError: the size is no pair, or a side is less than 1.
  """
  if len(size) != 2 or min(size) < 1:
    raise ValueError(f'{name}: expected (height, width) >= 1, got {size}')


def resize_label_nearest(
  label: Shaped[np.ndarray, 'H W'], size: tuple[int, int]
) -> Shaped[np.ndarray, 'h w']:
  """Resizes a label map by nearest neighbors.

  Along each axis, output i is input floor(i · in / out), computed in integers.

  Args:
    label: class ids.
    size: (height, width) of the output in pixels.
  """
  rows = np.arange(size[0]) * label.shape[0] // size[0]
  columns = np.arange(size[1]) * label.shape[1] // size[1]
  return label[rows[:, None], columns]


def resize_image_bilinear(
  image: Shaped[np.ndarray, 'H W 3'], size: tuple[int, int]
) -> Shaped[np.ndarray, 'h w 3']:
  """Resizes an image bilinearly, without antialiasing.

  Args:
    image: image of bytes or floats; the centers of pixels are at half-integers.
    size: (height, width) of the output in pixels.
  """
  return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_image_antialiased(
  image: UInt8[np.ndarray, 'H W 3'], size: tuple[int, int]
) -> UInt8[np.ndarray, 'h w 3']:
  """Resizes an image bilinearly as Pillow does, antialiased where it shrinks.

  Args:
    image: RGB image.
    size: (height, width) of the output in pixels.
  """
  resized = PIL.Image.fromarray(image).resize(
    size[::-1], PIL.Image.Resampling.BILINEAR
  )
  return np.asarray(resized)


def _overlap(start: int, length: int, size: int) -> tuple[slice, Padding]:
  """Intersects [start, start + length) with [0, size).

  Returns:
    The intersection, and the missing lengths before and after it.
  """
  first = min(max(start, 0), size)
  last = min(max(start + length, 0), size)
  before = min(max(-start, 0), length)
  return slice(first, last), (before, length - before - (last - first))


def crop_example(
  example: Example, box: crop_boxes.Box, fill: Fill = Fill()
) -> Example:
  """Crops image and label to a box, with padding outside of the image.

  Args:
    example: example with `image` [H, W, 3] and, maybe, `label` [H, W].
    box: rectangle in pixels.
    fill: color and class id of the padding.
  """
  height, width = example['image'].shape[:2]
  rows, above_below = _overlap(box.top, box.height, height)
  columns, left_right = _overlap(box.left, box.width, width)
  padding = (above_below, left_right)

  def cut(array: np.ndarray, value: Any) -> np.ndarray:
    inside = array[rows, columns]
    if not any(map(any, padding)):  # The box is inside the image.
      return inside
    out = np.empty((box.height, box.width, *array.shape[2:]), array.dtype)
    out[:] = value
    out[
      above_below[0] : above_below[0] + inside.shape[0],
      left_right[0] : left_right[0] + inside.shape[1],
    ] = inside
    return out

  out = {**example, 'image': cut(example['image'], fill.image)}
  if 'label' in example:
    out['label'] = cut(example['label'], fill.label)
  return out


def resize_example(
  example: Example, size: tuple[int, int], antialias: bool = False
) -> Example:
  """Resizes the image bilinearly and the label by nearest neighbors.

  Args:
    example: example with `image` [H, W, 3] and, maybe, `label` [H, W].
    size: (height, width) of the output in pixels.
    antialias: whether the image is antialiased where it shrinks.
  """
  if example['image'].shape[:2] == size:
    return example
  resized = resize_image_antialiased if antialias else resize_image_bilinear
  out = {**example, 'image': resized(example['image'], size)}
  if 'label' in example:
    out['label'] = resize_label_nearest(example['label'], size)
  return out


# OpenCV's code of each direction.
FLIPS = {'horizontal': 1, 'vertical': 0}


def flip_example(example: Example, kind: str = 'horizontal') -> Example:
  """Flips image and label left to right, or upside down.

  Args:
    example: example with `image` [H, W, 3] and, maybe, `label` [H, W].
    kind: 'horizontal' (left to right) or 'vertical' (upside down).
  """
  # OpenCV copies. A view with negative strides, as of np.flip, would make
  # batching ten times slower.
  return {
    name: cv2.flip(value, FLIPS[kind]) if name in ('image', 'label') else value
    for name, value in example.items()
  }


@dataclasses.dataclass(frozen=True)
class Decode:
  """Decodes a record to an example with image, label, tags, size and id.

  Attributes:
    num_classes: number of classes, the length of `tags`.
    keep: kinds of label to decode if the record has them: 'label', 'tags'.
  """

  num_classes: int
  keep: tuple[str, ...] = ('label',)

  def __post_init__(self):
    if not set(self.keep) <= {'label', 'tags'}:
      raise ValueError(
        f"keep: expected some of ('label', 'tags'), got {self.keep}"
      )

  def __call__(
    self, record: Example, rng: np.random.Generator | None = None
  ) -> Example:
    """Decodes without random choices; evaluation passes no generator."""
    del rng
    image = records.decode_record_image(record['image'])
    example = {
      'image': image,
      'size': np.asarray(image.shape[:2], np.int32),
      'id': np.bytes_(record['id']),
    }
    # Empty in a split without masks of a data set with masks.
    label = record.get('label', b'') if 'label' in self.keep else b''
    if isinstance(label, np.ndarray):  # Some sources decode labels themselves.
      example['label'] = label
    elif label:
      example['label'] = records.decode_record_label(label)
    if 'tags' in self.keep and 'tags' in record:
      tags = np.zeros(self.num_classes, bool)
      tags[np.asarray(record['tags'], np.int64)] = True
      example['tags'] = tags
    return example


@dataclasses.dataclass(frozen=True)
class RandomFlip:
  """Flips along each of the given directions with a probability.

  Attributes:
    probability: probability of a flip along each direction, in [0, 1].
    kinds: directions: 'horizontal' is left to right, 'vertical' upside down.
  """

  probability: float = 0.5
  kinds: tuple[str, ...] = ('horizontal',)

  def __post_init__(self):
    if not set(self.kinds) <= set(FLIPS):
      raise ValueError(
        f'kinds: expected some of {tuple(FLIPS)}, got {self.kinds}'
      )
    if not 0 <= self.probability <= 1:
      raise ValueError(f'probability: expected 0 to 1, got {self.probability}')

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Flips with the given probability."""
    for kind in self.kinds:
      if rng.random() < self.probability:
        example = flip_example(example, kind)
    return example


@dataclasses.dataclass(frozen=True)
class Resize:
  """Resizes to a fixed (height, width), changing the aspect ratio."""

  size: tuple[int, int]

  def __post_init__(self):
    check_image_size('size', self.size)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Resizes without random choices."""
    del rng
    return resize_example(example, self.size)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
  """Crops to a size at a random place, after random scaling.

  An image that is too small is padded.

  Attributes:
    size: (height, width) of the output in pixels.
    scales: least and largest factor by which the image is resized first.
    balanced: whether the image is enlarged as often as it is shrunk.
    centered: whether an image smaller than the crop is centered in it, else
      placed at random.
    fill: name of the padding: 'ignored' is gray without a class, 'mean' the
      mean color without a class, 'paper' the mean color with class 0.
  """

  size: tuple[int, int]
  scales: tuple[float, float] = (1.0, 1.0)
  balanced: bool = False
  centered: bool = False
  fill: str = 'ignored'

  def __post_init__(self):
    check_image_size('size', self.size)
    low, high = self.scales
    if not 0 < low <= high:
      raise ValueError(f'scales: expected 0 < low <= high, got {self.scales}')
    if self.balanced and not low <= 1 <= high:
      raise ValueError(
        'scales: expected low <= 1 <= high with balanced=True, got '
        f'{self.scales}'
      )
    _check_fill(self.fill)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Resizes by a random factor and crops at a random place."""
    shape = example['image'].shape[:2]
    if self.scales != (1.0, 1.0):
      scale = crop_boxes.sample_image_scale(rng, self.scales, self.balanced)
      shape = tuple(max(int(scale * side), 1) for side in shape)
      example = resize_example(example, shape)
    sample = (
      crop_boxes.sample_centered_crop_box
      if self.centered
      else crop_boxes.sample_crop_box
    )
    return crop_example(
      example, sample(rng, shape, self.size), FILLS[self.fill]
    )


@dataclasses.dataclass(frozen=True)
class ShortSide:
  """Resizes the shorter side to a length, keeping the aspect ratio."""

  length: int

  def __post_init__(self):
    if self.length < 1:
      raise ValueError(f'length: expected >= 1, got {self.length}')

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Resizes without random choices."""
    del rng
    height, width = example['image'].shape[:2]
    short = min(height, width)
    size = (max(side * self.length // short, 1) for side in (height, width))
    return resize_example(example, tuple(size))


@dataclasses.dataclass(frozen=True)
class CenterCrop:
  """Crops the center; an image that is too small is padded around it.

  Attributes:
    size: (height, width) of the output in pixels.
    fill: name of the padding: 'ignored', 'mean' or 'paper' (see `RandomCrop`).
  """

  size: tuple[int, int]
  fill: str = 'ignored'

  def __post_init__(self):
    check_image_size('size', self.size)
    _check_fill(self.fill)

  def __call__(
    self, example: Example, rng: np.random.Generator | None = None
  ) -> Example:
    """Crops without random choices."""
    del rng
    shape = example['image'].shape[:2]
    top, left = (
      (n - m) // 2 if n >= m else -((m - n) // 2)
      for n, m in zip(shape, self.size, strict=True)
    )
    return crop_example(
      example, crop_boxes.Box(top, left, *self.size), FILLS[self.fill]
    )


@dataclasses.dataclass(frozen=True)
class InceptionCrop:
  """Crops a box of random area and aspect ratio, and resizes it to a size.

  This is the augmentation of the Inception networks (spec DDeP §5.3).

  Attributes:
    size: (height, width) of the output in pixels.
    area: range of the area of the box, as a fraction of the image's area.
    aspect: range of width / height of the box.
    antialias: whether shrinking is antialiased, as by Pillow.
  """

  size: tuple[int, int]
  area: tuple[float, float] = (0.3, 1.0)
  aspect: tuple[float, float] = (3 / 4, 4 / 3)
  antialias: bool = False

  def __post_init__(self):
    check_image_size('size', self.size)
    if not 0 < self.area[0] <= self.area[1] <= 1:
      raise ValueError(f'area: expected 0 < low <= high <= 1, got {self.area}')
    if not 0 < self.aspect[0] <= self.aspect[1]:
      raise ValueError(f'aspect: expected 0 < low <= high, got {self.aspect}')

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Crops a random box and resizes it."""
    box = crop_boxes.sample_inception_box(
      rng, example['image'].shape[:2], self.area, self.aspect
    )
    return resize_example(crop_example(example, box), self.size, self.antialias)


# Crops by their names in configs.
CROPS = {
  'inception': InceptionCrop,
  'random': RandomCrop,
  'resize': Resize,
  'center': CenterCrop,
}


@dataclasses.dataclass(frozen=True)
class Compose:
  """A transform that applies several transforms in order."""

  transforms: tuple[Transform, ...]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Applies all transforms with the same random generator."""
    for transform in self.transforms:
      example = transform(example, rng)
    return example
