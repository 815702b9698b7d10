"""Strong augmentation by mixing: CutMix, ClassMix, Cutout, and DACS.

Unlabeled images are mixed within groups of consecutive images of the batch,
each with the next one of its group (the last with the first); a group is mixed
as a whole or not at all. A group is the batch of one GPU in the authors' runs
(spec U2PL §5), so the result does not depend on the number of devices.

  draws = sample_mixing_draws(rng, keys, options, labels.shape, num_classes)
  images, labels = mix_unlabeled_images(images, labels, draws, options)

In DACS each target image gets pixels of the source image of the same row:

  kept = dacs_kept_mask(source_labels, priorities)
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from input_pipeline import batch as batch_lib
from input_pipeline import transforms
from segcore.types import PixelMask

# Cutout fills with the mean color, which is 0 after the authors' normalization.
_CUTOUT_COLOR = np.asarray(transforms.MEAN_COLOR) / 127.5 - 1.0

# Pixels with any number of channels, or none.
Pixels = Shaped[Array, 'B H W *D']


@dataclasses.dataclass(frozen=True)
class MixingOptions:
  """Options of the strong augmentation of unlabeled images.

  Attributes:
    kind: 'cutmix' (a box of half the area comes from the partner), 'cutout'
      (the box is filled with the mean color and ignored), 'classmix' (half of
      the classes stay, all other pixels come from the partner), or 'none'.
    probability: probability that a group is mixed, 0 to 1.
    group: number of images that are mixed with each other; divides the batch.
  """

  kind: Literal['none', 'cutmix', 'classmix', 'cutout'] = 'cutmix'
  probability: float = 0.5
  group: int = 4

  def __post_init__(self):
    if not 0 <= self.probability <= 1:
      raise ValueError(f'probability: expected 0 to 1, got {self.probability}')
    least = 1 if self.kind in ('none', 'cutout') else 2
    if self.group < least:
      raise ValueError(
        f'group: expected >= {least} for kind={self.kind}, got {self.group}'
      )


class MixDraws(NamedTuple):
  """Random draws of a global batch.

  Attributes:
    mixed: whether each of G groups is mixed.
    boxes: top, left, height, width of each image's box, in pixels.
    priorities: random priority of each class in each image; ClassMix keeps the
      largest ones.
  """

  mixed: Bool[Array, 'G']
  boxes: Int[Array, 'B 4']
  priorities: Float[Array, 'B C']


def sample_mixing_draws(
  rng: Array,
  keys: Array,
  options: MixingOptions,
  shape: tuple[int, int, int],
  num_classes: int,
) -> MixDraws:
  """Draws which groups are mixed, the boxes and the classes' priorities.

  Args:
    rng: key of the groups' draws.
    keys: one key for each image, [B]: its draws do not depend on the device.
    options: probability and group.
    shape: number, height and width (B, H, W) of the images.
    num_classes: number C of classes.
  """
  # A key of each image for what differs between images, and one of the step for
  # what its group shares.
  num_images, height, width = shape
  chance = jax.random.uniform(rng, (num_images // options.group,))
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (3 + num_classes,)))(
    keys
  )
  return MixDraws(
    chance < options.probability,
    cutmix_boxes(uniforms[:, :3], height, width),
    uniforms[:, 3:],
  )


def cutmix_boxes(
  uniforms: Float[Array, 'B 3'], height: int, width: int
) -> Int[Array, 'B 4']:
  """Computes boxes of half the image's area from uniform numbers in [0, 1).

  The width is an integer, uniform from ⌊W/2 + 1⌋ to W - 1; the height is
  H·W / 2 divided by it, rounded; the position is uniform.

  Args:
    uniforms: uniform numbers in [0, 1) for the width, the top and the left
      edge.
    height: height H of the images, in pixels.
    width: width W of the images, at least 4 pixels.

  Raises:
    ValueError: the images are too narrow.
  """
  if width < 4:
    raise ValueError(f'width: expected at least 4 pixels to mix, got {width}')

  def draw(uniform: Array, low: Array | int, high: Array | int) -> Array:
    """Returns an integer, uniform from low to high."""
    offset = jnp.floor(uniform * (high - low + 1)).astype(jnp.int32)
    # In float32 the product may round up to high - low + 1.
    return jnp.minimum(low + offset, high)

  w = draw(uniforms[:, 0], width // 2 + 1, width - 1)
  h = jnp.round(height * width / 2 / w).astype(jnp.int32)
  top = draw(uniforms[:, 1], 0, height - h)
  left = draw(uniforms[:, 2], 0, width - w)
  return jnp.stack([top, left, h, w], axis=1)


def cutmix_box_mask(
  boxes: Int[Array, 'B 4'], height: int, width: int
) -> PixelMask:
  """Computes a mask of the pixels in each image's box."""
  top, left, h, w = (boxes[:, i, None, None] for i in range(4))
  rows = jnp.arange(height)[None, :, None]
  columns = jnp.arange(width)[None, None, :]
  return (
    (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
  )


def classmix_kept_mask(
  labels: Int[Array, 'B H W'], priorities: Float[Array, 'B C']
) -> PixelMask:
  """Computes a mask of the pixels whose class ClassMix keeps.

  Of the n classes of an image the ⌊n/2⌋ of largest priority are kept; ignored
  pixels are never kept.
  """
  present = _present_classes(labels, priorities.shape[1])
  half = jnp.sum(present, axis=1, keepdims=True) // 2
  kept = _first_classes(present, priorities, half)
  return _pixels_of_classes(labels, kept) & (labels >= 0)


def dacs_kept_mask(
  labels: Int[Array, 'B H W'], priorities: Float[Array, 'B C']
) -> PixelMask:
  """Computes a mask of the source pixels that are pasted into target images.

  Of the n classes of the whole batch the ⌈n/2⌉ of largest priority are kept, in
  each image by its own priorities. Ignored pixels are a class, the last one.
  Source: Tranheden et al. 2021 (DACS), as DAFormer (Hoyer et al. 2022) has it.

  Args:
    labels: ground truth of the source images; negative where ignored.
    priorities: random priority of each class in each image; C is the number of
      classes and 1, for ignored pixels.
  """
  num_classes = priorities.shape[1]
  labels = jnp.where(labels < 0, num_classes - 1, labels)
  present = jnp.any(
    _present_classes(labels, num_classes), axis=0, keepdims=True
  )
  half = (jnp.sum(present, axis=1, keepdims=True) + 1) // 2
  return _pixels_of_classes(labels, _first_classes(present, priorities, half))


def _present_classes(
  labels: Int[Array, 'B H W'], num_classes: int
) -> Bool[Array, 'B C']:
  """Computes which classes each image shows."""
  # Ignored pixels are sent out of bounds, where the scatter drops them; a
  # negative index would count from the end and mark a class.
  return jax.vmap(
    lambda label: (
      jnp.zeros(num_classes, bool)
      .at[jnp.where(label < 0, num_classes, label)]
      .set(True, mode='drop')
    )
  )(labels.reshape(len(labels), -1))


def _first_classes(
  present: Bool[Array, '#B C'],
  priorities: Float[Array, 'B C'],
  counts: Int[Array, '#B 1'],
) -> Bool[Array, 'B C']:
  """Computes the present classes of the `counts` largest priorities."""
  # Classes by falling priority, absent ones last; then each class's place.
  order = jnp.argsort(jnp.where(present, -priorities, jnp.inf), axis=1)
  return jnp.argsort(order, axis=1) < counts


def _pixels_of_classes(
  labels: Int[Array, 'B H W'], classes: Bool[Array, 'B C']
) -> PixelMask:
  """Computes a mask of the pixels of each image's classes."""
  at_pixel = jax.vmap(lambda row, label: row[jnp.maximum(label, 0)])
  return at_pixel(classes, labels)


def mix_unlabeled_images(
  images: Float[Array, 'B H W 3'],
  labels: Int[Array, 'B H W'],
  draws: MixDraws,
  options: MixingOptions,
  *maps: Shaped[Array, 'B H W'],
) -> tuple[Array, ...]:
  """Mixes images in [-1, 1] and their labels as drawn.

  Args:
    images: images in [-1, 1].
    labels: their labels, which ClassMix chooses from.
    draws: random draws of the batch.
    options: kind and group.
    *maps: further values of the pixels, mixed as the labels are; Cutout, which
      ignores the labels in its box, leaves them.

  Returns:
    Images, labels and maps.
  """
  if options.kind == 'none':
    return images, labels, *maps
  mixed = jnp.repeat(draws.mixed, options.group)[:, None, None]
  if options.kind == 'classmix':
    own = classmix_kept_mask(labels, draws.priorities)
  else:
    own = ~cutmix_box_mask(draws.boxes, *labels.shape[1:])
  own = own | ~mixed
  if options.kind == 'cutout':
    color = jnp.asarray(_CUTOUT_COLOR, images.dtype)
    return (
      jnp.where(own[..., None], images, color),
      jnp.where(own, labels, batch_lib.IGNORE),
      *maps,
    )
  return (
    jnp.where(own[..., None], images, _partners(images, options.group)),
    *(
      jnp.where(own, values, _partners(values, options.group))
      for values in (labels, *maps)
    ),
  )


def _partners(x: Array, group: int) -> Array:
  """Returns each row's successor in its group, cyclically."""
  grouped = x.reshape(-1, group, *x.shape[1:])
  return jnp.roll(grouped, -1, axis=1).reshape(x.shape)


def paste_partners(
  own: Pixels, others: Pixels, mask: PixelMask, group: int
) -> Pixels:
  """Replaces pixels under a mask by those of the partner in `others`.

  The partner of an image is that at the mirrored place of its group: of two
  images the other one, of a whole batch that of the reversed batch.

  Args:
    own: values of the pixels outside of the mask.
    others: values that the partners take part with.
    mask: pixels that come from the partner.
    group: number of consecutive images of a group.
  """
  grouped = others.reshape(-1, group, *others.shape[1:])
  partners = grouped[:, ::-1].reshape(others.shape)
  mask = mask.reshape(*mask.shape, *(1,) * (own.ndim - mask.ndim))
  return jnp.where(mask, partners, own)
