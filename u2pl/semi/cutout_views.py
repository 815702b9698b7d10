"""Strong views by color and one cutout, which PseudoSeg and PC2Seg share.

  draws = sample_view_draws(keys, options)
  images, seen = strong_views(weak, draws, options)

Colors change by TensorFlow's rules, not torchvision's: brightness is a shift,
contrast is relative to the mean of each channel, saturation is that of HSV.
Source: Zou et al. 2021 (PseudoSeg).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import transforms
from segcore.ops import color_augment, kornia_color
from segcore.types import ExampleKeys
from u2pl import box_masks, mixing
from u2pl.semi import pseudoseg_options

# The mean color, in [-1, 1].
_MEAN_COLOR = np.asarray(transforms.MEAN_COLOR) / 127.5 - 1.0


class ViewDraws(NamedTuple):
  """Random values of the strong view of each image.

  Attributes:
    color: draws of the colors, each with a leading axis of images.
    centers: uniform numbers in [0, 1) for row and column of the center of the
      square.
  """

  color: color_augment.ColorDraws
  centers: Float[Array, 'B 2']


def sample_view_draws(
  keys: ExampleKeys, options: pseudoseg_options.CutoutViewOptions
) -> ViewDraws:
  """Draws colors and cutout of each image.

  Args:
    keys: one key for each image: draws do not depend on the device.
    options: ranges of the colors.
  """
  color = color_augment.sample_batch_color_draws(keys, options.color)
  place_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
  return ViewDraws(color, box_masks.sample_box_uniforms(place_keys, (2,)))


def strong_views(
  weak: Float[Array, 'B H W 3'],
  draws: ViewDraws,
  options: pseudoseg_options.CutoutViewOptions,
  known: Bool[Array, 'B H W'] | None = None,
) -> tuple[Float[Array, 'B H W 3'], Bool[Array, 'B H W']]:
  """Changes the colors of images, then fills a square with the mean color.

  Args:
    weak: images in [-1, 1].
    draws: random values.
    options: side of the square.
    known: pixels without padding, which has the mean color in both views, as
      images are padded after their colors change; None if there is none.

  Returns:
    The images, and the pixels outside of the square.
  """

  def jitter(
    image: Float[Array, 'H W 3'],
    draws: color_augment.ColorDraws,
    known: Bool[Array, 'H W'],
  ) -> Float[Array, 'H W 3']:
    x = 0.5 * (image + 1.0)  # In [0, 1], where the operations are defined.
    change = functools.partial(change_color, known=known)
    return 2.0 * color_augment.jitter_color(x, draws, change) - 1.0

  images, color = weak, jnp.asarray(_MEAN_COLOR, weak.dtype)
  if options.color.jitter:
    if known is None:
      known = jnp.ones(weak.shape[:3], bool)
    changed = jax.vmap(jitter)(weak, draws.color, known)
    changed = jnp.where(known[..., None], changed, color)
    images = jnp.where(draws.color.jitter[:, None, None, None], changed, weak)
  boxes = cutout_boxes(draws.centers, weak.shape[1:3], options.cutout)
  seen = ~mixing.cutmix_box_mask(boxes, *weak.shape[1:3])
  return jnp.where(seen[..., None], images, color), seen


def cutout_boxes(
  centers: Float[Array, 'B 2'], size: tuple[int, int], share: float
) -> Int[Array, 'B 4']:
  """Computes squares around uniform centers, cut off at the image's border.

  A square has the rows from center - side/2 to center + side/2 - 1.

  Args:
    centers: uniform numbers in [0, 1) for row and column of the center.
    size: height and width of the images.
    share: side as a share of the shorter side of the image.

  Returns:
    Top, left, height and width in pixels.
  """
  half = round(share * min(size) / 2)
  limits = jnp.asarray(size)
  # In float32 the product may round up to the side.
  center = jnp.floor(centers * limits).astype(jnp.int32)
  center = jnp.minimum(center, limits - 1)
  first = jnp.maximum(center - half, 0)
  last = jnp.minimum(center + half, limits)
  return jnp.concatenate([first, last - first], axis=1).astype(jnp.int32)


def change_color(
  image: Float[Array, 'H W 3'],
  kind: Int[Array, ''],
  factor: Float[Array, ''],
  known: Bool[Array, 'H W'],
) -> Float[Array, 'H W 3']:
  """Changes colors as `kornia_color`, with contrast around the mean color.

  Args:
    image: image in [0, 1].
    kind: operation, as there.
    factor: factor.
    known: pixels that the mean is taken over.
  """
  total = jnp.sum(jnp.where(known[..., None], image, 0.0), axis=(0, 1))
  mean = total / jnp.maximum(jnp.sum(known, dtype=jnp.int32), 1)
  return kornia_color.change_color(image, kind, factor, mean)
