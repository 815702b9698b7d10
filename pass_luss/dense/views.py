"""Views of an image that can be drawn once and computed again.

  draws = sample_view_draws(row_keys(key, indices))
  first = crop_maps(apply_photometry(images, draws.first), draws.box, 320)
  second = crop_maps(features, draws.box, 80)   # the same box of a feature map

Sampling is kept apart from computing: the draws of an image follow from its
index and the number of the epoch, so that clustering, labeling and training
compute the same views (spec comparators §3.2). Source: PiCIE (Cho et al. 2021).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from segcore.models.layers import resize
from segcore.ops import color_augment

# Each change of color is applied with this probability, in a fixed order.
_CHANGE = 0.8
# Ranges of the factors of brightness, contrast and saturation, and of the shift
# of the hue.
_LEAST = (0.7, 0.7, 0.7, -0.1)
_MOST = (1.3, 1.3, 1.3, 0.1)
_IDENTITY = (1.0, 1.0, 1.0, 0.0)
# No gray: the released code stores the switch by one name and reads another.
# The radius that it draws, 3.8 (u - 0.5) + 0.1 with u below 0.5, is negative,
# and Pillow blurs by its absolute value.
_COLORS = color_augment.ColorOptions(jitter=1.0, blur=0.5, sigma=(1e-3, 1.8))
_FLIP = 0.5


class Box(NamedTuple):
  """A square part of an image, relative to its side, and a mirror.

  Attributes:
    scale: [B], side of the box as a part of the side of the image, in [0.5, 1].
    row: [B], vertical position of the box, from 0 (top) to 1 (bottom).
    column: [B], horizontal position, from 0 (left) to 1 (right).
    flip: [B], whether the box is mirrored horizontally.
  """

  scale: Float[Array, 'B']
  row: Float[Array, 'B']
  column: Float[Array, 'B']
  flip: Bool[Array, 'B']


class ViewDraws(NamedTuple):
  """The random values of both views of a batch of images.

  Attributes:
    first: color of view 1; fields have a leading axis B.
    second: color of view 2.
    box: geometry, which both views share.
  """

  first: color_augment.ColorDraws
  second: color_augment.ColorDraws
  box: Box


def row_keys(key: PRNGKeyArray, indices: Int[Array, 'B']) -> Array:
  """Derives the key of each image from its index in the split.

  Args:
    key: key of the run and the epoch.
    indices: places of the images in the split.
  """
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def sample_view_draws(keys: Array) -> ViewDraws:
  """Draws the random values of the views of each image.

  Args:
    keys: key of each image, [B, 2].
  """

  def draw(key: PRNGKeyArray) -> ViewDraws:
    first, second, *others = jax.random.split(key, 6)
    scale_key, row_key, column_key, flip_key = others
    box = Box(
      jax.random.uniform(scale_key, minval=0.5, maxval=1.0),
      jax.random.uniform(row_key),
      jax.random.uniform(column_key),
      jax.random.bernoulli(flip_key, _FLIP),
    )
    return ViewDraws(_sample_colors(first), _sample_colors(second), box)

  return jax.vmap(draw)(keys)


def _sample_colors(key: PRNGKeyArray) -> color_augment.ColorDraws:
  """Draws the colors of one view; a change that is left out is the identity."""
  factor_key, change_key, blur_key, sigma_key = jax.random.split(key, 4)
  least, most = jnp.array(_LEAST), jnp.array(_MOST)
  factors = least + jax.random.uniform(factor_key, (4,)) * (most - least)
  changed = jax.random.bernoulli(change_key, _CHANGE, (4,))
  no = jnp.array(False)
  return color_augment.ColorDraws(
    jitter=jnp.array(True),
    order=jnp.arange(4),
    factors=jnp.where(changed, factors, jnp.array(_IDENTITY)),
    gray=no,
    blur=jax.random.bernoulli(blur_key, _COLORS.blur),
    sigma=jax.random.uniform(
      sigma_key, minval=_COLORS.sigma[0], maxval=_COLORS.sigma[1]
    ),
    solarize=no,
  )


def apply_photometry(
  images: Float[Array, 'B H W 3'], draws: color_augment.ColorDraws
) -> Float[Array, 'B H W 3']:
  """Changes brightness, contrast, saturation and hue, then blurs.

  Args:
    images: images in [-1, 1].
    draws: colors of one view of each image.
  """
  return jax.vmap(
    lambda image, each: color_augment.apply_color_draws(image, each, _COLORS)
  )(images, draws)


def crop_maps(
  maps: Float[Array, 'B h h D'], box: Box, side: int
) -> Float[Array, 'B s s D']:
  """Cuts the box out of images or feature maps, resizes it and mirrors it.

  The box has int(scale·h) cells a side and begins at the rounded shares of the
  rest. It is resized bilinearly, of half-pixel centers, without antialiasing.

  Args:
    maps: square maps.
    box: geometry of each image.
    side: side of the result, in cells.
  """
  crop = resize.resize_by_matrices(
    maps, *_box_matrices(box, maps.shape[1], side, inverse=False)
  )
  return jnp.where(box.flip[:, None, None, None], crop[:, :, ::-1], crop)


def shrink_images(
  images: Float[Array, 'B h h 3'], side: int
) -> Float[Array, 'B s s 3']:
  """Resizes whole square images bilinearly, antialiased as by Pillow."""
  matrix = resize.bilinear_resize_matrix(images.shape[1], side, antialias=True)
  matrices = jnp.broadcast_to(matrix, (len(images), *matrix.shape))
  return resize.resize_by_matrices(images, matrices, matrices)


def uncrop_maps(
  crops: Float[Array, 'B s s D'], box: Box, side: int
) -> tuple[Float[Array, 'B h h D'], Bool[Array, 'B h h']]:
  """Places maps of views where their boxes are; the inverse of `crop_maps`.

  Args:
    crops: maps of the views.
    box: geometry of each image.
    side: side of the map of the whole image, in cells.

  Returns:
    Maps of the whole images, 0 outside of the boxes, and the cells inside.
  """
  crops = jnp.where(box.flip[:, None, None, None], crops[:, :, ::-1], crops)
  rows, columns = _box_matrices(box, side, crops.shape[1], inverse=True)
  inside = [jnp.sum(each, axis=-1) > 0.5 for each in (rows, columns)]
  return (
    resize.resize_by_matrices(crops, rows, columns),
    inside[0][:, :, None] & inside[1][:, None, :],
  )


def _box_matrices(
  box: Box, whole: int, side: int, inverse: bool
) -> list[Float[Array, 'B _ _']]:
  """Computes the weights of rows and of columns, without the mirror."""
  length = jnp.floor(box.scale * whole).astype(jnp.int32)
  matrices = []
  for share in (box.row, box.column):
    start = jnp.round((whole - length) * share).astype(jnp.int32)
    part = resize.Intervals(start, length, whole)
    view = resize.Intervals(
      jnp.zeros_like(start), jnp.full_like(start, side), side
    )
    old, new = (view, part) if inverse else (part, view)
    matrices.append(resize.interval_resize_matrices(old, new))
  return matrices
