"""Class prototypes (Eqs. 17-18) and prototypical denoising (Eqs. 19-20)."""

from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.models.layers import resize

# Least squared norm that a vector is divided by.
_LEAST_SQUARED_NORM = 1e-16


@flax.struct.dataclass
class Prototypes:
  """One representation for each class.

  Attributes:
    vectors: float [C, D].
    updates: int32 [C], steps in which the class occurred; the vector of a class
      with 0 updates has no meaning.
  """

  vectors: Any
  updates: Any


def empty_class_prototypes(num_classes: int, size: int) -> Prototypes:
  """Returns prototypes [num_classes, size] without any update."""
  return Prototypes(
    jnp.zeros((num_classes, size)), jnp.zeros(num_classes, jnp.int32)
  )


def class_mean_features(
  features: Float[Array, 'B h w D'], mask: Bool[Array, 'B h w C']
) -> tuple[Float[Array, 'C D'], Int[Array, 'C']]:
  """Computes each class's mean feature (Eq. 17) and its number of cells.

  The mean of a class without cells is 0. The sum runs over the global batch:
  devices exchange sums and counts, not means of unequal parts.
  """
  counts = jnp.sum(mask, axis=(0, 1, 2), dtype=jnp.int32)
  sums = jnp.einsum(
    'bhwc,bhwd->cd',
    mask.astype(features.dtype),
    features,
    precision=jax.lax.Precision.HIGHEST,
  )
  return sums / jnp.maximum(counts, 1)[:, None], counts


def update_class_prototypes(
  old: Prototypes,
  means: Float[Array, 'C D'],
  counts: Int[Array, 'C'],
  momentum: float,
) -> Prototypes:
  """Computes z ← m·z + (1 - m)·mean for the classes that occur (Eq. 18).

  The first mean of a class becomes its prototype. Classes without cells do not
  change.

  Args:
    old: prototypes before the step.
    means: mean features of this step's cells.
    counts: number of cells of each class.
    momentum: momentum m of Eq. 18; 0 takes the means of this step alone.
  """
  # With m = 0.999 a start from 0 would need thousands of steps to forget it, so
  # the first mean is taken as it is.
  occurs = counts > 0
  momenta = jnp.where(old.updates > 0, momentum, 0.0)[:, None]
  vectors = momenta * old.vectors + (1 - momenta) * means
  return Prototypes(
    jnp.where(occurs[:, None], vectors, old.vectors), old.updates + occurs
  )


def class_prototype_distances(
  features: Float[Array, 'B h w D'],
  prototypes: Prototypes,
  kind: Literal['raw', 'l2'],
) -> Float[Array, 'B h w C']:
  """Computes the Euclidean distance of each cell to each prototype.

  A class without a prototype gets the mean distance of the others, so that
  denoising neither favors nor excludes it.

  Args:
    features: features of the teacher.
    prototypes: prototypes of the classes.
    kind: kind of distance: 'l2' between L2-normalized vectors, 'raw' between
      the vectors as they are.
  """
  vectors = prototypes.vectors.astype(features.dtype)
  if kind == 'l2':
    features, vectors = _l2_normalize(features), _l2_normalize(vectors)
  # |a - b|² = |a|² - 2ab + |b|²: the differences [B h w C D] would not fit into
  # memory. Rounding may leave it below 0, hence the maximum.
  squared = (
    jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    - 2
    * jnp.einsum(
      'bhwd,cd->bhwc',
      features,
      vectors,
      precision=jax.lax.Precision.HIGHEST,
    )
    + jnp.sum(jnp.square(vectors), axis=-1)
  )
  euclidean = jnp.sqrt(jnp.maximum(squared, 0.0))
  known = prototypes.updates > 0
  total = jnp.sum(jnp.where(known, euclidean, 0.0), axis=-1, keepdims=True)
  return jnp.where(known, euclidean, total / jnp.maximum(jnp.sum(known), 1))


def class_prototype_weights(
  features: Float[Array, 'B h w D'],
  prototypes: Prototypes,
  kind: Literal['raw', 'l2'],
) -> Float[Array, 'B h w C']:
  """Computes w of Eq. 19, the softmax over classes of the negative distance.

  Args:
    features: representations of the teacher.
    prototypes: prototypes of the classes.
    kind: kind of distance, as in `class_prototype_distances`.
  """
  return jax.nn.softmax(-class_prototype_distances(features, prototypes, kind))


def denoise_with_class_prototypes(
  scores: Float[Array, 'B H W C'],
  features: Float[Array, 'B h w D'],
  prototypes: Prototypes,
  kind: Literal['raw', 'l2'],
  align_corners: bool = True,
) -> Float[Array, 'B H W C']:
  """Computes log(w·p), the logarithm of the denoised scores p* of Eq. 20.

  Args:
    scores: logits of the teacher at the resolution of the image.
    features: representations by the teacher, from whose cells the weights w are
      upsampled.
    prototypes: prototypes before this step's update.
    kind: kind of distance, as in `class_prototype_distances`.
    align_corners: whether weights are upsampled with aligned corners.
  """
  weights = class_prototype_weights(features, prototypes, kind)
  upsampled = resize.resize_bilinear(
    weights, scores.shape[1:3], align_corners=align_corners
  )
  # The product may underflow to 0 for every class; the sum of logarithms keeps
  # the order of the classes.
  return jax.nn.log_softmax(scores) + jnp.log(upsampled)


def _l2_normalize(x: Float[Array, '*shape D']) -> Float[Array, '*shape D']:
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squared, _LEAST_SQUARED_NORM))
