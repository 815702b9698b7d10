"""The hybrid vision transformer: a ResNet stem and a transformer on its cells.

  HybridViT(grid=(32, 32)).apply(variables, images).by_name('tokens')

Parameter names are those of the public `R50+ViT-B_16`, with the numbering of
flax.linen.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features, network_part
from segcore.models.encoders import resnet_gn
from segcore.models.layers import position_table, resize
from segcore.types import Tokens

_xavier = nn.initializers.xavier_uniform()


class HybridViTAttention(nn.Module):
  """Multi-head self-attention, with the softmax in float32.

  Attributes:
    num_heads: number of heads, which must divide D.
    dtype: dtype of the activations.
  """

  num_heads: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Tokens) -> Tokens:
    """Lets each token attend to all tokens of its image."""
    hidden_size = x.shape[-1]
    head_size = hidden_size // self.num_heads

    def project(name: str) -> Float[Array, 'B T heads head_size']:
      return nn.DenseGeneral(
        (self.num_heads, head_size),
        kernel_init=_xavier,
        dtype=self.dtype,
        name=name,
      )(x)

    query, key, value = map(project, ('query', 'key', 'value'))
    # Scores are accumulated and normalized in float32, also for bfloat16.
    scores = jnp.einsum(
      'bqhd,bkhd->bhqk',
      query / jnp.sqrt(head_size).astype(self.dtype),
      key,
      preferred_element_type=jnp.float32,
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
    mixed = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    return nn.DenseGeneral(
      hidden_size,
      axis=(-2, -1),
      kernel_init=_xavier,
      dtype=self.dtype,
      name='out',
    )(mixed)


class HybridViTMlp(nn.Module):
  """Two dense layers with a GELU (tanh form) between, each with dropout.

  Attributes:
    hidden_size: features between the layers.
    dropout_rate: share of the features that are dropped in training.
    dtype: dtype of the activations.
  """

  hidden_size: int
  dropout_rate: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Tokens, train: bool) -> Tokens:
    """Applies the layers to each token."""
    for i, size in enumerate((self.hidden_size, x.shape[-1])):
      x = nn.Dense(
        size,
        kernel_init=_xavier,
        bias_init=nn.initializers.normal(1e-6),
        dtype=self.dtype,
        name=f'Dense_{i}',
      )(x)
      if i == 0:
        x = nn.gelu(x, approximate=True)
      x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    return x


class EncoderBlock(nn.Module):
  """A pre-norm transformer block: attention and perceptron, both residual.

  Attributes:
    num_heads: number of attention heads.
    mlp_dim: features between the layers of the perceptron.
    dropout_rate: share of the features that are dropped in training.
    dtype: dtype of the activations.
  """

  num_heads: int
  mlp_dim: int
  dropout_rate: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Tokens, train: bool) -> Tokens:
    """Applies the block; with dropout if `train`."""
    y = nn.LayerNorm(1e-6, self.dtype, name='LayerNorm_0')(x)
    y = HybridViTAttention(
      self.num_heads, self.dtype, name='MultiHeadDotProductAttention_0'
    )(y)
    x = x + nn.Dropout(self.dropout_rate, deterministic=not train)(y)
    y = nn.LayerNorm(1e-6, self.dtype, name='LayerNorm_1')(x)
    return x + HybridViTMlp(
      self.mlp_dim, self.dropout_rate, self.dtype, name='MlpBlock_0'
    )(y, train)


class Positions(nn.Module):
  """Learned position embeddings of the cells, and of the class token if any.

  Attributes:
    grid: height and width, in cells, of the table.
  """

  grid: tuple[int, int]

  @nn.compact
  def __call__(self, x: Tokens, grid: resize.Size) -> Tokens:
    """Adds the embeddings to the tokens of a grid, resizing the table to it."""
    num_extra = x.shape[1] - grid[0] * grid[1]
    table = self.param(
      'pos_embedding',
      nn.initializers.normal(0.02),
      (1, num_extra + self.grid[0] * self.grid[1], x.shape[-1]),
      jnp.float32,
    )
    # The parameter keeps the grid of the weights; the result has the images'.
    if grid != self.grid:
      table = position_table.resize_position_table(table, self.grid, grid)
    return x + table.astype(x.dtype)


class Transformer(nn.Module):
  """Position embeddings, dropout, transformer blocks and a last layer norm.

  Attributes:
    grid: height and width, in cells, of the position table.
    num_layers: number of blocks.
    num_heads: number of attention heads.
    mlp_dim: number of features between the layers of the perceptrons.
    dropout_rate: share of the features that are dropped in training.
    dtype: dtype of the activations.
    remat: whether blocks are recomputed in the backward pass.
  """

  grid: tuple[int, int]
  num_layers: int
  num_heads: int
  mlp_dim: int
  dropout_rate: float
  dtype: DTypeLike
  remat: bool

  @nn.compact
  def __call__(self, x: Tokens, grid: resize.Size, train: bool) -> Tokens:
    """Encodes the tokens of a grid, of which the first may be a class token."""
    x = Positions(self.grid, name='posembed_input')(x, grid)
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    block = EncoderBlock
    if self.remat:
      block = nn.remat(EncoderBlock, static_argnums=(2,))
    for i in range(self.num_layers):
      x = block(
        self.num_heads,
        self.mlp_dim,
        self.dropout_rate,
        self.dtype,
        name=f'encoderblock_{i}',
      )(x, train)
    return nn.LayerNorm(1e-6, self.dtype, name='encoder_norm')(x)


class HybridViT(resnet_gn.ResNetEncoder):
  """A ResNet stem and a vision transformer, with a token for each cell.

  Returns the maps of the stem and then 'tokens' (stride 16, hidden_size
  channels, without the class token). Sides of images must be multiples of 16;
  for a grid other than its own, the position table is resized. In training,
  dropout draws from the stream 'dropout'.
  The fields of `ResNetEncoder` are those of the stem: three blocks for stride
  16. Source: Dosovitskiy et al. 2021, R50+ViT-B/16.

  Attributes:
    zero_init: whether units of the stem start as their shortcut alone.
    hidden_size: number of features D of a token.
    num_layers: number of transformer blocks.
    num_heads: number of attention heads.
    mlp_dim: features between the layers of the perceptrons.
    grid: height and width, in cells, of the position table.
    use_cls_token: whether there is a class token to attend to, as in the
      training of the public weights.
    dropout_rate: share of features that dropout removes after positions,
      attention and both dense layers.
  """

  zero_init: bool = True
  hidden_size: int = 768
  num_layers: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  grid: tuple[int, int] = (14, 14)
  use_cls_token: bool = True
  dropout_rate: float = 0.1

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W 3'], train: bool = False
  ) -> features.Features:
    """Encodes images whose sides are multiples of the stride.

    Raises:
      ValueError: a side is no multiple of the stride, or `num_heads` does not
        divide `hidden_size`.
    """
    batch, height, width, _ = images.shape
    self._check(height, width)
    stem = resnet_gn.ResNet(
      self.blocks,
      self.width,
      self.num_groups,
      self.norm_epsilon,
      self.conv_epsilon,
      self.zero_init,
      dtype=self.dtype,
      remat=self.remat,
    )
    # The public checkpoint has the stem's parameters at its top level.
    nn.share_scope(self, stem)
    stem_maps = stem(images).maps

    x = nn.Conv(self.hidden_size, (1, 1), dtype=self.dtype, name='embedding')(
      stem_maps[-1].array
    )
    grid = (x.shape[1], x.shape[2])
    x = x.reshape(batch, -1, self.hidden_size)
    if self.use_cls_token:
      cls = self.param(
        'cls', nn.initializers.zeros, (1, 1, self.hidden_size), jnp.float32
      )
      cls = jnp.broadcast_to(cls.astype(x.dtype), (batch, *cls.shape[1:]))
      x = jnp.concatenate([cls, x], axis=1)
    x = Transformer(
      self.grid,
      self.num_layers,
      self.num_heads,
      self.mlp_dim,
      self.dropout_rate,
      self.dtype,
      self.remat,
      name='Transformer',
    )(x, grid, train)
    tokens = x[:, int(self.use_cls_token) :].reshape(
      batch, *grid, self.hidden_size
    )
    return features.Features(
      (*stem_maps, features.FeatureMap('tokens', self.size_multiple, tokens))
    )

  def _check(self, height: Any, width: Any) -> None:
    """Raises ValueError if sizes of the network or of images do not divide.

    Args:
      height: of the images; symbolic in an export.
      width: likewise.
    """
    if self.hidden_size % self.num_heads:
      raise ValueError(
        f'hidden_size: expected a multiple of num_heads={self.num_heads}, got '
        f'{self.hidden_size}'
      )
    network_part.check_image_sides((height, width), self.size_multiple)
