"""Convolution, batch norm, ReLU and channel dropout: what decoders are made of.

  ConvBlock(256, dilation=12).apply(variables, x, False)

Kernels and biases start as torch's do.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models.layers import norm as norms


def conv(
  fan_in: int,
  size: int,
  kernel: int,
  *,
  dtype: DTypeLike,
  name: str,
  dilation: int = 1,
  use_bias: bool = True,
) -> nn.Conv:
  """A convolution that keeps the grid, with torch's first values.

  These are uniform in ±1/√n, n the inputs of one output; so are the biases.

  Args:
    fan_in: channels of what it reads.
    size: channels of the result.
    kernel: height and width of the kernel, odd.
    dtype: of the convolution.
    name: of the parameters.
    dilation: of the kernel.
    use_bias: whether there is one.
  """
  bound = (fan_in * kernel * kernel) ** -0.5

  def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nn.Conv(
    size,
    (kernel, kernel),
    kernel_dilation=dilation,
    use_bias=use_bias,
    kernel_init=init,
    bias_init=init,
    dtype=dtype,
    name=name,
  )


class ConvBlock(nn.Module):
  """Convolution that keeps the grid, batch norm, ReLU, and channel dropout.

  Dropout clears whole maps of an example and draws from the stream 'dropout'.

  Attributes:
    size: channels of the result.
    kernel: height and width of the kernel, odd.
    dilation: of the kernel.
    use_bias: whether the convolution has one, though a norm follows.
    dropout_rate: share of the maps that are cleared in training.
    dtype: of the activations; parameters and statistics are float32.
  """

  size: int
  kernel: int = 3
  dilation: int = 1
  use_bias: bool = False
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w I'], train: bool
  ) -> Float[Array, 'B h w O']:
    """Applies the block; dropout and statistics of the batch if `train`."""
    x = conv(
      x.shape[-1],
      self.size,
      self.kernel,
      dtype=self.dtype,
      name='conv',
      dilation=self.dilation,
      use_bias=self.use_bias,
    )(x)
    x = norms.batch_norm(train=train, dtype=self.dtype, name='bn')(x)
    return nn.Dropout(
      self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train
    )(nn.relu(x))
