"""The perturbations of CCT: seven ways to change the map that decoders read.

  foreground = find_foreground(labels)
  draws = sample_draws(rng, kind, z.shape, size)
  perturbed = PERTURBATIONS[kind](z, draws, foreground)

Each of the first six is a function of the map, its random draws and the
foreground of the main decoder's prediction; adversarial noise needs the decoder
it is meant for. Source: Ouali et al. 2020, "Semi-Supervised Semantic
Segmentation with Cross-Consistency Training" (CCT), Sec. 3.2.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.models.layers import resize
from segcore.ops import connected_components
from segcore.train import update as update_lib
from segcore.types import Cells, PixelMask
from u2pl import box_masks
from u2pl.semi import perturbations

# Share of the channels that are dropped.
DROPPED = 0.5
# Range of the factor γ of the largest mean, and of the noise.
_DROP_FACTORS = (0.7, 0.9)
_NOISE = 0.3
# Least perimeter of a component that is cut out, in pixels.
_PERIMETER = 50


class Foreground(NamedTuple):
  """The foreground of images, which guides some of the perturbations.

  Attributes:
    mask: pixels whose predicted class is not 0.
    objects: extent of its connected components, [B, P] each.
  """

  mask: PixelMask
  objects: connected_components.ComponentBoxes


def find_foreground(labels: Int[Array, 'B H W']) -> Foreground:
  """Computes the foreground of predicted labels, and its components."""
  mask = labels > 0
  roots = jax.vmap(connected_components.label_components)(mask)
  return Foreground(mask, jax.vmap(connected_components.component_boxes)(roots))


def sample_draws(
  rng: Array,
  kind: str,
  shape: tuple[int, int, int, int],
  size: tuple[int, int],
) -> Array | None:
  """Draws the random values of one decoder's perturbation.

  Args:
    rng: key of the decoder; what differs between images depends on the index
      of the image in the batch.
    kind: one of `KINDS`.
    shape: shape [B, h, w, D] of the map.
    size: height and width of the images.

  Returns:
    What the function of this kind takes as draws; None for masks.
  """
  keys = update_lib.row_prng_keys(rng, shape[0])
  if kind == 'dropout':
    return perturbations.sample_kept_channels(keys, shape[-1], DROPPED)
  if kind == 'feature_drop':
    return jax.random.uniform(
      rng, (), minval=_DROP_FACTORS[0], maxval=_DROP_FACTORS[1]
    )
  if kind == 'noise':
    return jax.random.uniform(rng, shape[1:], minval=-_NOISE, maxval=_NOISE)
  if kind == 'cutout':
    return box_masks.sample_box_uniforms(keys, (*size, 2))
  if kind == 'vat':
    return box_masks.sample_box_uniforms(keys, shape[1:]) - 0.5
  return None


def drop_random_channels(
  z: Cells, kept: Bool[Array, 'B D'], foreground: Foreground
) -> Cells:
  """Clears half of the channels of each image, and doubles the others."""
  del foreground
  return perturbations.drop_channels(z, kept, DROPPED)


def drop_active_cells(
  z: Cells, factor: Float[Array, ''], foreground: Foreground
) -> Cells:
  """Clears the cells of an image whose mean over channels is about the largest.

  Kept are the cells below γ times the largest mean.

  Args:
    z: map.
    factor: γ, of all images.
    foreground: ignored.
  """
  del foreground
  mean = jnp.mean(z, axis=-1, keepdims=True)
  largest = jnp.max(mean, axis=(1, 2), keepdims=True)
  return jnp.where(mean < largest * factor, z, 0.0)


def add_feature_noise(
  z: Cells, noise: Float[Array, 'h w D'], foreground: Foreground
) -> Cells:
  """Multiplies all images by one and the same map 1 + n."""
  del foreground
  return z * (1 + noise)


def cut_out_objects(
  z: Cells, uniforms: Float[Array, 'B H W 2'], foreground: Foreground
) -> Cells:
  """Clears a box within the bounding box of each object of the foreground.

  Args:
    z: map.
    uniforms: uniform numbers in [0, 1), see `object_box_mask`.
    foreground: objects.
  """
  boxes = jax.vmap(object_box_mask)(foreground.objects, uniforms)
  return _keep(z, ~boxes)


def object_box_mask(
  objects: connected_components.ComponentBoxes,
  uniforms: Float[Array, 'H W 2'],
) -> Bool[Array, 'H W']:
  """Computes a mask of a random box within each object of an image.

  An object is an 8-connected component with a perimeter of more than 50 pixels;
  the authors count the vertices of its contour. The sides of its bounding box
  are the differences of the outermost coordinates; the box has 0.4 of them,
  rounded down, and starts at a uniform integer from 0 to 0.6 of them.

  Args:
    objects: components of the image.
    uniforms: uniform numbers in [0, 1) for row and column of the box's start;
      those at the root of a component are its.
  """
  height, width, _ = uniforms.shape
  uniforms = uniforms.reshape(-1, 2)

  def extent(first: Array, last: Array, uniform: Array) -> tuple[Array, Array]:
    side = last - first
    # In integers: 0.6 · side may round to below a whole number.
    choices = side * 3 // 5 + 1
    offset = jnp.floor(uniform * choices).astype(jnp.int32)
    start = first + jnp.minimum(offset, choices - 1)
    return start, start + side * 2 // 5

  top, bottom = extent(objects.top, objects.bottom, uniforms[:, 0])
  left, right = extent(objects.left, objects.right, uniforms[:, 1])
  # A box is the double cumulative sum of 1, -1, -1, 1 at its corners; however
  # many boxes there are, an image is read once.
  one = (objects.perimeter > _PERIMETER).astype(jnp.int32)
  corners = jnp.zeros((height + 1, width + 1), jnp.int32)
  for row, column, sign in (
    (top, left, 1),
    (top, right, -1),
    (bottom, left, -1),
    (bottom, right, 1),
  ):
    corners = corners.at[row, column].add(sign * one, mode='drop')
  covered = jnp.cumsum(jnp.cumsum(corners, axis=0), axis=1)
  return covered[:height, :width] > 0


def keep_foreground(z: Cells, draws: None, foreground: Foreground) -> Cells:
  """Clears the background (the context mask of the authors)."""
  del draws
  return _keep(z, foreground.mask)


def keep_background(z: Cells, draws: None, foreground: Foreground) -> Cells:
  """Clears the foreground (the object mask of the authors)."""
  del draws
  return _keep(z, ~foreground.mask)


def adversarial_noise(
  decode: Callable[[Cells], Float[Array, 'B h_out w_out C']],
  z: Cells,
  direction: Cells,
  xi: float,
  epsilon: float,
) -> Cells:
  """Computes virtual adversarial noise: one step of the power iteration.

  d ← direction / |direction|
  g = ∂/∂d mean over images of Σ over pixels of
    KL(softmax(decode(z)) || softmax(decode(z + ξ·d)))
  noise = ε·g / |g|

  Norms are those of an image. Nothing has a gradient. Source: Miyato et al.
  2018 (VAT).

  Args:
    decode: decoder, without its parameters.
    z: map.
    direction: random direction.
    xi: ξ. The divergence is of the order ξ²; with the 1e-6 of the released
      config, float32 and the 1e-8 added to norms leave a hundredth of ε.
    epsilon: ε, norm of the noise.
  """
  z = jax.lax.stop_gradient(z)
  target = jax.nn.log_softmax(decode(z))

  def divergence(direction: Cells) -> Float[Array, '']:
    predicted = jax.nn.log_softmax(decode(z + xi * direction))
    return jnp.sum(jnp.exp(target) * (target - predicted)) / len(z)

  gradient = jax.grad(divergence)(_l2_normalize_images(direction))
  return jax.lax.stop_gradient(epsilon * _l2_normalize_images(gradient))


# All but adversarial noise: functions of map, draws and foreground.
PERTURBATIONS: Mapping[str, Callable[..., Cells]] = {
  'dropout': drop_random_channels,
  'feature_drop': drop_active_cells,
  'noise': add_feature_noise,
  'cutout': cut_out_objects,
  'context': keep_foreground,
  'object': keep_background,
}


def _keep(z: Cells, kept: PixelMask) -> Cells:
  """Clears the cells whose nearest pixel is not kept."""
  kept = resize.resize_nearest_floor(kept, z.shape[1:3])
  return jnp.where(kept[..., None], z, 0.0)


def _l2_normalize_images(x: Cells) -> Cells:
  """Divides each image's map by its norm, to which 1e-8 is added."""
  norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True))
  return x / (norm + 1e-8)
