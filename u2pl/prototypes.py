"""The mean representation of each class, and labels mended by it.

Eq. 18 (momentum) and Eqs. 19-20 (prototypical denoising) of U2PL+.
"""

from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class Prototypes:
  """One vector for each class.

  Attributes:
    vectors: [C, D].
    updates: int32 [C], how often the class was met; 0: there is no vector.
  """

  vectors: Any
  updates: Any


def empty(num_classes: int, size: int) -> Prototypes:
  """No class was met yet."""
  return Prototypes(
    jnp.zeros((num_classes, size)), jnp.zeros(num_classes, jnp.int32)
  )


def class_means(
  features: Float[Array, 'B h w D'], mask: Bool[Array, 'B h w C']
) -> tuple[Float[Array, 'C D'], Int[Array, 'C']]:
  """Mean of the features of each class's cells, and how many they are.

  A class without cells has a mean of 0.
  """
  counts = jnp.sum(mask, axis=(0, 1, 2), dtype=jnp.int32)
  sums = jnp.einsum(
    'bhwc,bhwd->cd',
    mask.astype(features.dtype),
    features,
    precision=jax.lax.Precision.HIGHEST,
  )
  return sums / jnp.maximum(counts, 1)[:, None], counts


def update(
  old: Prototypes,
  means: Float[Array, 'C D'],
  counts: Int[Array, 'C'],
  momentum: float,
) -> Prototypes:
  """z ← m·z + (1 - m)·mean for the classes that were met (Eq. 18).

  The first mean of a class is taken whole. Classes without cells stay.

  Args:
    old: before.
    means: of this step.
    counts: cells of each class.
    momentum: m; 0 takes the means of this step alone.
  """
  met = counts > 0
  kept = jnp.where(old.updates > 0, momentum, 0.0)[:, None]
  moved = kept * old.vectors + (1 - kept) * means
  return Prototypes(
    jnp.where(met[:, None], moved, old.vectors), old.updates + met
  )


def distances(
  features: Float[Array, 'B h w D'],
  prototypes: Prototypes,
  kind: Literal['raw', 'l2'],
) -> Float[Array, 'B h w C']:
  """Euclidean distance of each cell to each prototype.

  A class that was never met is as far as the others are in the mean.

  Args:
    features: of the teacher.
    prototypes: of the classes.
    kind: 'l2' brings features and prototypes to length 1 before.
  """
  vectors = prototypes.vectors.astype(features.dtype)
  if kind == 'l2':
    features, vectors = _unit(features), _unit(vectors)
  # |a - b|² from products: the differences [B h w C D] would not fit.
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
  found = jnp.sqrt(jnp.maximum(squared, 0.0))
  seen = prototypes.updates > 0
  total = jnp.sum(jnp.where(seen, found, 0.0), axis=-1, keepdims=True)
  return jnp.where(seen, found, total / jnp.maximum(jnp.sum(seen), 1))


def weights(
  features: Float[Array, 'B h w D'],
  prototypes: Prototypes,
  kind: Literal['raw', 'l2'],
) -> Float[Array, 'B h w C']:
  """w of Eq. 19: softmax over the classes of the negative distance."""
  return jax.nn.softmax(-distances(features, prototypes, kind))


def _unit(x: Float[Array, '*shape D']) -> Float[Array, '*shape D']:
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-16))
