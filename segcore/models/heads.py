"""Heads: from a map of the encoder or decoder to scores."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models.layers import conv_block


class ConvHead(nn.Module):
  """One convolution with bias: a score or a value for each cell.

  Attributes:
    out_features: channels of the result, which is float32 at least.
    kernel: height and width of the kernel.
    reads: whose map it reads, 'encoder' or 'decoder'.
    stride: of the map it reads; None for the deepest.
    map_name: name of the map it reads, instead of its stride.
    init_scale: of the kernel's first values, against a unit variance of the
      result; 0 for a head that starts at zero.
    dtype: of the convolution.
  """

  out_features: int
  kernel: int = 3
  reads: str = 'decoder'
  stride: int | None = 1
  map_name: str | None = None
  init_scale: float = 1.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w C']:
    """Scores each cell."""
    del train
    conv = nn.Conv(
      self.out_features,
      (self.kernel, self.kernel),
      kernel_init=_scaled_init(self.init_scale),
      dtype=self.dtype,
      name='conv',
    )
    return _at_least_float32(conv(x))


class PoolHead(nn.Module):
  """The mean over a map and a dense layer: scores for the whole image.

  Attributes:
    out_features: channels of the result, which is float32 at least.
    reads: whose map it reads, 'encoder' or 'decoder'.
    stride: of the map it reads; None for the deepest.
    map_name: name of the map it reads, instead of its stride.
    init_scale: as in `ConvHead`.
  """

  out_features: int
  reads: str = 'encoder'
  stride: int | None = None
  map_name: str | None = None
  init_scale: float = 1.0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B C']:
    """Scores each image."""
    del train
    return nn.Dense(
      self.out_features,
      kernel_init=_scaled_init(self.init_scale),
      name='dense',
    )(jnp.mean(x.astype(jnp.float32), axis=(1, 2)))


class ConvBlocksHead(nn.Module):
  """3x3 convolutions with batch norm, ReLU and channel dropout, then a 1x1.

  U2PL's classifier and representation (two blocks) and auxiliary classifier
  (one block, on 'x3'); the representation is not normalized. All convolutions
  have biases.

  Attributes:
    out_features: channels of the result, which is float32 at least.
    width: channels of each block.
    num_blocks: how many there are.
    reads: whose map it reads, 'encoder' or 'decoder'.
    stride: of the map it reads; None for the deepest.
    map_name: name of the map it reads, instead of its stride.
    dropout_rate: share of each block's maps cleared in training.
    dtype: of the convolutions.
  """

  out_features: int
  width: int = 256
  num_blocks: int = 2
  reads: str = 'decoder'
  stride: int | None = 4
  map_name: str | None = None
  dropout_rate: float = 0.1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w C']:
    """Scores or represents each cell."""
    for i in range(self.num_blocks):
      x = conv_block.ConvBlock(
        self.width,
        use_bias=True,
        dropout_rate=self.dropout_rate,
        dtype=self.dtype,
        name=f'block{i + 1}',
      )(x, train)
    # The result itself is never rounded to less than float32.
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    return conv_block.conv(
      x.shape[-1], self.out_features, 1, dtype=dtype, name='conv'
    )(x)


def _at_least_float32(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _scaled_init(scale: float) -> nn.initializers.Initializer:
  if scale == 0.0:
    return nn.initializers.zeros
  return nn.initializers.variance_scaling(
    scale**2, 'fan_in', 'truncated_normal'
  )
