"""Geometric transforms on the host, from a record to an example.

A transform maps (example, random generator) to an example. Random choices are
made first (crops by `crop_boxes`) and then applied by functions without
randomness, so that both can be tested alone.

  transform = Compose((Decode(num_classes=9), RandomFlip(), Crop((64, 64))))
  example = transform(record, np.random.default_rng(0))
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from etils import epy

from input_pipeline import batch, crop_boxes, crop_content, resampling

with epy.lazy_imports():
  import cv2

  from input_pipeline.sources import records

Example = Mapping[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]


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

  @property
  def is_ignored(self) -> bool:
    """Returns whether padding has no class, so that losses ignore it."""
    return self.label < 0


# Mean color of ImageNet, 0 after the usual normalization.
MEAN_COLOR = (124, 116, 104)

# Fills by their names in configs. 'paper' is as in the code of U2PL's authors:
# padding is trained and evaluated as class 0.
FILLS = {
  'ignored': Fill(),
  'mean': Fill(MEAN_COLOR),
  'paper': Fill(MEAN_COLOR, 0),
  'black': Fill((0, 0, 0)),
}


# Rules by which a label map is resized, by their names in configs. 'released'
# is that of U2PL's authors (spec U2PL §5), half a pixel beside the image.
LABEL_RULES = {
  'centers': resampling.resize_label_nearest,
  'released': resampling.resize_label_by_floor,
}

# Maps of an example that have a value for each pixel of its image.
_PIXEL_MAPS = ('label', 'valid')


def _check_choice(name: str, value: str, table: Mapping[str, Any]) -> None:
  if value not in table:
    raise ValueError(f'{name}: expected one of {tuple(table)}, got {value!r}')


def check_image_size(name: str, size: tuple[int, int]) -> None:
  """Checks that a size is a positive (height, width).

  Raises:
    ValueError: the size is no pair, or a side is less than 1.
  """
  if len(size) != 2 or min(size) < 1:
    raise ValueError(f'{name}: expected (height, width) >= 1, got {size}')


def crop_example(
  example: Example, box: crop_boxes.Box, fill: Fill = Fill()
) -> Example:
  """Crops image and pixel maps to a box, with padding outside of the image.

  Args:
    example: example with `image` [H, W, 3] and, maybe, `label` and `valid`
      [H, W].
    box: rectangle in pixels.
    fill: color and class id of the padding.
  """
  values = {
    'image': fill.image,
    'label': fill.label,
    'valid': not fill.is_ignored,
  }
  return {
    name: crop_boxes.crop_to_box(value, box, values[name])
    if name in values
    else value
    for name, value in example.items()
  }


def resize_example(
  example: Example,
  size: tuple[int, int],
  antialias: bool = False,
  label_resize: str = 'centers',
  part: resampling.Part | None = None,
) -> Example:
  """Resizes the image bilinearly and pixel maps by nearest neighbors.

  Args:
    example: example with `image` [H, W, 3] and, maybe, `label` and `valid`
      [H, W].
    size: (height, width) of the output in pixels.
    antialias: whether the image is antialiased where it shrinks.
    label_resize: rule of the pixel maps, one of `LABEL_RULES`.
    part: rows and columns of the output to compute; None for all of them.
  """
  if part is None and example['image'].shape[:2] == size:
    return example
  functions = dict.fromkeys(_PIXEL_MAPS, LABEL_RULES[label_resize])
  functions['image'] = (
    resampling.resize_crop_antialiased
    if antialias
    else resampling.resize_image_bilinear
  )
  return {
    name: functions[name](value, size, part) if name in functions else value
    for name, value in example.items()
  }


# OpenCV's code of each direction.
FLIPS = {'horizontal': 1, 'vertical': 0}


def flip_example(example: Example, kind: str = 'horizontal') -> Example:
  """Flips image and pixel maps left to right, or upside down.

  Args:
    example: example with `image` [H, W, 3] and, maybe, `label` and `valid`
      [H, W].
    kind: 'horizontal' (left to right) or 'vertical' (upside down).
  """
  # OpenCV copies. A view with negative strides, as of np.flip, would make
  # batching ten times slower.
  flipped = {
    name: cv2.flip(example[name], FLIPS[kind])
    for name in ('image', 'label')
    if name in example
  }
  if 'valid' in example:  # OpenCV has no maps of bool.
    valid = cv2.flip(example['valid'].view(np.uint8), FLIPS[kind])
    flipped['valid'] = valid.view(bool)
  return {**example, **flipped}


@dataclasses.dataclass(frozen=True)
class Decode:
  """Decodes a record to an example with image, label, tags, size and id.

  Attributes:
    num_classes: number of classes, the length of `tags`.
    keep: kinds of label to decode if the record has them, 'label' and 'tags';
      'valid' adds a map of the pixels of the image, which crops extend by
      their padding: False where it is ignored. 'index' keeps the place of the
      image in its split, which `record_views.IndexedRecords` provides.
  """

  num_classes: int
  keep: tuple[str, ...] = ('label',)

  def __post_init__(self):
    kinds = 'label', 'tags', 'valid', 'index'
    if not set(self.keep) <= {*kinds}:
      raise ValueError(f'keep: expected some of {kinds}, got {self.keep}')

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
    if 'valid' in self.keep:
      example['valid'] = np.ones(image.shape[:2], bool)
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
    if 'index' in self.keep:
      example['index'] = np.int32(record['index'])
    if crop_content.REQUIRED in record:
      example[crop_content.REQUIRED] = record[crop_content.REQUIRED]
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
  ignores_padding: ClassVar[bool] = False

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
    fit_sides: long and short side in pixels that each image is resized to fit,
      keeping its aspect ratio, before all else; (0, 0) keeps its size.
    scales: least and largest factor by which the image is resized first; or,
      in ascending order, more than two factors, of which one is taken. With
      `fit_sides` it is the factor of the size that fits; the image is resized
      once.
    balanced: whether the image is enlarged as often as it is shrunk.
    centered: whether an image smaller than the crop is centered in it, else
      placed at random.
    fill: name of the padding: 'ignored' is gray without a class, 'mean' the
      mean color without a class, 'black' without a class, 'paper' the mean
      color with class 0.
    label_resize: rule by which the label is scaled: 'centers' as the image,
      'released' that of U2PL's authors, half a pixel beside it.
    max_class_share: a crop is redrawn unless it shows several classes, each
      with a smaller share of the labeled pixels; 1 redraws none. The tenth
      redraw is taken as it is.
    antialias: whether shrinking by `scales` is antialiased, as by Pillow.
  """

  size: tuple[int, int]
  scales: tuple[float, ...] = (1.0, 1.0)
  balanced: bool = False
  centered: bool = False
  fill: str = 'ignored'
  label_resize: str = 'centers'
  fit_sides: tuple[int, int] = (0, 0)
  max_class_share: float = 1.0
  antialias: bool = False

  def __post_init__(self):
    check_image_size('size', self.size)
    resampling.check_fit_sides(self.fit_sides)
    if not 0 < self.max_class_share <= 1:
      raise ValueError(
        f'max_class_share: expected (0, 1], got {self.max_class_share}'
      )
    low, high = self.scales[0], self.scales[-1]
    if not 0 < low <= high:
      raise ValueError(f'scales: expected 0 < low <= high, got {self.scales}')
    if self.balanced and (not low <= 1 <= high or len(self.scales) > 2):
      raise ValueError(
        'scales: expected low <= 1 <= high, and no more than these two, with '
        f'balanced=True, got {self.scales}'
      )
    _check_choice('fill', self.fill, FILLS)
    _check_choice('label_resize', self.label_resize, LABEL_RULES)

  @property
  def ignores_padding(self) -> bool:
    """Returns whether crops may be padded by pixels without a class."""
    return FILLS[self.fill].is_ignored

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Resizes by a random factor and crops at a random place."""
    shape = example['image'].shape[:2]
    if any(self.fit_sides):
      shape = resampling.size_within_sides(shape, self.fit_sides)
    is_scaled = self.scales != (1.0, 1.0)
    if is_scaled:
      scale = crop_boxes.sample_image_scale(rng, self.scales, self.balanced)
      shape = tuple(max(int(scale * side), 1) for side in shape)
    box = self._sample_box(example.get('label'), shape, rng)
    if shape != example['image'].shape[:2]:
      # Only what the crop shows is computed.
      part = crop_boxes.visible_part(box, shape)
      example = resize_example(
        example, shape, self.antialias and is_scaled, self.label_resize, part
      )
      box = box._replace(
        top=box.top - part[0].start, left=box.left - part[1].start
      )
    return crop_example(example, box, FILLS[self.fill])

  def _sample_box(
    self,
    label: np.ndarray | None,
    shape: tuple[int, int],
    rng: np.random.Generator,
  ) -> crop_boxes.Box:
    """Samples the place of the crop, several times if it has to.

    Args:
      label: class ids of the original image, if it has any.
      shape: (height, width) of the resized image in pixels.
      rng: random generator.
    """
    sample = (
      crop_boxes.sample_centered_crop_box
      if self.centered
      else crop_boxes.sample_crop_box
    )
    box = sample(rng, shape, self.size)
    if self.max_class_share == 1 or label is None:
      return box
    for _ in range(crop_content.MAX_REDRAWS):
      # Padding is not counted.
      shown = LABEL_RULES[self.label_resize](
        label, shape, crop_boxes.visible_part(box, shape)
      )
      if crop_content.has_mixed_classes(shown, self.max_class_share):
        break
      box = sample(rng, shape, self.size)
    return box


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
    _check_choice('fill', self.fill, FILLS)

  @property
  def ignores_padding(self) -> bool:
    """Returns whether crops may be padded by pixels without a class."""
    return FILLS[self.fill].is_ignored

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
  ignores_padding: ClassVar[bool] = False

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


# Crops by their names in configs. Each has a `size` and `ignores_padding`.
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
