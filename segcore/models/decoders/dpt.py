"""The dense prediction transformer's decoder: depths of a ViT, fused.

  DPT().apply(variables, encoder_features).by_name('fused')

Kernels and biases are initialized as torch's are.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from segcore.models import features as features_lib
from segcore.models.decoders import unconditional
from segcore.models.layers import conv_block, resize
from segcore.types import Cells

_NUM_MAPS = 4


class TransposedConv(nn.Module):
  """A transposed convolution whose kernel is as large as its stride.

  Cell (i, j) becomes the cells (s·i + a, s·j + b), each by its matrix
  kernel[a, b], to which a bias is added. torch's weights [D, D_out, s, s] have
  the axes (2, 3, 0, 1) here.

  Attributes:
    out_channels: channels of the result.
    stride: s, height and width of the kernel, and the stride.
    dtype: dtype of the result.
  """

  out_channels: int
  stride: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Cells) -> Float[Array, 'B h_out w_out D_out']:
    """Enlarges the map by the stride."""
    s, (batch, height, width, channels) = self.stride, x.shape
    # torch's fan-in of a transposed convolution is that of its gradient.
    bound = (self.out_channels * s * s) ** -0.5

    def init(
      key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, '...']:
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    shape = (s, s, channels, self.out_channels)
    kernel = self.param('kernel', init, shape, jnp.float32)
    bias = self.param('bias', init, (self.out_channels,), jnp.float32)
    # No windows overlap: a matrix product, where XLA would convolve zeros.
    result = jnp.einsum(
      'bhwi,acio->bhawco', x.astype(self.dtype), kernel.astype(self.dtype)
    )
    result = result.reshape(batch, s * height, s * width, self.out_channels)
    return result + bias.astype(self.dtype)


class DPTResidualUnit(nn.Module):
  """Two 3x3 convolutions, each after a ReLU, added to their input.

  Attributes:
    dtype: dtype of the activations.
  """

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Cells) -> Cells:
    """Adds the result of both convolutions to a map."""
    channels, y = x.shape[-1], x
    for name in ('conv1', 'conv2'):
      y = conv_block.conv(channels, channels, 3, dtype=self.dtype, name=name)(
        nn.relu(y)
      )
    return x + y


class DPTFusionBlock(nn.Module):
  """Adds a skip to the deeper map, and resizes the sum to the next grid.

    x = deeper + DPTResidualUnit(skip), or deeper where there is no skip
    conv1x1(resize(DPTResidualUnit(x)))

  Attributes:
    dtype: dtype of the activations.
  """

  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Cells, skip: Cells | None, size: resize.Size
  ) -> Float[Array, 'B h_out w_out D']:
    """Fuses the deeper map with a skip, and upsamples the result.

    Args:
      x: result of the deeper block, or the deepest map.
      skip: map of the same grid; None for the deepest block.
      size: height and width of the result.
    """
    if skip is not None:
      x = x + DPTResidualUnit(self.dtype, name='skip_unit')(skip)
    x = DPTResidualUnit(self.dtype, name='unit')(x)
    x = resize.resize_bilinear(x, size, align_corners=True)
    return conv_block.conv(
      x.shape[-1], x.shape[-1], 1, dtype=self.dtype, name='conv'
    )(x)


class DPT(unconditional.UnconditionalDecoder):
  """Fuses the maps of four depths of a plain ViT, from deep to shallow.

  The encoder returns four maps of one grid, in the order of its blocks: those
  after blocks 2, 5, 8 and 11 (counted from 0) of 12, or 4, 11, 17 and 23 of 24;
  these are the defaults of the field `depths` of `vit.ViT`. Each map is the
  output of the final norm, without class token and registers.

  The four maps, of h x w cells of stride p, are projected and resized to 4, 2,
  1 and ½ times the grid (rounded up), from shallow to deep. Four blocks fuse
  them from deep to shallow. Returns their results 'fusion1' (stride p),
  'fusion2' (p/2) and 'fusion3' (p/4), and 'fused' (p/8, of 8h x 8w cells). The
  last one has passed a 3x3 and a ReLU; a head classifies it by a 1x1.

  Source: Ranftl et al. 2021, Sec. 3, in the variant of UniMatch V2 (Yang et al.
  2025): no batch norm, and class token and registers are not used.

  Attributes:
    widths: channels of the four maps, from shallow to deep. UniMatch V2 has
      (48, 96, 192, 384) for a small ViT, (96, 192, 384, 768) for a base one.
    fusion_width: channels F of the fusion blocks; UniMatch V2 has 64 for a
      small ViT, 128 for a base one.
  """

  widths: Sequence[int] = (48, 96, 192, 384)
  fusion_width: int = 64

  def __post_init__(self) -> None:
    if len(self.widths) != _NUM_MAPS:
      raise ValueError(
        f'widths: expected one for each of {_NUM_MAPS} maps, got '
        f'{tuple(self.widths)}'
      )
    super().__post_init__()

  @nn.compact
  def decode(
    self, features: features_lib.Features, train: bool
  ) -> features_lib.Features:
    """Fuses the four maps of one stride; `train` has no effect."""
    del train
    _check_maps(features)
    stride = features.deepest.stride
    maps = [self._resize(i, each.array) for i, each in enumerate(features.maps)]
    block = DPTFusionBlock
    if self.remat:
      block = nn.remat(DPTFusionBlock, static_argnums=(3,))
    x, skip, results = maps.pop(), None, []
    for i in range(1, _NUM_MAPS + 1):
      size = maps[-1].shape[1:3] if maps else tuple(2 * n for n in x.shape[1:3])
      x = block(self.dtype, name=f'fusion{i}')(x, skip, size)
      skip = maps.pop() if maps else None
      results.append((f'fusion{i}', x))
    width = self.fusion_width
    x = conv_block.conv(width, width, 3, dtype=self.dtype, name='conv')(x)
    results[-1] = ('fused', nn.relu(x))
    return features_lib.Features(
      tuple(
        features_lib.FeatureMap(name, _divide(stride, 2**i), x)
        for i, (name, x) in enumerate(results)
      )
    )

  def _resize(self, i: int, x: Cells) -> Float[Array, 'B h_out w_out F']:
    """Projects map i, resizes it, and projects it to the fusion's width."""
    width = self.widths[i]
    x = conv_block.conv(
      x.shape[-1], width, 1, dtype=self.dtype, name=f'project{i}'
    )(x)
    name = f'resize{i}'
    if i < 2:
      x = TransposedConv(width, (4, 2)[i], self.dtype, name=name)(x)
    elif i == _NUM_MAPS - 1:
      x = conv_block.conv(
        width, width, 3, stride=2, dtype=self.dtype, name=name
      )(x)
    return conv_block.conv(
      width,
      self.fusion_width,
      3,
      use_bias=False,
      dtype=self.dtype,
      name=f'adapt{i}',
    )(x)


def _check_maps(features: features_lib.Features) -> None:
  """Raises MissingMapError unless there are four maps of one stride."""
  count = len(features.maps)
  if len(features.strides) == 1 and count == _NUM_MAPS:
    return
  if len(features.strides) > 1:
    got = features.strides_text
    advice = 'use decoder unet or deeplabv3plus'
  else:
    got = f'{count} at {features.strides_text}'
    advice = 'choose four blocks, the last among them, in depths of the encoder'
  raise features_lib.MissingMapError(
    f'decoder dpt: expected {_NUM_MAPS} maps of one stride, as those of a '
    f'plain ViT, got {got}',
    advice,
  )


def _divide(stride: int | float, divisor: int) -> int | float:
  """Divides a stride; 14 / 4 = 3.5 is no int."""
  quotient = stride / divisor
  return int(quotient) if quotient == int(quotient) else quotient
