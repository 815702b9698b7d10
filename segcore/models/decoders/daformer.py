"""The decoder of DAFormer: all maps of the encoder, fused with wide context.

DAFormer().apply(variables, encoder_features).at_stride(4)
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.models import features as features_lib
from segcore.models.decoders import map_projection, unconditional
from segcore.models.layers import conv_block
from segcore.types import Cells


class DAFormer(unconditional.UnconditionalDecoder):
  """Fuses all maps by a pyramid of dilated separable convolutions.

  Reads the encoder's maps at stride 4 and above: four of MiT's. They are
  projected to one width, resized to the finest of them and concatenated. The
  branches of the pyramid are a 1x1, and a separable 3x3 for each dilation; a
  3x3 fuses them. Returns 'fused' at the stride of the finest map, after batch
  norm and ReLU. Dropout and classifier are a head, `heads.PixelClassifier`.

  Source: Hoyer et al. 2022 (DAFormer), Sec. 3.2.

  Attributes:
    width: channels of each projected map, of each branch, and of the result.
    dilations: dilations of the separable convolutions.
    returns_branches: whether 'branches' is returned as well, the concatenated
      branches of the pyramid.
  """

  width: int = 256
  dilations: Sequence[int] = (6, 12, 18)
  returns_branches: bool = False

  @nn.compact
  def decode(
    self, features: features_lib.Features, train: bool
  ) -> features_lib.Features:
    """Fuses the maps, of which one at least is at stride 4 or above."""
    maps, stride = map_projection.MapProjection(
      'daformer', self.width, self.dtype, name='projection'
    )(features)
    block, separable_block = conv_block.ConvBlock, conv_block.SeparableBlock
    if self.remat:
      block, separable_block = (
        nn.remat(module, static_argnums=(2,))
        for module in (block, separable_block)
      )

    def conv(x: Cells, kernel: int, name: str) -> Float[Array, 'B h w D_out']:
      return block(
        self.width,
        kernel,
        dtype=self.dtype,
        kernel_init=conv_block.he_normal_fan_out,
        name=name,
      )(x, train)

    x = jnp.concatenate(maps, axis=-1)
    branches = [
      conv(x, 1, 'conv1x1'),
      *(
        separable_block(
          self.width,
          dilation=dilation,
          dtype=self.dtype,
          name=f'separable{i}',
        )(x, train)
        for i, dilation in enumerate(self.dilations, 1)
      ),
    ]
    x = jnp.concatenate(branches, axis=-1)
    fused = conv(x, 3, 'fuse')
    named = [('branches', x)] if self.returns_branches else []
    return features_lib.Features(
      tuple(
        features_lib.FeatureMap(name, stride, each)
        for name, each in (*named, ('fused', fused))
      )
    )
