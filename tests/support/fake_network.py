"""The encoder and a head of the fake methods."""

import flax.linen as nn
import jax.numpy as jnp

from segcore.models import features
from segcore.models.layers import norm

STRIDE = 4


class TinyEncoder(nn.Module):
  """Two convolutions with batch statistics."""

  width: int = 8
  multiple: int = STRIDE

  @nn.compact
  def __call__(self, images, train):
    x, maps = images, []
    for i in range(2):
      x = nn.Conv(self.width, (3, 3), 2, use_bias=False, name=f'conv{i}')(x)
      x = norm.make_norm(
        'batch',
        train=train,
        num_groups=1,
        epsilon=1e-5,
        dtype=jnp.float32,
        name=f'norm{i}',
      )(x)
      x = nn.relu(x)
      maps.append(features.FeatureMap(f'block{i}', 2 ** (i + 1), x))
    return features.Features(tuple(maps))


class Embedding(nn.Module):
  """Head with an L2-normalized embedding per image, and prototypes."""

  size: int = 6
  num_prototypes: int = 5
  reads: str = 'encoder'
  stride: int | None = None
  map_name: str | None = None

  @nn.compact
  def __call__(self, x, train=False):
    self.param(
      'prototypes',
      nn.initializers.normal(1.0),
      (self.size, self.num_prototypes),
    )
    x = nn.Dense(self.size, name='dense')(jnp.mean(x, axis=(1, 2)))
    x = nn.BatchNorm(not train, momentum=0.9, use_bias=False, name='norm')(x)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
