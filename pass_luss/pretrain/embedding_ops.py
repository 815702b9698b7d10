"""Operations on feature maps and embeddings that all steps of PASS share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.models.layers import resize
from segcore.ops import losses

# Factor by which maps are enlarged before pixel attention (spec §3.1).
UPSAMPLING = 4
# Sinkhorn divides similarities by ε = 0.05 and exponentiates them, so the
# error of a bfloat16 product would be multiplied by 20 in the exponent.
EXACT = jax.lax.Precision.HIGHEST
# Floor of the divisor in L2 normalization: n(x) = x / max(|x|, 1e-12).
_MIN_NORM = 1e-12


def average_pool_embeddings(x: Float[Array, 'B h w D']) -> Float[Array, 'B D']:
  """Averages each map over its positions, in float32 or wider."""
  return jnp.mean(losses.at_least_float32(x), axis=(1, 2))


def upsample_embeddings(x: Float[Array, 'B h w D']) -> Float[Array, 'B H W D']:
  """Enlarges maps four times bilinearly, in float32 or wider."""
  height, width = x.shape[1:3]
  return resize.resize_bilinear(
    losses.at_least_float32(x), (UPSAMPLING * height, UPSAMPLING * width)
  )


def l2_normalize_embeddings(
  vectors: Float[Array, '*shape D'], axis: int = -1
) -> Float[Array, '*shape D']:
  """Divides vectors by their L2 norms, in float32 or wider; 0 stays 0."""
  vectors = losses.at_least_float32(vectors)
  # The floor is applied to the square: the root of max(|x|², floor²) has a
  # finite gradient at x = 0, where the root of |x|² has none.
  square = jnp.sum(jnp.square(vectors), axis=axis, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.maximum(square, _MIN_NORM**2))


def prototype_similarities(
  embeddings: Float[Array, '*shape D'], prototypes: Float[Array, 'D K']
) -> Float[Array, '*shape K']:
  """Computes inner products with prototypes, at full float32 precision.

  They are cosines where both sides are L2-normalized.
  """
  return jnp.einsum('...d,dk->...k', embeddings, prototypes, precision=EXACT)


def cosine_similarities(
  a: Float[Array, '*shape D'], b: Float[Array, '*shape D']
) -> Float[Array, '*shape']:
  """Computes a·b / max(|a| |b|, 1e-8); 0, with a gradient of 0, at a = 0."""
  a, b = losses.at_least_float32(a), losses.at_least_float32(b)
  # The floor is applied to the product of squares, whose root it then is: the
  # gradient of a root at 0 would be infinite.
  squares = jnp.sum(jnp.square(a), axis=-1) * jnp.sum(jnp.square(b), axis=-1)
  return jnp.sum(a * b, axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))
