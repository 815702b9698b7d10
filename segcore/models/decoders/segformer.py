"""The decoder of SegFormer: 1x1 convolutions of all maps of the encoder.

SegFormer(width=768).apply(variables, encoder_features).at_stride(4)
"""

import flax.linen as nn
import jax.numpy as jnp

from segcore.models import features as features_lib
from segcore.models.decoders import map_projection, unconditional
from segcore.models.layers import conv_block


class SegFormer(unconditional.UnconditionalDecoder):
  """Projects all maps to one width and fuses them by a 1x1 convolution.

  Reads the encoder's maps at stride 4 and above: four of MiT's. They are
  resized to the finest of them and concatenated, the last one first. Returns
  'fused' at its stride, after batch norm and ReLU. Dropout and classifier are
  a head, `heads.PixelClassifier`.

  Source: Xie et al. 2021 (SegFormer), Sec. 3.2; the width is 256 for MiT-B0 and
  B1 and in AFA (Ru et al. 2022), 768 for the others.

  Attributes:
    width: channels of each projected map, and of the result.
  """

  width: int = 256

  @nn.compact
  def decode(
    self, features: features_lib.Features, train: bool
  ) -> features_lib.Features:
    """Fuses the maps, of which one at least is at stride 4 or above."""
    maps, stride = map_projection.MapProjection(
      'segformer', self.width, self.dtype, name='projection'
    )(features)
    block = conv_block.ConvBlock
    if self.remat:
      block = nn.remat(block, static_argnums=(2,))
    fused = block(
      self.width,
      1,
      dtype=self.dtype,
      kernel_init=conv_block.he_normal_fan_out,
      name='fuse',
    )(jnp.concatenate(maps[::-1], axis=-1), train)
    return features_lib.Features(
      (features_lib.FeatureMap('fused', stride, fused),)
    )
