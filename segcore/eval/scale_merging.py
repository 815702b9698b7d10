"""Maximum of the scores of several scales, at the cells of the first one.

Source: Ru et al. 2022 (AFA), the inference of the released code.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.models.layers import resize


@functools.partial(jax.jit, static_argnames='flip')
def max_over_scales(
  scores: Sequence[Float[Array, 'B _ _ C']], flip: bool
) -> Float[Array, 'B h w C']:
  """Computes the maximum of the scales; of image and flipped image the mean.

  Args:
    scores: scores of the views of whole images, of one scale after the other.
      Those of other scales are resized bilinearly to the cells of the first.
    flip: whether the scores of the flipped image follow those of each scale.
  """
  merged = scores
  if flip:
    merged = [
      (plain + flipped[:, :, ::-1]) / 2
      for plain, flipped in zip(scores[::2], scores[1::2], strict=True)
    ]
  size = merged[0].shape[1:3]
  resized = [resize.resize_bilinear(each, size) for each in merged]
  return functools.reduce(jnp.maximum, resized)
