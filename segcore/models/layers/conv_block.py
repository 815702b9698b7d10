"""The convolution blocks of decoders: batch norm, ReLU, channel dropout.

  ConvBlock(256, dilation=12).apply(variables, x, False)
  SeparableBlock(256, dilation=12).apply(variables, x, False)

Kernels and biases are initialized as torch's are, unless another initializer is
given.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from segcore.models.layers import depthwise
from segcore.models.layers import norm as norms

# With torch's fan-out, which of a depthwise convolution counts all channels.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def conv(
  in_channels: int | None,
  out_channels: int,
  kernel: int,
  *,
  dtype: DTypeLike,
  name: str,
  stride: int = 1,
  dilation: int = 1,
  use_bias: bool = True,
  kernel_init: nn.initializers.Initializer | None = None,
) -> nn.Conv:
  """Builds a convolution with symmetric padding and torch's initialization.

  Kernels and biases are uniform in ±1/√n, with the fan-in n.

  Args:
    in_channels: channels of the input, for the fan-in; None where a kernel_init
      is given and no bias is added.
    out_channels: channels of the result.
    kernel: height and width of the kernel, odd.
    dtype: dtype of the convolution.
    name: name of the parameters.
    stride: divisor of the sides, rounded up; 1 keeps the grid.
    dilation: dilation of the kernel.
    use_bias: whether a bias is added.
    kernel_init: another initializer of the kernels.
  """

  def init(
    key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike
  ) -> Float[Array, '...']:
    bound = (in_channels * kernel * kernel) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nn.Conv(
    out_channels,
    (kernel, kernel),
    strides=stride,
    padding=dilation * (kernel // 2),
    kernel_dilation=dilation,
    use_bias=use_bias,
    kernel_init=kernel_init or init,
    bias_init=init,
    dtype=dtype,
    name=name,
  )


class ConvBlock(nn.Module):
  """A convolution that keeps the grid, batch norm, ReLU and channel dropout.

  Dropout clears whole channels of an example and draws from the stream
  'dropout'.

  Attributes:
    out_channels: channels of the result.
    kernel: height and width of the kernel, odd.
    dilation: dilation of the kernel.
    use_bias: whether the convolution has a bias, although a norm follows.
    dropout_rate: share of the channels that are dropped in training.
    dtype: dtype of the activations; parameters and statistics are float32.
    kernel_init: initializer of the kernels; None for torch's.
  """

  out_channels: int
  kernel: int = 3
  dilation: int = 1
  use_bias: bool = False
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  kernel_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool
  ) -> Float[Array, 'B h w D_out']:
    """Applies the block; with dropout and batch statistics if `train`."""
    x = conv(
      x.shape[-1],
      self.out_channels,
      self.kernel,
      dtype=self.dtype,
      name='conv',
      dilation=self.dilation,
      use_bias=self.use_bias,
      kernel_init=self.kernel_init,
    )(x)
    x = norms.batch_norm(train=train, dtype=self.dtype, name='bn')(x)
    # One draw for all cells of a channel, as torch's Dropout2d.
    return nn.Dropout(
      self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train
    )(nn.relu(x))


class SeparableBlock(nn.Module):
  """A depthwise convolution and a 1x1, each with batch norm and ReLU.

  Attributes:
    out_channels: channels of the result.
    kernel: height and width of the depthwise kernels, odd.
    dilation: dilation of the depthwise kernels.
    dropout_rate: share of the result's channels that are dropped in training.
    dtype: dtype of the activations; parameters and statistics are float32.
  """

  out_channels: int
  kernel: int = 3
  dilation: int = 1
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool
  ) -> Float[Array, 'B h w D_out']:
    """Applies the block; with dropout and batch statistics if `train`."""
    x = depthwise.DepthwiseConv(
      self.kernel,
      dilation=self.dilation,
      dtype=self.dtype,
      kernel_init=he_normal_fan_out,
      name='depthwise',
    )(x)
    x = nn.relu(norms.batch_norm(train=train, dtype=self.dtype, name='bn')(x))
    return ConvBlock(
      self.out_channels,
      1,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      kernel_init=he_normal_fan_out,
      name='pointwise',
    )(x, train)
