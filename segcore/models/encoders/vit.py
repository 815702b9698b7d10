"""The plain vision transformer, as DINO, DINOv2, timm and others publish it.

  ViT(**SIZES['small'], patch_size=16).apply(variables, images).deepest

DINOv2's ViT-S/14 has patch_size=14, grid=(37, 37) and layer_scale=True; with
registers also num_registers=4 and position_rule='timm'. For public weights see
`segcore.weights.layouts.vit`.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features, network_part
from segcore.models.layers import norm as norms
from segcore.models.layers import position_table, resize, standardize
from segcore.types import Tokens

# Fields of the published sizes.
SIZES: Mapping[str, Mapping[str, int]] = {
  name: {
    'hidden_size': size,
    'num_layers': num_layers,
    'num_heads': size // 64,
    'mlp_dim': 4 * size,
  }
  for name, size, num_layers in (
    ('small', 384, 12),
    ('base', 768, 12),
    ('large', 1024, 24),
  )
}
# Blocks whose features dense decoders read, by the number of blocks (Ranftl et
# al. 2021, and DINOv2's decoders).
_DEPTHS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23)}

_normal = nn.initializers.truncated_normal(0.02)


class ViTAttention(nn.Module):
  """Multi-head self-attention, with one projection to query, key and value.

  Attributes:
    num_heads: number of heads, which must divide D.
    qkv_bias: whether the projection to query, key and value has a bias.
    dtype: dtype of the activations; the softmax is in float32.
  """

  num_heads: int
  qkv_bias: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Tokens) -> Tokens:
    """Lets each token attend to all tokens of its image."""
    hidden_size = x.shape[-1]
    qkv = nn.Dense(
      3 * hidden_size,
      use_bias=self.qkv_bias,
      kernel_init=_normal,
      dtype=self.dtype,
      name='qkv',
    )(x)
    head_size = hidden_size // self.num_heads
    qkv = qkv.reshape(*x.shape[:2], 3, self.num_heads, head_size)
    query, key, value = (qkv[:, :, i] for i in range(3))
    mixed = jax.nn.dot_product_attention(query, key, value)
    return nn.Dense(
      hidden_size, kernel_init=_normal, dtype=self.dtype, name='proj'
    )(mixed.reshape(x.shape))


class ViTMlp(nn.Module):
  """Two dense layers with an exact GELU (of the error function) between.

  Attributes:
    hidden_size: features between the layers.
    dtype: dtype of the activations.
  """

  hidden_size: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Tokens) -> Tokens:
    """Applies the layers to each token."""
    sizes = {'fc1': self.hidden_size, 'fc2': x.shape[-1]}
    for name, size in sizes.items():
      x = nn.Dense(size, kernel_init=_normal, dtype=self.dtype, name=name)(x)
      if name == 'fc1':
        x = nn.gelu(x, approximate=False)
    return x


class LayerScale(nn.Module):
  """A learned factor for each feature of a residual branch.

  Source: Touvron et al. 2021, Eq. 2.
  """

  @nn.compact
  def __call__(self, x: Tokens) -> Tokens:
    """Multiplies each feature by its factor."""
    gamma = self.param(
      'gamma', nn.initializers.constant(1e-5), x.shape[-1:], jnp.float32
    )
    return x * gamma.astype(x.dtype)


class ViTBlock(nn.Module):
  """A pre-norm transformer block: attention and perceptron, both residual.

  Attributes:
    num_heads: number of attention heads.
    mlp_dim: features between the layers of the perceptron.
    qkv_bias: whether the projection to query, key and value has a bias.
    layer_scale: whether both branches end with a `LayerScale`.
    norm_epsilon: constant added to the variance by the norms.
    dtype: dtype of the activations.
  """

  num_heads: int
  mlp_dim: int
  qkv_bias: bool
  layer_scale: bool
  norm_epsilon: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Tokens) -> Tokens:
    """Applies the block to the tokens of each image."""
    attention = ViTAttention(
      self.num_heads, self.qkv_bias, self.dtype, name='attn'
    )
    mlp = ViTMlp(self.mlp_dim, self.dtype, name='mlp')
    for i, branch in enumerate((attention, mlp), 1):
      norm = norms.layer_norm(self.norm_epsilon, self.dtype, f'norm{i}')
      y = branch(norm(x))
      x = x + (LayerScale(name=f'ls{i}')(y) if self.layer_scale else y)
    return x


class ViT(network_part.NetworkPart):
  """A vision transformer whose maps are the tokens after several blocks.

  Returns a map 'block{i}' for each of the depths, and for the last block; all
  have the patch as stride, hidden_size channels, and pass through the final
  norm. Class token and registers are not part of them. Sides of images must be
  multiples of the patch; for a grid other than its own, the position table is
  resized by the rule of the weights.
  Source: Dosovitskiy et al. 2021; registers: Darcet et al. 2024.

  Attributes:
    patch_size: pixels of a side of a patch: 16, 14 or 8 in public weights.
    hidden_size: number of features D of a token.
    num_layers: number of transformer blocks.
    num_heads: number of attention heads.
    mlp_dim: features between the layers of the perceptrons.
    use_cls_token: whether there is a class token to attend to.
    num_registers: number of register tokens, which have no position.
    qkv_bias: whether projections to query, key and value have biases.
    layer_scale: whether residual branches have a `LayerScale`, as DINOv2's.
    norm_epsilon: constant added to the variance by the norms; 1e-12 for
      Hugging Face's ViT.
    grid: height and width, in cells, of the position table: (37, 37) in
      DINOv2's files.
    position_rule: rule by which the table is resized (see `position_table`).
    imagenet_statistics: whether images are standardized by ImageNet's mean and
      standard deviation, as DINO's weights expect; weights of AugReg in timm
      and of Google's ViT in Hugging Face expect [-1, 1] itself.
    depths: indices, from 0, of the blocks whose features are returned; None for
      four at regular depths with 12 or 24 blocks, for the last one otherwise.
    frozen: whether gradients end at the maps, so that no backward pass runs,
      and optimizers leave all parameters out.
  """

  patch_size: int = 16
  hidden_size: int = 384
  num_layers: int = 12
  num_heads: int = 6
  mlp_dim: int = 1536
  use_cls_token: bool = True
  num_registers: int = 0
  qkv_bias: bool = True
  layer_scale: bool = False
  norm_epsilon: float = 1e-6
  grid: tuple[int, int] = (14, 14)
  position_rule: position_table.Rule = 'dino'
  imagenet_statistics: bool = True
  depths: Sequence[int] | None = None
  frozen: bool = False

  @property
  def size_multiple(self) -> int:
    """Returns the patch size: sides of images must be multiples of it."""
    return self.patch_size

  @property
  def frozen_parameters(self) -> tuple[str, ...]:
    """Returns the names of frozen modules; '' stands for the whole encoder."""
    return ('',) if self.frozen else ()

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W 3'], train: bool = False
  ) -> features.Features:
    """Encodes images whose sides are multiples of the patch.

    Raises:
      ValueError: a side is no multiple of the patch, `num_heads` does not
        divide `hidden_size`, or a depth is no block.
    """
    del train  # There is neither dropout nor a batch norm.
    self._check(*images.shape[1:3])
    x = images
    if self.imagenet_statistics:
      x = standardize.standardize_by_imagenet(x)
    side = (self.patch_size, self.patch_size)
    x = nn.Conv(
      self.hidden_size,
      side,
      side,
      'VALID',
      kernel_init=_normal,
      dtype=self.dtype,
      name='patch_embed',
    )(x.astype(self.dtype))
    grid = (x.shape[1], x.shape[2])
    x = self._add_tokens(x.reshape(x.shape[0], -1, self.hidden_size), grid)

    block = nn.remat(ViTBlock) if self.remat else ViTBlock
    norm = norms.layer_norm(self.norm_epsilon, self.dtype, 'norm')
    num_extra = self.use_cls_token + self.num_registers
    maps = []
    for i in range(self.num_layers):
      x = block(
        self.num_heads,
        self.mlp_dim,
        self.qkv_bias,
        self.layer_scale,
        self.norm_epsilon,
        self.dtype,
        name=f'block{i}',
      )(x)
      if i in self._depths():
        cells = norm(x)[:, num_extra:].reshape(x.shape[0], *grid, -1)
        if self.frozen:
          cells = jax.lax.stop_gradient(cells)
        maps.append(features.FeatureMap(f'block{i}', self.patch_size, cells))
    return features.Features(tuple(maps))

  def _add_tokens(
    self, x: Tokens, grid: resize.Size
  ) -> Float[Array, 'B T_out D']:
    """Adds positions, the class token and the registers to patches."""

    def repeat(name: str, count: int) -> Tokens:
      shape = (1, count, self.hidden_size)
      token = self.param(name, _normal, shape, jnp.float32)
      return jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], *shape[1:]))

    num_cls = int(self.use_cls_token)
    cells = x
    if num_cls:
      cells = jnp.concatenate([repeat('cls_token', 1), cells], axis=1)
    table = self.param(
      'pos_embed',
      _normal,
      (1, num_cls + self.grid[0] * self.grid[1], self.hidden_size),
      jnp.float32,
    )
    # The parameter keeps the grid of the weights; the result has the images'.
    cells += position_table.resize_position_table(
      table, self.grid, grid, self.position_rule
    ).astype(x.dtype)
    if not self.num_registers:
      return cells
    registers = repeat('register_tokens', self.num_registers)
    return jnp.concatenate(
      [cells[:, :num_cls], registers, cells[:, num_cls:]], axis=1
    )

  def _depths(self) -> set[int]:
    """Returns the indices of the blocks whose features are returned."""
    depths = self.depths
    if depths is None:
      depths = _DEPTHS.get(self.num_layers, ())
    return {*depths, self.num_layers - 1}

  def _check(self, height: int, width: int) -> None:
    """Raises ValueError if fields contradict each other or the image."""
    if self.hidden_size % self.num_heads:
      raise ValueError(
        f'hidden_size: expected a multiple of num_heads={self.num_heads}, got '
        f'{self.hidden_size}'
      )
    if not self._depths() <= set(range(self.num_layers)):
      raise ValueError(
        f'depths: expected blocks from 0 to {self.num_layers - 1}, got '
        f'{tuple(self.depths or ())}'
      )
    network_part.check_image_sides((height, width), self.patch_size)
