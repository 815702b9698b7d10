"""Strong augmentation of unlabeled images: parts of one put into another.

Images are mixed within groups of neighbors in the batch, each with the next
one of its group (the last with the first), and a whole group is mixed or left
alone together: the groups stand for what one GPU held in the authors' runs
(spec U2PL §5), so the result does not depend on the number of devices.

  draws = sample(rng, keys, options, labels.shape)
  images, labels = mix(images, labels, draws, options)
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import batch as batch_lib
from input_pipeline import transforms

# What is cut out becomes the mean color, 0 after the authors' normalization.
_CUT_COLOR = np.asarray(transforms.MEAN_COLOR) / 127.5 - 1.0


@dataclasses.dataclass(frozen=True)
class MixingOptions:
  """How unlabeled images are mixed.

  Attributes:
    kind: 'cutmix' (a box of half the area comes from the partner), 'cutout'
      (the box is emptied), 'classmix' (half of the classes stay, the rest is
      the partner's), or 'none'.
    probability: of a group to be mixed.
    group: images that are mixed among each other; divides the batch.
  """

  kind: Literal['none', 'cutmix', 'classmix', 'cutout'] = 'cutmix'
  probability: float = 0.5
  group: int = 4

  def __post_init__(self):
    if not 0 <= self.probability <= 1:
      raise ValueError(
        f'probability: found {self.probability}, expected 0 to 1'
      )
    least = 1 if self.kind in ('none', 'cutout') else 2
    if self.group < least:
      raise ValueError(f'group: found {self.group}, expected >= {least}')


class Draws(NamedTuple):
  """What chance decides.

  Attributes:
    mixed: of each group.
    boxes: top, left, height, width of each image's box, in pixels.
    priorities: of each class, in each image; ClassMix keeps the largest.
  """

  mixed: Bool[Array, 'G']
  boxes: Int[Array, 'B 4']
  priorities: Float[Array, 'B C']


def sample(
  rng: Array,
  keys: Array,
  options: MixingOptions,
  shape: tuple[int, int, int],
  num_classes: int,
) -> Draws:
  """Draws for a global batch.

  Args:
    rng: decides which groups are mixed.
    keys: [B] of keys, one for each image.
    options: its probability and group.
    shape: [B, H, W] of the images.
    num_classes: C.
  """
  num_images, height, width = shape
  chance = jax.random.uniform(rng, (num_images // options.group,))
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (3 + num_classes,)))(
    keys
  )
  return Draws(
    chance < options.probability,
    boxes(uniforms[:, :3], height, width),
    uniforms[:, 3:],
  )


def boxes(
  uniforms: Float[Array, 'B 3'], height: int, width: int
) -> Int[Array, 'B 4']:
  """Boxes of half the image's area, from uniform numbers in [0, 1).

  The width is a whole number, uniform from ⌊W/2 + 1⌋ to W - 1; the height is
  H·W / 2 over it, rounded; the place is uniform.

  Args:
    uniforms: for the width, the top and the left edge.
    height: H of the images, in pixels.
    width: W of the images; at least 4.
  """
  if width < 4:
    raise ValueError(f'images {width} wide are too small to be mixed')

  def draw(uniform: Array, low: Array | int, high: Array | int) -> Array:
    """A whole number, uniform from low to high."""
    found = jnp.floor(uniform * (high - low + 1)).astype(jnp.int32)
    return jnp.minimum(low + found, high)

  w = draw(uniforms[:, 0], width // 2 + 1, width - 1)
  h = jnp.round(height * width / 2 / w).astype(jnp.int32)
  top = draw(uniforms[:, 1], 0, height - h)
  left = draw(uniforms[:, 2], 0, width - w)
  return jnp.stack([top, left, h, w], axis=1)


def inside(
  found: Int[Array, 'B 4'], height: int, width: int
) -> Bool[Array, 'B H W']:
  """Whether each pixel is in its image's box."""
  top, left, h, w = (found[:, i, None, None] for i in range(4))
  rows = jnp.arange(height)[None, :, None]
  columns = jnp.arange(width)[None, None, :]
  return (
    (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
  )


def of_kept_classes(
  labels: Int[Array, 'B H W'], priorities: Float[Array, 'B C']
) -> Bool[Array, 'B H W']:
  """Whether each pixel is of a class that ClassMix keeps.

  Of the n classes in an image the ⌊n/2⌋ of largest priority are kept; ignored
  pixels are not.
  """
  num_classes = priorities.shape[1]
  present = jax.vmap(
    lambda label: (
      jnp.zeros(num_classes, bool)
      .at[jnp.where(label < 0, num_classes, label)]
      .set(True, mode='drop')
    )
  )(labels.reshape(len(labels), -1))
  order = jnp.argsort(jnp.where(present, -priorities, jnp.inf), axis=1)
  place = jnp.argsort(order, axis=1)
  kept = place < jnp.sum(present, axis=1, keepdims=True) // 2
  at_pixel = jax.vmap(lambda row, label: row[jnp.maximum(label, 0)])
  return at_pixel(kept, labels) & (labels >= 0)


def mix(
  images: Float[Array, 'B H W 3'],
  labels: Int[Array, 'B H W'],
  draws: Draws,
  options: MixingOptions,
) -> tuple[Float[Array, 'B H W 3'], Int[Array, 'B H W']]:
  """The mixed images, in [-1, 1], and their labels."""
  if options.kind == 'none':
    return images, labels
  mixed = jnp.repeat(draws.mixed, options.group)[:, None, None]
  if options.kind == 'classmix':
    own = of_kept_classes(labels, draws.priorities)
  else:
    own = ~inside(draws.boxes, *labels.shape[1:])
  own = own | ~mixed
  if options.kind == 'cutout':
    color = jnp.asarray(_CUT_COLOR, images.dtype)
    return (
      jnp.where(own[..., None], images, color),
      jnp.where(own, labels, batch_lib.IGNORE),
    )
  return (
    jnp.where(own[..., None], images, _next_of(images, options.group)),
    jnp.where(own, labels, _next_of(labels, options.group)),
  )


def _next_of(x: Array, group: int) -> Array:
  """Each row's successor in its group."""
  grouped = x.reshape(-1, group, *x.shape[1:])
  return jnp.roll(grouped, -1, axis=1).reshape(x.shape)
