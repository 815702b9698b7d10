"""Normalization, and its conditioning on a noise level."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Initializer = nn.initializers.Initializer

KINDS = ('group', 'batch')


class GroupNorm(nn.Module):
  """Group normalization: normalizes groups of channels of each example.

  Equal to flax's, and several times faster on a CPU: averages over pixels are
  taken of each channel first, so that groups are formed in an array [B, D] only
  and the map itself is multiplied and added to once. Statistics are computed
  in float32. Source: Wu & He 2018, Eq. 1-3.

  Attributes:
    num_groups: number of groups, which must divide the channels.
    epsilon: constant added to the variance.
    zero_scale: whether the scale is initialized with 0, for the last norm of a
      residual branch.
    affine: whether parameters scale and shift each channel.
    dtype: dtype of the result.
  """

  num_groups: int = 32
  epsilon: float = 1e-6
  zero_scale: bool = False
  affine: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B *space D']
  ) -> Float[Array, 'B *space D']:
    """Normalizes x over each group and all axes between the first and last."""
    channels = x.shape[-1]
    if channels % self.num_groups:
      raise ValueError(
        f'{"/".join(self.path)}: expected channels whose number is a multiple '
        f'of num_groups={self.num_groups}, got {channels}'
      )
    scale, bias = jnp.ones(channels), jnp.zeros(channels)
    if self.affine:
      init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
      scale = self.param('scale', init, (channels,), jnp.float32)
      bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)

    x = x.astype(jnp.float32)
    space = tuple(range(1, x.ndim - 1))
    mean = self._average_groups(jnp.mean(x, space))
    square = self._average_groups(jnp.mean(jnp.square(x), space))
    # E[x²] - E[x]² reads the map once; rounding may make it negative.
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    # Scale and mean are folded into one multiplication and one addition a cell.
    factor = jax.lax.rsqrt(variance + self.epsilon) * scale
    offset = bias - mean * factor
    return (
      x * jnp.expand_dims(factor, space) + jnp.expand_dims(offset, space)
    ).astype(self.dtype)

  def _average_groups(self, values: Float[Array, 'B D']) -> Float[Array, 'B D']:
    """Replaces each channel's value by the mean of its group."""
    groups = values.reshape(len(values), self.num_groups, -1)
    means = jnp.mean(groups, axis=-1, keepdims=True)
    return jnp.broadcast_to(means, groups.shape).reshape(values.shape)


def layer_norm(epsilon: float, dtype: DTypeLike, name: str) -> nn.LayerNorm:
  """Builds a layer norm over the features of each token or cell.

  Source: Ba et al. 2016.

  Args:
    epsilon: constant added to the variance.
    dtype: dtype of the result; statistics are in float32 at least.
    name: name of the parameters.
  """
  # Features of large transformers have means far above their deviation, where
  # E[x²] - E[x]² would lose digits.
  return nn.LayerNorm(epsilon, dtype, use_fast_variance=False, name=name)


def batch_norm(
  *,
  train: bool,
  dtype: DTypeLike,
  name: str,
  decay: float = 0.9,
  epsilon: float = 1e-5,
  zero_scale: bool = False,
  affine: bool = True,
  shift: bool = True,
) -> nn.BatchNorm:
  """Builds a batch norm: batch statistics in training, running ones otherwise.

  Statistics are those of the global batch, on any number of devices. Equal to
  torch's, except that running variances average the biased variance of the
  batch, not the unbiased one. They are in the collection 'batch_stats'.
  Source: Ioffe & Szegedy 2015.

  Args:
    train: whether batch statistics are used and collected.
    dtype: dtype of the result.
    name: name of the parameters.
    decay: share of the running statistics that an update keeps; torch's
      `momentum` is 1 - decay.
    epsilon: constant added to the variance.
    zero_scale: whether the scale is initialized with 0, for the last norm of a
      residual branch.
    affine: whether parameters scale and shift each channel.
    shift: whether there is a shift beside the scale.
  """
  init = nn.initializers.zeros if zero_scale else nn.initializers.ones
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=decay,
    epsilon=epsilon,
    scale_init=init,
    use_scale=affine,
    use_bias=affine and shift,
    dtype=dtype,
    name=name,
  )


def make_norm(
  kind: str,
  *,
  train: bool,
  num_groups: int,
  epsilon: float,
  dtype: DTypeLike,
  name: str,
) -> nn.Module:
  """Builds a norm by its name in a config.

  Args:
    kind: 'group', or 'batch' for a batch norm with decay 0.99.
    train: whether batch statistics are used and collected.
    num_groups: number of groups of a group norm.
    epsilon: constant added to the variance by a group norm; a batch norm adds
      1e-5.
    dtype: dtype of the result.
    name: name of the parameters.
  """
  if kind == 'group':
    return GroupNorm(num_groups, epsilon, dtype=dtype, name=name)
  if kind == 'batch':
    return batch_norm(train=train, dtype=dtype, name=name, decay=0.99)
  raise ValueError(f'norm: expected {" or ".join(KINDS)}, got {kind!r}')


class Modulation(nn.Module):
  """Feature-wise modulation (1 + s)·x + b, with s and b from an embedding.

  The layer that computes s and b is initialized with 0, so that the modulation
  starts as the identity. Source: Perez et al. 2018 (FiLM), in the form that
  diffusion models use.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], embedding: Float[Array, 'B D_noise']
  ) -> Float[Array, 'B h w D']:
    """Modulates each map by its row of the embedding."""
    parameters = nn.Dense(
      2 * x.shape[-1],
      kernel_init=nn.initializers.zeros,
      dtype=self.dtype,
      name='dense',
    )(embedding)
    scale, offset = jnp.split(parameters[:, None, None, :], 2, axis=-1)
    return (1.0 + scale) * x + offset


class NoiseEmbedding(nn.Module):
  """Embedding of a noise level: sinusoids, then a two-layer perceptron.

  Source: Ho et al. 2020, where levels in [0, 1] stand for 1000 time steps.

  Attributes:
    size: number of features of the embedding.
  """

  size: int = 256

  @nn.compact
  def __call__(self, level: Float[Array, 'B']) -> Float[Array, 'B D_noise']:
    """Embeds a level of each image in [0, 1], where 1 is no noise."""
    half = self.size // 2
    # Frequencies from 1000 down to 0.1 a unit of the level, in geometric steps.
    frequencies = 1000.0 * 1e4 ** (-jnp.arange(half) / half)
    angles = level.astype(jnp.float32)[:, None] * frequencies
    x = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    x = nn.silu(nn.Dense(self.size, name='dense1')(x))
    return nn.silu(nn.Dense(self.size, name='dense2')(x))
