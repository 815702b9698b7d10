"""Masks of random boxes, whose pixels come from another image.

  uniforms = sample_box_uniforms(keys, (3, 4))
  masks = xor_box_masks(uniforms, height, width)

The boxes of CutMix in U2PL have half of an image's area: see `mixing`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from runtime.option_ranges import AtLeastOne, CheckedOptions, UnitInterval
from u2pl import mixing


@dataclasses.dataclass(frozen=True)
class BoxOptions(CheckedOptions):
  """Options of boxes of random area and aspect ratio (UniMatch).

  Attributes:
    probability: probability that an image has a box.
    areas: range of the share of the image's area.
    aspects: range of the height divided by the width.
    attempts: number of aspect ratios and places that are drawn; the first box
      inside of the image is taken. Where none is, the image has no box.
  """

  probability: UnitInterval = 0.5
  areas: tuple[float, float] = (0.02, 0.4)
  aspects: tuple[float, float] = (0.3, 1 / 0.3)
  attempts: AtLeastOne = 128

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.areas[0] <= self.areas[1] <= 1:
      raise ValueError(
        f'areas: expected 0 < low <= high <= 1, got {self.areas}'
      )
    if not 0 < self.aspects[0] <= self.aspects[1]:
      raise ValueError(f'aspects: expected 0 < low <= high, got {self.aspects}')


def sample_box_uniforms(
  keys: Array, shape: tuple[int, ...]
) -> Float[Array, 'B ...']:
  """Draws uniform numbers in [0, 1) for each image.

  Args:
    keys: one key for each image, [B]: its draws do not depend on the device.
    shape: shape of an image's numbers.
  """
  return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def xor_box_masks(
  uniforms: Float[Array, 'B K 4'],
  height: int,
  width: int,
  areas: tuple[float, float] = (0.25, 0.5),
) -> Bool[Array, 'B H W']:
  """Computes masks of the pixels in an odd number of an image's K boxes.

  A box has a share a of the area, uniform in `areas`, of which its height takes
  the factor a^u and its width the rest, u uniform; both sides are scaled by
  √(1/K) and rounded, and the place is uniform. Source: French et al. 2020, as
  CPS (Chen et al. 2021) has it with K = 3.

  Args:
    uniforms: uniform numbers in [0, 1) for area, height, top and left edge.
    height: height H of the images, in pixels.
    width: width W of the images, in pixels.
    areas: range of the area of a box before it is scaled.
  """
  num_boxes = uniforms.shape[1]
  area = areas[0] + (areas[1] - areas[0]) * uniforms[..., 0]
  tall = area ** uniforms[..., 1]
  scale = num_boxes**-0.5
  h = jnp.round(scale * tall * height)
  w = jnp.round(scale * area / tall * width)
  top = jnp.round((height - h) * uniforms[..., 2])
  left = jnp.round((width - w) * uniforms[..., 3])
  boxes = jnp.stack([top, left, h, w], axis=-1).astype(jnp.int32)
  masks = mixing.cutmix_box_mask(boxes.reshape(-1, 4), height, width)
  masks = masks.reshape(-1, num_boxes, height, width)
  return jnp.sum(masks, axis=1, dtype=jnp.int32) % 2 == 1


def first_fitting_boxes(
  share: Float[Array, 'B'],
  attempts: Float[Array, 'B N 3'],
  height: int,
  width: int,
  options: BoxOptions,
) -> Int[Array, 'B 4']:
  """Computes boxes of random area and aspect ratio inside of images.

  Area and aspect ratio are uniform in their ranges; the place of the upper left
  corner is uniform in the image. The area is drawn once, all else until the box
  does not exceed the image. Source: UniMatch (Yang et al. 2023).

  Args:
    share: uniform numbers in [0, 1) for the area.
    attempts: uniform numbers in [0, 1) for aspect ratio, left and top edge.
    height: height H of the images, in pixels.
    width: width W of the images, in pixels.
    options: ranges of area and aspect ratio.

  Returns:
    Top, left, height and width in pixels; zeros where no attempt fits.
  """
  low, high = options.areas
  area = (low + (high - low) * share[:, None]) * height * width
  low, high = options.aspects
  aspect = low + (high - low) * attempts[..., 0]
  w = jnp.floor(jnp.sqrt(area / aspect)).astype(jnp.int32)
  h = jnp.floor(jnp.sqrt(area * aspect)).astype(jnp.int32)
  # In float32 the product may round up to the side.
  left, top = (
    jnp.minimum(jnp.floor(u * side).astype(jnp.int32), side - 1)
    for u, side in ((attempts[..., 1], width), (attempts[..., 2], height))
  )
  fits = (left + w <= width) & (top + h <= height)
  first = jnp.argmax(fits, axis=1)[:, None, None]
  boxes = jnp.stack([top, left, h, w], axis=-1)
  boxes = jnp.take_along_axis(boxes, first, axis=1)[:, 0]
  return jnp.where(jnp.any(fits, axis=1)[:, None], boxes, 0)


def sample_box_masks(
  keys: Array, height: int, width: int, options: BoxOptions
) -> Bool[Array, 'B H W']:
  """Draws the mask of each image's box; empty for an image without one.

  Args:
    keys: one key for each image, [B].
    height: height H of the images, in pixels.
    width: width W of the images, in pixels.
    options: probability, area and aspect ratio.
  """
  uniforms = sample_box_uniforms(keys, (2 + 3 * options.attempts,))
  attempts = uniforms[:, 2:].reshape(-1, options.attempts, 3)
  boxes = first_fitting_boxes(uniforms[:, 1], attempts, height, width, options)
  has_box = uniforms[:, :1] < options.probability
  return mixing.cutmix_box_mask(jnp.where(has_box, boxes, 0), height, width)
