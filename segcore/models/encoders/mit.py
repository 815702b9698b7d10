"""MiT, the encoder of SegFormer: a transformer with maps at four strides.

  MiT(**SIZES['b5']).apply(variables, images).at_stride(4)

DAFormer's encoder is 'b5', AFA's 'b1' with strides=(4, 2, 2, 1). For public
weights see `segcore.weights.layouts.mit`.
"""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features, network_part
from segcore.models.layers import depthwise, standardize
from segcore.models.layers import norm as norms
from segcore.types import Cells

# Fields of the published sizes.
SIZES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
  name: {'hidden_sizes': hidden_sizes, 'num_layers': num_layers}
  for name, hidden_sizes, num_layers in (
    ('b0', (32, 64, 160, 256), (2, 2, 2, 2)),
    ('b1', (64, 128, 320, 512), (2, 2, 2, 2)),
    ('b2', (64, 128, 320, 512), (3, 4, 6, 3)),
    ('b3', (64, 128, 320, 512), (3, 4, 18, 3)),
    ('b4', (64, 128, 320, 512), (3, 8, 27, 3)),
    ('b5', (64, 128, 320, 512), (3, 6, 40, 3)),
  )
}
# Constants added to the variance: by the norms before branches and after
# stages, and by those of patches and of reduced maps.
_EPSILON, _EPSILON_AFTER_CONV = 1e-6, 1e-5

_conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def _dense(size: int, dtype: DTypeLike, name: str) -> nn.Dense:
  init = nn.initializers.normal(0.02)
  return nn.Dense(size, kernel_init=init, dtype=dtype, name=name)


class MiTAttention(nn.Module):
  """Self-attention in which a convolution reduces the keys and values.

  Attributes:
    num_heads: number of heads, which must divide D.
    reduction: kernel and stride of the convolution; rows and columns that do
      not fill a kernel are left out. 1 for no convolution.
    dtype: dtype of the activations; the softmax is in float32.
  """

  num_heads: int
  reduction: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Cells) -> tuple[Cells, features.Attention]:
    """Lets each cell attend to all reduced cells; returns queries and keys."""
    shape, hidden_size = x.shape, x.shape[-1]
    head_shape = (self.num_heads, hidden_size // self.num_heads)
    query = _dense(hidden_size, self.dtype, 'q')(x)
    query = query.reshape(shape[0], -1, *head_shape)
    if self.reduction > 1:
      x = nn.Conv(
        hidden_size,
        (self.reduction, self.reduction),
        self.reduction,
        'VALID',
        kernel_init=_conv_init,
        dtype=self.dtype,
        name='sr',
      )(x)
      x = norms.layer_norm(_EPSILON_AFTER_CONV, self.dtype, 'norm')(x)
    both = _dense(2 * hidden_size, self.dtype, 'kv')(x)
    both = both.reshape(shape[0], -1, 2, *head_shape)
    key, value = both[:, :, 0], both[:, :, 1]
    mixed = jax.nn.dot_product_attention(query, key, value)
    x = _dense(hidden_size, self.dtype, 'proj')(mixed.reshape(shape))
    return x, features.Attention(query, key)


class MixMlp(nn.Module):
  """Two dense layers; between them a depthwise 3x3 and an exact GELU.

  The zero padding of the convolution encodes positions in place of a position
  table. Source: Xie et al. 2021, Eq. 3 (Mix-FFN).

  Attributes:
    hidden_size: features D between the layers.
    dtype: dtype of the activations.
  """

  hidden_size: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Cells) -> Cells:
    """Applies the layers to the map."""
    size = x.shape[-1]
    x = _dense(self.hidden_size, self.dtype, 'fc1')(x)
    # Its fan-in and fan-out are the taps of a channel's kernel.
    x = depthwise.DepthwiseConv(
      3, dtype=self.dtype, use_bias=True, name='dwconv'
    )(x)
    return _dense(size, self.dtype, 'fc2')(nn.gelu(x, approximate=False))


class MiTBlock(nn.Module):
  """A pre-norm block: attention and perceptron, both residual.

  In training, either branch is dropped (stochastic depth; Huang et al. 2016)
  for each image separately, with draws from the stream 'dropout'; branches that
  are kept are divided by the probability of being kept.

  Attributes:
    num_heads: number of attention heads.
    reduction: reduction of the attention's keys and values.
    mlp_dim: features between the layers of the perceptron.
    drop_rate: probability that a branch is dropped.
    dtype: dtype of the activations.
  """

  num_heads: int
  reduction: int
  mlp_dim: int
  drop_rate: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Cells, train: bool) -> tuple[Cells, features.Attention]:
    """Applies the block to a map; branches are dropped if `train`.

    Returns:
      The map, and the queries and keys of the attention.
    """
    branches = (
      MiTAttention(self.num_heads, self.reduction, self.dtype, name='attn'),
      MixMlp(self.mlp_dim, self.dtype, name='mlp'),
    )
    attention = None
    for i, branch in enumerate(branches, 1):
      y = branch(norms.layer_norm(_EPSILON, self.dtype, f'norm{i}')(x))
      if attention is None:
        y, attention = y
      # One draw for all cells and channels of an image.
      x += nn.Dropout(
        self.drop_rate, broadcast_dims=(1, 2, 3), deterministic=not train
      )(y)
    return x, attention


class MiTStage(nn.Module):
  """Overlapping patches, blocks, and a norm.

  Attributes:
    hidden_size: number of features D of a cell.
    kernel: height and width of a patch, odd.
    stride: distance of the patches.
    num_heads: number of attention heads.
    reduction: reduction of the attention's keys and values.
    mlp_dim: features between the layers of the perceptrons.
    drop_rates: for each block, the probability that a branch is dropped.
    dtype: dtype of the activations.
    remat: whether blocks are recomputed in the backward pass.
  """

  hidden_size: int
  kernel: int
  stride: int
  num_heads: int
  reduction: int
  mlp_dim: int
  drop_rates: tuple[float, ...]
  dtype: DTypeLike
  remat: bool

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D_in'], train: bool
  ) -> tuple[Float[Array, 'B h_out w_out D'], tuple[features.Attention, ...]]:
    """Computes the map of the stage; h_out is ⌈h/stride⌉.

    Returns:
      The map, and the queries and keys of each block.
    """
    x = nn.Conv(
      self.hidden_size,
      (self.kernel, self.kernel),
      self.stride,
      self.kernel // 2,
      kernel_init=_conv_init,
      dtype=self.dtype,
      name='patch_embed',
    )(x)
    x = norms.layer_norm(_EPSILON_AFTER_CONV, self.dtype, 'patch_norm')(x)
    block = nn.remat(MiTBlock, static_argnums=(2,)) if self.remat else MiTBlock
    attention = []
    for i, rate in enumerate(self.drop_rates):
      x, queries_and_keys = block(
        self.num_heads,
        self.reduction,
        self.mlp_dim,
        rate,
        self.dtype,
        name=f'block{i}',
      )(x, train)
      attention.append(queries_and_keys)
    x = norms.layer_norm(_EPSILON, self.dtype, 'norm')(x)
    return x, tuple(attention)


class MiT(network_part.NetworkPart):
  """A transformer whose stages shrink the map: 'stage1' to 'stage4'.

  By default it is MiT-B1. Maps are those after the norm of each stage, at
  strides 4, 8, 16 and 32; sides are divided by the stride, rounded up. Images
  in [-1, 1] are standardized by ImageNet's mean and standard deviation first.
  Queries and keys of the last stage are returned, too, for AFA's affinities.
  Source: Xie et al. 2021 (SegFormer), Sec. 3.1.

  Attributes:
    hidden_sizes: number of features of each stage.
    num_layers: number of blocks of each stage.
    num_heads: number of attention heads of each stage.
    strides: stride of the patches of each stage: 7x7 in the first one, then
      3x3. The last one is 1 in AFA, whose map has stride 16.
    reductions: factor by which the sides of the map of keys and values are
      reduced, in each stage.
    mlp_ratio: features between the layers of a perceptron, per feature.
    drop_path_rate: probability that a branch of the last block is dropped for
      an image in training. It grows in equal steps, from 0 in the first block.
  """

  hidden_sizes: Sequence[int] = (64, 128, 320, 512)
  num_layers: Sequence[int] = (2, 2, 2, 2)
  num_heads: Sequence[int] = (1, 2, 5, 8)
  strides: Sequence[int] = (4, 2, 2, 2)
  reductions: Sequence[int] = (8, 4, 2, 1)
  mlp_ratio: int = 4
  drop_path_rate: float = 0.1

  @property
  def size_multiple(self) -> int:
    """Returns 1: sides of any length from `min_side` are possible.

    An evaluation on images of many sizes should set a larger size multiple in
    its protocol, since it compiles a program for each padded size.
    """
    return 1

  @property
  def output_stride(self) -> int:
    """Returns the stride of the last map."""
    return self._total_strides[-1]

  @property
  def min_side(self) -> int:
    """Returns the least side of an image, at which no reduced map is empty."""
    return max(
      (reduction - 1) * stride + 1
      for reduction, stride in zip(
        self.reductions, self._total_strides, strict=True
      )
    )

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W 3'], train: bool = False
  ) -> features.Features:
    """Encodes images.

    Raises:
      ValueError: a side is below `min_side`, or fields contradict each other.
    """
    self._check(*images.shape[1:3])
    x = standardize.standardize_by_imagenet(images).astype(self.dtype)
    rates = iter(self._drop_rates())
    maps, attention = [], ()
    for s, stride in enumerate(self._total_strides):
      x, attention = MiTStage(
        self.hidden_sizes[s],
        3 if s else 7,
        self.strides[s],
        self.num_heads[s],
        self.reductions[s],
        self.mlp_ratio * self.hidden_sizes[s],
        tuple(itertools.islice(rates, self.num_layers[s])),
        self.dtype,
        self.remat,
        name=f'stage{s + 1}',
      )(x, train)
      maps.append(features.FeatureMap(f'stage{s + 1}', stride, x))
    if self.reductions[-1] > 1:
      attention = ()  # Keys are no cells of the map.
    return features.Features(tuple(maps), attention)

  @property
  def _total_strides(self) -> tuple[int, ...]:
    """Returns the stride of each stage's map."""
    return tuple(itertools.accumulate(self.strides, operator.mul))

  def _drop_rates(self) -> list[float]:
    """Returns for each block, over all stages, the rate of its branches."""
    last = sum(self.num_layers) - 1
    return [self.drop_path_rate * i / max(last, 1) for i in range(last + 1)]

  def _check(self, height: Any, width: Any) -> None:
    """Raises ValueError if fields contradict each other or the image.

    Args:
      height: of the images; symbolic in an export.
      width: likewise.
    """
    num_stages = len(self.hidden_sizes)
    for name in ('num_layers', 'num_heads', 'strides', 'reductions'):
      values = tuple(getattr(self, name))
      if len(values) != num_stages:
        raise ValueError(
          f'{name}: expected {num_stages} numbers, one for each of '
          f'hidden_sizes={tuple(self.hidden_sizes)}, got {values}'
        )
    for size, heads in zip(self.hidden_sizes, self.num_heads, strict=True):
      if size % heads:
        raise ValueError(
          f'hidden_sizes: expected multiples of '
          f'num_heads={tuple(self.num_heads)}, got {tuple(self.hidden_sizes)}'
        )
    sides = [n for n in (height, width) if isinstance(n, int)]
    if min(sides, default=self.min_side) < self.min_side:
      raise ValueError(
        f'images: expected sides of at least {self.min_side} pixels, got '
        f'{height}x{width}: enlarge or pad them'
      )
