"""The decoder of DeepLabv3+: atrous spatial pyramid pooling and a low level.

DeepLabV3Plus().apply(variables, encoder_features).at_stride(4)
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.models import features as features_lib
from segcore.models.decoders import unconditional
from segcore.models.layers import atrous_pyramid, conv_block, resize

_STRIDE = 4


class DeepLabV3Plus(unconditional.UnconditionalDecoder):
  """Atrous spatial pyramid pooling of the deepest map, joined to stride 4.

  The branches of the pyramid are the mean over the image, a 1x1, and a 3x3 for
  each dilation. A 3x3 fuses them, and the result is resized to the encoder's
  deepest map at stride 4. Returns 'fused' (stride 4): a
  1x1 of that map and the resized result, concatenated, and then, where there
  are any, refined by 3x3 convolutions. Images may have sides of any length.

  Source: Chen et al. 2018, Sec. 3.1, in the variant of U2PL (Wang et al. 2022):
  the low-level map keeps the full width, and the classifier is a head.

  Attributes:
    width: channels of each branch and of the fusion.
    dilations: dilations of the 3x3 convolutions.
    low_width: channels of the low-level map; None for the width. 48 in
      DeepLabv3+, as UniMatch (Yang et al. 2023) has it.
    fuse_kernel: height and width of the kernel of the fusion; 1 in UniMatch.
    dropout_rate: share of the fused channels that are dropped in training.
    num_refinements: number of 3x3 convolutions with norm and ReLU after the
      concatenation, of the width; 0 leaves them to the head.
    separable: whether each 3x3 is a depthwise 3x3 and a 1x1, both with norm
      and ReLU, as in Chen et al. and in mmsegmentation.
    align_corners: whether the resized map has its corners on those of the
      other.
  """

  width: int = 256
  dilations: Sequence[int] = (12, 24, 36)
  low_width: int | None = None
  fuse_kernel: int = 3
  dropout_rate: float = 0.1
  num_refinements: int = 0
  separable: bool = False
  align_corners: bool = True

  @nn.compact
  def decode(
    self, features: features_lib.Features, train: bool
  ) -> features_lib.Features:
    """Fuses the map at stride 4 with the deepest one, pooled at all scales."""
    low, deep = self._low_and_deep(features)

    def block(
      x: Float[Array, 'B h w D'],
      name: str,
      kernel: int = 1,
      width: int | None = None,
      **fields,
    ) -> Float[Array, 'B h w D_out']:
      is_separable = self.separable and kernel > 1
      module = (
        conv_block.SeparableBlock if is_separable else conv_block.ConvBlock
      )
      if self.remat:
        module = nn.remat(module, static_argnums=(2,))
      return module(
        width or self.width, kernel, **fields, dtype=self.dtype, name=name
      )(x, train)

    branches = atrous_pyramid.pyramid_branches(deep, self.dilations, block)
    fused = block(
      jnp.concatenate(branches, axis=-1),
      'fuse',
      self.fuse_kernel,
      dropout_rate=self.dropout_rate,
    )
    fused = resize.resize_bilinear(fused, low.shape[1:3], self.align_corners)
    low = block(low, 'low', width=self.low_width, use_bias=True)
    joined = jnp.concatenate([low, fused], axis=-1)
    for i in range(1, self.num_refinements + 1):
      joined = block(joined, f'refine{i}', 3)
    return features_lib.Features(
      (features_lib.FeatureMap('fused', _STRIDE, joined),)
    )

  def _low_and_deep(
    self, features: features_lib.Features
  ) -> tuple[Float[Array, 'B h w D_low'], Float[Array, 'B h_deep w_deep D']]:
    """Returns the maps at stride 4 and at the largest stride."""
    deep = features.deepest
    if _STRIDE not in features.strides or deep.stride == _STRIDE:
      raise features_lib.MissingMapError(
        f'decoder deeplabv3plus: expected maps at stride {_STRIDE} and at a '
        f'larger one, got {features.strides_text}',
        'use decoder dpt' if len(features.strides) == 1 else '',
      )
    return features.at_stride(_STRIDE).array, deep.array
