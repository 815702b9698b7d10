"""The decoder of PSPNet: means over grids of several sizes, joined to the map.

PSP().apply(variables, encoder_features).deepest
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from segcore.models import features as features_lib
from segcore.models.decoders import unconditional
from segcore.models.layers import conv_block, resize


class PSP(unconditional.UnconditionalDecoder):
  """Pyramid pooling of the deepest map, at whose stride it ends.

  The map is averaged over grids of b x b bins. A 1x1 reduces each grid to a
  share of the channels, and the grids are resized to the map, concatenated with
  it and fused by a 3x3. Returns 'fused'.

  Source: Zhao et al. 2017 (PSPNet), as CCT (Ouali et al. 2020) has it.

  Attributes:
    bins: number of bins a side of each grid.
    width: channels of the result.
  """

  bins: Sequence[int] = (1, 2, 3, 6)
  width: int = 512

  @nn.compact
  def decode(
    self, features: features_lib.Features, train: bool
  ) -> features_lib.Features:
    """Fuses the deepest map with its means over the grids."""
    deep = features.deepest
    x, block = deep.array, conv_block.ConvBlock
    if self.remat:
      block = nn.remat(block, static_argnums=(2,))
    joined = [x]
    for i, bins in enumerate(self.bins, 1):
      pooled = average_bins(x, bins)
      reduced = block(
        x.shape[-1] // len(self.bins), 1, dtype=self.dtype, name=f'pool{i}'
      )(pooled.astype(self.dtype), train)
      joined.append(resize.resize_bilinear(reduced, x.shape[1:3]))
    fused = block(self.width, 3, dtype=self.dtype, name='fuse')(
      jnp.concatenate(joined, axis=-1), train
    )
    return features_lib.Features(
      (features_lib.FeatureMap('fused', deep.stride, fused),)
    )


def average_bins(
  x: Float[Array, 'B h w D'], bins: int
) -> Float[Array, 'B bins bins D']:
  """Averages a map over a grid of bins, in float32.

  Bin i of an axis of n cells has the cells from ⌊i·n/bins⌋ to ⌈(i+1)·n/bins⌉,
  as torch's AdaptiveAvgPool2d, so that bins overlap where they do not divide n.

  Args:
    x: map.
    bins: number of bins a side.
  """
  rows, columns = (_bin_weights(n, bins) for n in x.shape[1:3])
  return jnp.einsum(
    'ih,jw,bhwd->bijd',
    rows,
    columns,
    x.astype(jnp.promote_types(x.dtype, jnp.float32)),
    precision=jax.lax.Precision.HIGHEST,
  )


def _bin_weights(cells: int, bins: int) -> Float[np.ndarray, 'bins cells']:
  """Computes the weight of each cell (column) in each bin (row)."""
  weights = np.zeros((bins, cells), np.float32)
  for i in range(bins):
    first, end = i * cells // bins, -(-(i + 1) * cells // bins)
    weights[i, first:end] = 1 / (end - first)
  return weights
