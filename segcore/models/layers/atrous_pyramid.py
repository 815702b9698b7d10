"""The branches of atrous spatial pyramid pooling.

Source: Chen et al. 2017 (DeepLabv3), Sec. 3.3.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def pyramid_branches(
  x: Float[Array, 'B h w D'],
  dilations: Sequence[int],
  block: Callable[..., Float[Array, 'B _ _ E']],
) -> list[Float[Array, 'B h w E']]:
  """Computes the mean over the image, a 1x1, and a 3x3 for each dilation.

  Args:
    x: deepest map of an encoder.
    dilations: dilations of the 3x3 convolutions.
    block: function of (map, name, kernel, dilation=…) that applies a
      convolution to a map; names are 'pool', 'conv1x1', 'dilated1', ….
  """
  # In float32: bfloat16 sums of thousands of cells lose the small ones.
  mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
  pooled = block(mean, 'pool')
  return [
    jnp.broadcast_to(pooled, (*x.shape[:3], pooled.shape[-1])),
    block(x, 'conv1x1'),
    *(
      block(x, f'dilated{i}', 3, dilation=dilation)
      for i, dilation in enumerate(dilations, 1)
    ),
  ]
