"""Projection of an encoder's maps to one width and one grid.

  # A list of [B, h, w, 256].
  maps, stride = MapProjection('daformer', 256)(features)

The first step of the decoders of SegFormer and DAFormer.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features as features_lib
from segcore.models.layers import conv_block, resize

_MIN_STRIDE = 4


class MapProjection(nn.Module):
  """A 1x1 convolution with bias of each map, resized to the finest grid.

  Reads the maps at stride 4 and above.

  Attributes:
    decoder: name of the decoder in configs, for messages.
    width: channels of the results.
    dtype: dtype of the activations.
  """

  decoder: str
  width: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, features: features_lib.Features
  ) -> tuple[list[Float[Array, 'B h w D']], int | float]:
    """Projects maps; resizes bilinearly, of half-pixel centers.

    Returns:
      The results, and their stride.

    Raises:
      MissingMapError: there is no map at stride 4 or above.
    """
    maps = self._select(features)
    size = maps.at_stride(maps.strides[0]).array.shape[1:3]
    results = []
    for i, each in enumerate(maps.maps, 1):
      x = conv_block.conv(
        each.array.shape[-1], self.width, 1, dtype=self.dtype, name=f'map{i}'
      )(each.array)
      results.append(resize.resize_bilinear(x, size))
    return results, maps.strides[0]

  def _select(self, features: features_lib.Features) -> features_lib.Features:
    """Returns the maps at stride 4 and above."""
    maps = tuple(each for each in features.maps if each.stride >= _MIN_STRIDE)
    if not maps:
      raise features_lib.MissingMapError(
        f'decoder {self.decoder}: expected a map at stride {_MIN_STRIDE} or '
        f'above, got {features.strides_text}'
      )
    return features_lib.Features(maps)
