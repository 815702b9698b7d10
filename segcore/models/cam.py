"""Class activation maps (CAMs): the evidence of each class at each cell.

  kernel = params['heads']['tags']['dense']['kernel']    # [D, C]
  maps = [
    cam.class_activation_maps(features(cam.resize_and_flip(images, s)), kernel)
    for s in (1.0, 0.5, 1.5)
  ]
  cams = cam.fuse_scaled_cams(maps, images.shape[1:3])   # [B, H, W, C], 0 to 1

Any linear classifier of pooled features has them, whatever the encoder and the
pooling. Source: Zhou et al. 2016.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.models.layers import resize
from segcore.ops import losses

# Added to the maximum that a map is divided by.
_EPSILON = 1e-5


def class_activation_maps(
  features: Float[Array, 'B h w D'], kernel: Float[Array, 'D C']
) -> Float[Array, 'B h w C']:
  """Computes the score of each class at each cell, without the bias.

  Args:
    features: map that the classifier pools.
    kernel: kernel of the classifier.
  """
  return jnp.einsum(
    'bhwd,dc->bhwc',
    losses.at_least_float32(features),
    kernel,
    precision=jax.lax.Precision.HIGHEST,
  )


def resize_and_flip(
  images: Float[Array, 'B H W 3'], scale: float
) -> Float[Array, 'B_doubled h w 3']:
  """Resizes images bilinearly, and adds each of them flipped left to right.

  Row 2b is image b, row 2b + 1 the flipped one: rows stay on their device.

  Args:
    images: images in any range.
    scale: factor of both sides, which are rounded down.
  """
  size = tuple(max(int(scale * side), 1) for side in images.shape[1:3])
  resized = resize.resize_bilinear(images, size)
  pairs = jnp.stack([resized, resized[:, :, ::-1]], axis=1)
  return pairs.reshape(-1, *resized.shape[1:])


def merge_flipped_cams(
  cams: Float[Array, 'B_doubled h w C'], size: resize.Size
) -> Float[Array, 'B H W C']:
  """Computes the maximum of the maps of image and flipped image, 0 at least.

  Args:
    cams: maps of `resize_and_flip`ped images.
    size: height and width to which maps are upsampled bilinearly first.
  """
  upsampled = resize.resize_bilinear(cams, size)
  return jnp.maximum(jnp.maximum(*_flip_back(upsampled)), 0.0)


def sum_flipped_cams(
  cams: Float[Array, 'B_doubled h w C'],
) -> Float[Array, 'B h w C']:
  """Adds the maps of flipped images, flipped back, to those of the images.

  Args:
    cams: maps of `resize_and_flip`ped images.
  """
  plain, flipped = _flip_back(cams)
  return plain + flipped


def _flip_back(
  cams: Float[Array, 'B_doubled h w C'],
) -> tuple[Float[Array, 'B h w C'], Float[Array, 'B h w C']]:
  """Returns the maps of images, and those of flipped images flipped back."""
  pairs = cams.reshape(-1, 2, *cams.shape[1:])
  return pairs[:, 0], pairs[:, 1, :, ::-1]


def normalize_cams(cams: Float[Array, 'B H W C']) -> Float[Array, 'B H W C']:
  """Scales the map of each class in each image to 0…1.

  The map of a class that the image does not show spans 0…1 as well.
  """
  shifted = cams - jnp.min(cams, axis=(1, 2), keepdims=True)
  return shifted / (jnp.max(shifted, axis=(1, 2), keepdims=True) + _EPSILON)


def fuse_scaled_cams(
  cams: Sequence[Float[Array, 'B_doubled _ _ C']], size: resize.Size
) -> Float[Array, 'B H W C']:
  """Computes the normalized sum of the merged maps of several scales.

  Args:
    cams: for each scale the maps of `resize_and_flip`ped images.
    size: height and width of the result.
  """
  return normalize_cams(sum(merge_flipped_cams(each, size) for each in cams))
