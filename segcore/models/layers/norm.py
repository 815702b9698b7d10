"""Normalization, and its modulation by an embedding of the noise level."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Initializer = nn.initializers.Initializer

KINDS = ('group', 'batch')


class GroupNorm(nn.Module):
  """Normalizes groups of neighboring channels of each example.

  Equal to flax's, and several times faster on a CPU: the pixels are averaged
  per channel first, so that groups are formed in an array [B, D] only and the
  map itself meets one multiplication and one addition. Statistics are taken
  in float32. Source: Wu & He 2018, Eq. 1-3.

  Attributes:
    num_groups: how many groups; they must divide the channels.
    epsilon: added to the variance.
    zero_scale: start from a scale of 0, for the last norm of a residual branch.
    affine: scale and shift each channel by parameters; else there are none.
    dtype: of the result.
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
    """Normalizes x; a mean is over all axes between the first and last."""
    size = x.shape[-1]
    if size % self.num_groups:
      raise ValueError(
        f'{"/".join(self.path)}: {size} channels do not form '
        f'{self.num_groups} groups'
      )
    scale, bias = jnp.ones(size), jnp.zeros(size)
    if self.affine:
      init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
      scale = self.param('scale', init, (size,), jnp.float32)
      bias = self.param('bias', nn.initializers.zeros, (size,), jnp.float32)

    x = x.astype(jnp.float32)
    space = tuple(range(1, x.ndim - 1))
    mean = self._over_groups(jnp.mean(x, space))
    square = self._over_groups(jnp.mean(jnp.square(x), space))
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    factor = jax.lax.rsqrt(variance + self.epsilon) * scale
    offset = bias - mean * factor
    return (
      x * jnp.expand_dims(factor, space) + jnp.expand_dims(offset, space)
    ).astype(self.dtype)

  def _over_groups(self, values: Float[Array, 'B D']) -> Float[Array, 'B D']:
    """Replaces each channel's value by the mean of its group."""
    groups = values.reshape(len(values), self.num_groups, -1)
    means = jnp.mean(groups, axis=-1, keepdims=True)
    return jnp.broadcast_to(means, groups.shape).reshape(values.shape)


def batch_norm(
  *,
  train: bool,
  dtype: DTypeLike,
  name: str,
  decay: float = 0.9,
  zero_scale: bool = False,
  affine: bool = True,
) -> nn.BatchNorm:
  """Statistics of the global batch in training, running ones otherwise.

  As torch's, but that the running variance is that of the batch itself, not
  the n/(n-1)-fold estimate. The running ones are in 'batch_stats'. Source:
  Ioffe & Szegedy 2015.

  Args:
    train: whether statistics of the batch are used and collected.
    dtype: of the result.
    name: of the parameters.
    decay: share of the running statistics that an update keeps; 1 - decay is
      what torch calls the momentum.
    zero_scale: start from a scale of 0, for the last norm of a residual branch.
    affine: scale and shift each channel by parameters; else there are none.
  """
  init = nn.initializers.zeros if zero_scale else nn.initializers.ones
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=decay,
    epsilon=1e-5,
    scale_init=init,
    use_scale=affine,
    use_bias=affine,
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
  """The norm of a layer, by its name in a config.

  Args:
    kind: 'group', or 'batch': statistics of the batch in training, running
      ones (decay 0.99, collection 'batch_stats') otherwise.
    train: whether statistics of the batch are used and collected.
    num_groups: of a group norm.
    epsilon: of a group norm; a batch norm has 1e-5.
    dtype: of the result.
    name: of the parameters.
  """
  if kind == 'group':
    return GroupNorm(num_groups, epsilon, dtype=dtype, name=name)
  if kind == 'batch':
    return batch_norm(train=train, dtype=dtype, name=name, decay=0.99)
  raise ValueError(f'norm={kind!r} is none of {", ".join(KINDS)}')


class Modulation(nn.Module):
  """(1 + s)·x + b, where s and b are read off an embedding.

  Starts as the identity: the layer that gives s and b is zero at first.
  Source: Perez et al. 2018 (FiLM), in the form diffusion models use.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], embedding: Float[Array, 'B E']
  ) -> Float[Array, 'B h w D']:
    """Modulates each map by its row of the embedding."""
    both = nn.Dense(
      2 * x.shape[-1],
      kernel_init=nn.initializers.zeros,
      dtype=self.dtype,
      name='dense',
    )(embedding)
    scale, offset = jnp.split(both[:, None, None, :], 2, axis=-1)
    return (1.0 + scale) * x + offset


class NoiseEmbedding(nn.Module):
  """Sinusoids of a noise level in [0, 1], then a two-layer perceptron.

  Source: Ho et al. 2020, with levels counted as 1000 steps.
  """

  size: int = 256

  @nn.compact
  def __call__(self, level: Float[Array, 'B']) -> Float[Array, 'B E']:
    """Embeds a level each; 1 stands for no noise."""
    half = self.size // 2
    frequencies = 1000.0 * 1e4 ** (-jnp.arange(half) / half)
    angles = level.astype(jnp.float32)[:, None] * frequencies
    x = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    x = nn.silu(nn.Dense(self.size, name='dense1')(x))
    return nn.silu(nn.Dense(self.size, name='dense2')(x))
