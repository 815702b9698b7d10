"""Heads, which compute scores or embeddings from a map of encoder or decoder.

A head names the map it reads by fields, which the `Segmenter` looks up:
`reads`, the network ('encoder' or 'decoder'), and `stride` or `map_name`; and
by `nearest`, if they have it. A head that reads 'attention' gets the queries
and keys of the encoder's last stage. A head with `predicts_pixels` is also
called with the size of the images; one with `num_maps` reads a tuple of maps.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from segcore.models import cam
from segcore.models import features as features_lib
from segcore.models.layers import conv_block, resize
from segcore.ops import losses
from segcore.types import Cells


class MapHead(nn.Module, kw_only=True):
  """Base class of heads that read one map, the decoder's finest by default.

  Attributes:
    reads: network whose map the head reads, 'encoder' or 'decoder'.
    stride: stride of the map that the head reads; None for the deepest map.
    map_name: name of the map that the head reads, instead of its stride.
    nearest: whether the map of the nearest stride is read where none has that
      stride.
  """

  reads: str = 'decoder'
  stride: int | None = 1
  map_name: str | None = None
  nearest: bool = False


class ConvHead(MapHead):
  """A convolution with bias: C scores or values for each cell.

  Attributes:
    out_features: number C of scores or values.
    kernel: height and width of the kernel.
    init_scale: standard deviation of the initial outputs, for inputs of unit
      variance; 0 for outputs that start at 0.
    dtype: dtype of the convolution; the output is float32 at least.
  """

  out_features: int
  kernel: int = 3
  init_scale: float = 1.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B h w C']:
    """Computes the scores of each cell."""
    del train
    conv = nn.Conv(
      self.out_features,
      (self.kernel, self.kernel),
      kernel_init=_scaled_init(self.init_scale),
      dtype=self.dtype,
      name='conv',
    )
    return losses.at_least_float32(conv(x))


class SubpixelHead(MapHead):
  """A convolution with bias that predicts C values for each pixel of the image.

  From a map of stride s it computes s·s·C values for each cell, those of its
  s·s pixels. At stride 1 it is a `ConvHead`.
  Source: sub-pixel convolution (Shi et al. 2016).

  Attributes:
    out_features: number C of values of a pixel.
    kernel: height and width of the kernel.
    dtype: dtype of the convolution; the output is float32 at least.
  """

  out_features: int
  kernel: int = 3
  nearest: bool = dataclasses.field(default=True, kw_only=True)
  dtype: DTypeLike = jnp.float32

  @property
  def predicts_pixels(self) -> bool:
    """Returns that the head has to know the size of the images."""
    return True

  @nn.compact
  def __call__(
    self, x: Cells, train: bool, size: tuple[int, int]
  ) -> Float[Array, 'B H W C']:
    """Computes the values of each pixel.

    Args:
      x: map to read.
      train: ignored.
      size: height and width of the images.

    Raises:
      ValueError: the sides of the images are not the same multiple of those of
        the map.
    """
    del train
    height, width = x.shape[1:3]
    factor = size[0] // height
    if (factor * height, factor * width) != tuple(size):
      raise ValueError(
        'a head that predicts pixels: expected images whose sides are the same '
        f'multiple of the {height}x{width} cells of its map, got '
        f'{size[0]}x{size[1]}'
      )
    conv = nn.Conv(
      factor**2 * self.out_features,
      (self.kernel, self.kernel),
      kernel_init=_scaled_init(1.0),
      dtype=self.dtype,
      name='conv',
    )
    return resize.depth_to_space(losses.at_least_float32(conv(x)), factor)


class ShuffleHead(MapHead):
  """A 1x1 convolution, then doublings of the grid: C scores for each pixel.

  A doubling is a 1x1 convolution to 4C channels with bias, ReLU and the
  rearrangement of the channels to 2x2 cells, which start as equal.
  Source: the decoders of CCT (Ouali et al. 2020, Sec. 3.3), initialized as in
  Aitken et al. 2017 (ICNR).

  Attributes:
    out_features: number C of scores.
    num_doublings: number of doublings; 3 for a map of stride 8.
  """

  out_features: int
  num_doublings: int = 3
  stride: int | None = dataclasses.field(default=8, kw_only=True)

  @nn.compact
  def __call__(
    self, x: Cells, train: bool = False
  ) -> Float[Array, 'B h_out w_out C']:
    """Computes the scores on a grid of 2^num_doublings times the cells."""
    del train
    channels = self.out_features
    he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')

    def init(
      key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, '...']:
      # The channels of the four cells follow each other.
      one = he_normal(key, (*shape[:-1], channels), dtype)
      return jnp.tile(one, 4)

    x = nn.Conv(
      channels, (1, 1), use_bias=False, kernel_init=he_normal, name='conv'
    )(losses.at_least_float32(x))
    for i in range(1, self.num_doublings + 1):
      x = conv_block.conv(
        channels,
        4 * channels,
        1,
        dtype=x.dtype,
        name=f'double{i}',
        kernel_init=init,
      )(x)
      x = resize.depth_to_space(nn.relu(x), 2)
    return x


class EncoderHead(MapHead, kw_only=True):
  """Base class of heads that read a map of the encoder, the deepest by default.

  Attributes:
    reads: network whose map the head reads.
    stride: stride of the map; None for the deepest one.
  """

  reads: str = 'encoder'
  stride: int | None = None


class PoolHead(EncoderHead):
  """Global average pooling and a dense layer: C scores for the whole image.

  Attributes:
    out_features: number C of scores or values.
    init_scale: factor of the kernel's initial values, as in `ConvHead`.
  """

  out_features: int
  init_scale: float = 1.0

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B C']:
    """Computes the scores of each image, in float32."""
    del train
    return nn.Dense(
      self.out_features,
      kernel_init=_scaled_init(self.init_scale),
      name='dense',
    )(jnp.mean(x.astype(jnp.float32), axis=(1, 2)))


class TagScores(NamedTuple):
  """Outputs of a classifier of whole images.

  Attributes:
    logits: [B, C].
    maps: class activation maps [B, h, w, C].
  """

  logits: Any
  maps: Any


class TagHead(EncoderHead):
  """A linear classifier of pooled features without bias, and its CAMs.

  Attributes:
    out_features: number C of classes.
    pooling: 'max' over all cells, as in AFA, or 'mean'.
    kernel_init: initializer of the kernel; None for torch's.
  """

  out_features: int
  pooling: Literal['max', 'mean'] = 'max'
  kernel_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> TagScores:
    """Computes logits and class activation maps, in float32 at least."""
    del train
    x = losses.at_least_float32(x)
    pool = {'max': _max_over_cells, 'mean': _mean_over_cells}[self.pooling]
    kernel = self.param(
      'kernel',
      self.kernel_init or _torch_init,
      (x.shape[-1], self.out_features),
      jnp.float32,
    )
    logits = jnp.matmul(pool(x), kernel, precision=jax.lax.Precision.HIGHEST)
    return TagScores(logits, cam.class_activation_maps(x, kernel))


class AffinityHead(nn.Module):
  """Affinities of pairs of cells, from the attention between them.

  With the scores S = q·kᵀ of all heads and blocks these are
  sigmoid(Σ w·(S + Sᵀ) + b). Source: Ru et al. 2022 (AFA), Eq. 2.

  Attributes:
    reads: 'attention'.
  """

  reads: str = 'attention'

  @nn.compact
  def __call__(
    self, attention: Sequence[features_lib.Attention], train: bool = False
  ) -> Float[Array, 'B P P']:
    """Computes the probability that two cells are of one class.

    Args:
      attention: queries and keys of some blocks.
      train: ignored.
    """
    del train
    query, key = (
      losses.at_least_float32(
        jnp.concatenate([getattr(each, name) for each in attention], axis=2)
      )
      for name in ('query', 'key')
    )
    num_scores = query.shape[2]
    # He-normal of torch with a = √5 and a fan-out of 1.
    weight = self.param(
      'weight', nn.initializers.normal(3**-0.5), (num_scores,), jnp.float32
    )
    bias = self.param('bias', _uniform(num_scores**-0.5), (), jnp.float32)
    # Heads are summed before the transposition: Σ w·S is one product of
    # matrices, and S of all heads, of P² values each, is never in memory.
    half = jnp.einsum('bqhd,bkhd->bqk', weight[:, None] * query, key)
    return jax.nn.sigmoid(half + half.swapaxes(1, 2) + bias)


class ConvBlocksHead(MapHead):
  """3x3 convolutions with batch norm, ReLU and channel dropout, then a 1x1.

  With two blocks these are U2PL's classifier and representation head, whose
  output is not normalized; with one block, on 'x3', its auxiliary classifier.
  All convolutions have biases.

  Attributes:
    out_features: number C of scores or values.
    width: channels of each block.
    num_blocks: number of blocks.
    dropout_rate: share of each block's channels that are dropped in training.
    kernel_init: initializer of the kernels; None for torch's.
    dtype: dtype of the convolutions; the output is float32 at least.
  """

  out_features: int
  width: int = 256
  num_blocks: int = 2
  dropout_rate: float = 0.1
  kernel_init: nn.initializers.Initializer | None = None
  stride: int | None = dataclasses.field(default=4, kw_only=True)
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B h w C']:
    """Computes scores or an embedding of each cell."""
    for i in range(self.num_blocks):
      x = conv_block.ConvBlock(
        self.width,
        use_bias=True,
        dropout_rate=self.dropout_rate,
        kernel_init=self.kernel_init,
        dtype=self.dtype,
        name=f'block{i + 1}',
      )(x, train)
    # Scores stay float32: rounded to bfloat16, those of similar classes tie.
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    return conv_block.conv(
      x.shape[-1],
      self.out_features,
      1,
      dtype=dtype,
      name='conv',
      kernel_init=self.kernel_init,
    )(x)


class EncoderMap(EncoderHead):
  """The deepest map of the encoder as it is, for losses on features.

  It has no parameters.
  """

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> Cells:
    """Returns the map in float32 at least."""
    del train
    return losses.at_least_float32(x)


class PixelClassifier(MapHead):
  """Channel dropout and a 1x1 convolution with bias: C scores for each cell.

  The classifier on the decoders of DAFormer and SegFormer. Dropout clears whole
  channels of an example and draws from the stream 'dropout'.

  Attributes:
    out_features: number C of scores.
    dropout_rate: share of the channels that are dropped in training.
    init_deviation: standard deviation of the initial kernel, whose bias is 0,
      as in DAFormer; None for torch's uniform values, as in AFA.
    dtype: dtype of the input; scores are computed in float32 at least.
  """

  out_features: int
  stride: int | None = dataclasses.field(default=4, kw_only=True)
  dropout_rate: float = 0.1
  init_deviation: float | None = 0.01
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B h w C']:
    """Computes the scores of each cell."""
    x = nn.Dropout(
      self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train
    )(x)
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    if self.init_deviation is None:
      return conv_block.conv(
        x.shape[-1], self.out_features, 1, dtype=dtype, name='conv'
      )(x)
    return nn.Conv(
      self.out_features,
      (1, 1),
      kernel_init=nn.initializers.normal(self.init_deviation),
      dtype=dtype,
      name='conv',
    )(x)


# Of torch's linear layers: uniform in ±1/√n, with the fan-in n.
_torch_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def _mean_over_cells(x: Cells) -> Float[Array, 'B D']:
  return jnp.mean(x, axis=(1, 2))


def _max_over_cells(x: Cells) -> Float[Array, 'B D']:
  """Computes the maximum; the gradient is that of one cell, as torch's."""
  # Not jnp.max, whose gradient searches the cells that equal the maximum: where
  # the compiler computes x twice, with other rounding, none does, and the
  # gradient is 0/0.
  cells = x.reshape(len(x), -1, x.shape[-1])
  largest = jnp.argmax(jax.lax.stop_gradient(cells), axis=1, keepdims=True)
  return jnp.take_along_axis(cells, largest, axis=1)[:, 0]


def _uniform(bound: float) -> nn.initializers.Initializer:
  return lambda key, shape, dtype: jax.random.uniform(
    key, shape, dtype, -bound, bound
  )


def _scaled_init(scale: float) -> nn.initializers.Initializer:
  if scale == 0.0:
    return nn.initializers.zeros
  return nn.initializers.variance_scaling(
    scale**2, 'fan_in', 'truncated_normal'
  )
