"""Several random crops of one image, with their boxes and flips.

multi_crop = MultiCrop((
  ViewGroup('large', 2, (64, 64), area=(0.14, 1.0)),
  ViewGroup('small', 6, (32, 32), area=(0.05, 0.14)),
))
example = multi_crop(example, rng)  # views_large, box_large, flip_large, …
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import bicubic, crop_boxes, transforms

_BOXES = {
  'torchvision': crop_boxes.sample_inception_box,
  'simclr': crop_boxes.sample_tensorflow_box,
  'byol': crop_boxes.sample_clipped_box,
}
_GRIDS: dict[str, bicubic.Grid] = {'simclr': 'legacy', 'byol': 'half_pixel'}


@dataclasses.dataclass(frozen=True)
class ViewGroup:
  """Describes a group of crops of one resolution.

  Attributes:
    name: name of the group in the keys of a batch: `views_NAME`, `box_NAME`,
      `flip_NAME`.
    count: number of crops V.
    size: (height, width) of each crop, in pixels.
    area: range of the area of a crop, as a fraction of the image's area.
    aspect: range of width / height of a crop.
    flip: probability of a horizontal flip, in [0, 1].
    antialias: whether shrinking is antialiased, as by Pillow.
    rules: rules of boxes and of resizing: those of torchvision, bilinear, or
      those of the released code of SimCLR or BYOL, bicubic without
      antialiasing.
  """

  name: str
  count: int
  size: tuple[int, int]
  area: tuple[float, float]
  aspect: tuple[float, float] = (3 / 4, 4 / 3)
  flip: float = 0.5
  antialias: bool = False
  rules: Literal['torchvision', 'simclr', 'byol'] = 'torchvision'

  def __post_init__(self):
    if self.antialias and self.rules != 'torchvision':
      raise ValueError(
        f'views {self.name}: expected antialias=False with rules={self.rules}, '
        'which never antialias, got True'
      )
    if self.count < 1:
      raise ValueError(
        f'views {self.name}: expected count >= 1, got {self.count}'
      )
    if not 0 <= self.flip <= 1:
      raise ValueError(f'flip: expected 0 to 1, got {self.flip}')
    # This constructor checks the remaining fields.
    transforms.InceptionCrop(self.size, self.area, self.aspect)

  def sample_box(
    self, rng: np.random.Generator, image: tuple[int, int]
  ) -> crop_boxes.Box:
    """Samples the box of a crop of an image of (height, width) pixels."""
    return _BOXES[self.rules](rng, image, self.area, self.aspect)

  def resize(self, example: transforms.Example) -> transforms.Example:
    """Resizes a cropped image, and its label map if it has one."""
    if self.rules == 'torchvision':
      return transforms.resize_example(example, self.size, self.antialias)
    image = bicubic.resize_image_bicubic(
      example['image'], self.size, _GRIDS[self.rules]
    )
    return {'image': image}


@dataclasses.dataclass(frozen=True)
class MultiCrop:
  """A transform that replaces `image` by groups of views.

  Boxes are (top, left, height, width) in pixels of the original image; a
  flipped view shows its box mirrored. By the rules of SimCLR, a view is up to
  half a pixel of the image, or of the view, beside its box.

  Attributes:
    groups: groups of crops, each with another name.
    with_labels: whether the label map is cropped, resized and flipped with the
      image, to `label_NAME`.
  """

  groups: tuple[ViewGroup, ...]
  with_labels: bool = False

  def __post_init__(self):
    names = tuple(group.name for group in self.groups)
    if not names or len(set(names)) < len(names):
      raise ValueError(
        f'groups: expected one or more different names, got {names}'
      )
    for group in self.groups:
      if self.with_labels and group.rules != 'torchvision':
        raise ValueError(
          f"views {group.name}: expected rules='torchvision' with label maps, "
          f'got {group.rules!r}'
        )

  def __call__(
    self, example: transforms.Example, rng: np.random.Generator
  ) -> transforms.Example:
    """Crops all views of all groups at random."""
    out = {
      name: value
      for name, value in example.items()
      if name not in ('image', 'label')
    }
    maps = ('image', 'label') if self.with_labels else ('image',)
    image = {name: example[name] for name in maps}
    for group in self.groups:
      views, boxes, flips = [], [], []
      for _ in range(group.count):
        box = group.sample_box(rng, image['image'].shape[:2])
        flipped = bool(rng.random() < group.flip)
        view = group.resize(transforms.crop_example(image, box))
        views.append(transforms.flip_example(view) if flipped else view)
        boxes.append(box)
        flips.append(flipped)
      out[f'views_{group.name}'] = np.stack([view['image'] for view in views])
      if self.with_labels:
        out[f'label_{group.name}'] = np.stack([view['label'] for view in views])
      out[f'box_{group.name}'] = np.asarray(boxes, np.float32)
      out[f'flip_{group.name}'] = np.asarray(flips)
    return out

  def spec(self, batch_size: int) -> dict[str, Any]:
    """Returns shapes and types of a training batch, without any data.

    Args:
      batch_size: global number of rows B.
    """

    def rows(dtype, *shape: int) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    out = {'size': rows(jnp.int32, 2), 'mask': rows(jnp.bool_)}
    for group in self.groups:
      out[f'views_{group.name}'] = rows(jnp.uint8, group.count, *group.size, 3)
      out[f'box_{group.name}'] = rows(jnp.float32, group.count, 4)
      out[f'flip_{group.name}'] = rows(jnp.bool_, group.count)
      if self.with_labels:
        out[f'label_{group.name}'] = rows(jnp.int16, group.count, *group.size)
    return out
