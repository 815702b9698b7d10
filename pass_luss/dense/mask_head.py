"""The head of MaskContrast: DeepLab, embeddings and saliency of cells."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import heads as heads_lib
from segcore.models.layers import atrous_pyramid, conv_block
from segcore.ops import losses

# Names of the modules of the head.
MODULES = ('deeplab', 'embedding', 'saliency')


class DeepLab(nn.Module):
  """Atrous spatial pyramid pooling, a projection, and a 3x3 convolution.

  Dropout is that of single values, after the projection.
  Source: Chen et al. 2017 (DeepLabv3), as torchvision has it.

  Attributes:
    width: channels of each branch and of the result.
    dilations: dilations of the 3x3 branches.
    dropout_rate: share of the projected values that are dropped in training.
    dtype: dtype of the activations.
  """

  width: int
  dilations: Sequence[int]
  dropout_rate: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool
  ) -> Float[Array, 'B h w E']:
    """Computes the features of cells."""

    def block(
      x: Float[Array, 'B h w D'], name: str, kernel: int = 1, dilation: int = 1
    ) -> Float[Array, 'B h w E']:
      return conv_block.ConvBlock(
        self.width, kernel, dilation, dtype=self.dtype, name=name
      )(x, train)

    branches = atrous_pyramid.pyramid_branches(x, self.dilations, block)
    projected = block(jnp.concatenate(branches, axis=-1), 'project')
    projected = nn.Dropout(self.dropout_rate, deterministic=not train)(
      projected
    )
    return block(projected, 'refine', 3)


class MaskHead(heads_lib.EncoderHead):
  """Embeddings of cells and their saliency, from the encoder's deepest map.

  Attributes:
    size: number of features of an embedding.
    width: channels of DeepLab.
    dilations: dilations of its 3x3 branches.
    dropout_rate: share of its projected values that are dropped in training.
    dtype: dtype of the activations; outputs are float32 at least.
  """

  size: int = 32
  width: int = 256
  dilations: Sequence[int] = (12, 24, 36)
  dropout_rate: float = 0.5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """Computes the embedding of each cell, then its saliency logit."""
    x = DeepLab(
      self.width, self.dilations, self.dropout_rate, self.dtype, name='deeplab'
    )(x, train)
    outputs = [
      conv_block.conv(
        x.shape[-1], count, 1, dtype=self.dtype, name=name, use_bias=use_bias
      )(x)
      for name, count, use_bias in (
        ('embedding', self.size, True),
        ('saliency', 1, False),
      )
    ]
    return losses.at_least_float32(jnp.concatenate(outputs, axis=-1))
