"""Layers of the heads of pretraining, with PyTorch's initialization."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array


def fan_in_uniform(fan_in: int) -> Callable[..., Array]:
  """Builds PyTorch's initializer of dense layers and of all biases.

  It is uniform in ±1/sqrt(fan_in).
  """
  bound = 1.0 / math.sqrt(fan_in)

  def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def dense(fan_in: int, size: int, dtype: DTypeLike, name: str) -> nn.Dense:
  """Builds a dense layer with PyTorch's default initialization."""
  # Kernels, too: PASS initializes convolutions only, and leaves these alone.
  init = fan_in_uniform(fan_in)
  return nn.Dense(
    size, kernel_init=init, bias_init=init, dtype=dtype, name=name
  )


def conv(
  fan_in: int, size: int, dtype: DTypeLike, name: str, use_bias: bool = False
) -> nn.Conv:
  """Builds a 1x1 convolution with Kaiming-normal fan-out initialization."""
  return nn.Conv(
    size,
    (1, 1),
    use_bias=use_bias,
    kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
    bias_init=fan_in_uniform(fan_in),
    dtype=dtype,
    name=name,
  )


def wide(dtype: DTypeLike) -> DTypeLike:
  """Returns the dtype of last layers: float32 for narrower dtypes.

  They run in it since the norm or the loss after them subtracts a mean that
  may be large, which in bfloat16 would leave few correct digits.
  """
  return jnp.promote_types(dtype, jnp.float32)
