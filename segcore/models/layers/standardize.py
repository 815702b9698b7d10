"""Standardization of images by the statistics that public weights expect."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Mean and standard deviation of ImageNet's images, of [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406])
_STD = np.array([0.229, 0.224, 0.225])


def standardize_by_imagenet(
  images: Float[Array, 'B H W 3'],
) -> Float[Array, 'B H W 3']:
  """Standardizes images in [-1, 1] by ImageNet's mean and deviation.

  In float32 at least: pixels are rounded to a network's type once, afterwards.
  """
  x = images.astype(jnp.promote_types(images.dtype, jnp.float32))
  mean, std = jnp.asarray(_MEAN, x.dtype), jnp.asarray(_STD, x.dtype)
  return ((x + 1.0) / 2.0 - mean) / std


def destandardize_by_imagenet(
  images: Float[Array, 'B H W 3'],
) -> Float[Array, 'B H W 3']:
  """Computes images in [-1, 1] from standardized ones."""
  mean, std = jnp.asarray(_MEAN, images.dtype), jnp.asarray(_STD, images.dtype)
  return 2.0 * (images * std + mean) - 1.0
