"""The U-Net decoder: from the deepest map to a fine one, with skips.

UNetDecoder(width_multiplier=2).apply(variables, encoder_features).at_stride(1)
"""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features as features_lib
from segcore.models import network_part
from segcore.models.layers import norm as norms
from segcore.models.layers import resize
from segcore.types import Cells


class ConcatConv(nn.Module):
  """A 3x3 convolution, without bias, of the concatenation of maps.

  Each map is convolved with its part of the kernel, and the results are added.
  So the concatenation is never in memory, and no gradient is computed with
  respect to a map that needs none, as the skip of a frozen encoder.

  Attributes:
    out_channels: channels of the result.
    dtype: dtype of the convolution.
  """

  out_channels: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, maps: Sequence[Float[Array, 'B h w _']]
  ) -> Float[Array, 'B h w D_out']:
    """Convolves maps of one grid."""
    ends = np.cumsum([x.shape[-1] for x in maps])
    kernel = self.param(
      'kernel',
      nn.initializers.he_normal(),
      (3, 3, int(ends[-1]), self.out_channels),
      jnp.float32,
    )
    parts = jnp.split(kernel.astype(self.dtype), ends[:-1], axis=2)
    return sum(
      jax.lax.conv_general_dilated(
        x.astype(self.dtype),
        part,
        (1, 1),
        'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      for x, part in zip(maps, parts, strict=True)
    )


class DecoderBlock(nn.Module):
  """Upsampling, concatenation of the skip, and 3x3 convolutions with norms.

  Attributes:
    out_channels: channels of the result.
    upsamples: whether the input is upsampled by 2.
    num_convs: number of convolutions, each with a norm and a ReLU.
    norm: kind of norm, as in `UNetDecoder`.
    num_groups: number of groups of a group norm.
    norm_epsilon: constant added to the variance by a group norm.
    dtype: dtype of the activations.
  """

  out_channels: int
  upsamples: bool
  num_convs: int
  norm: str
  num_groups: int
  norm_epsilon: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Cells,
    skip: Float[Array, 'B h_out w_out D_skip'] | None,
    embedding: Float[Array, 'B D_noise'] | None,
    train: bool,
  ) -> Float[Array, 'B h_out w_out D_out']:
    """Applies the block to the map of the block before.

    Args:
      x: map to decode; h_out and w_out are h and w, or twice these.
      skip: map of the encoder, if one is joined.
      embedding: embedding of the noise level, if the decoder is conditional.
      train: whether batch statistics are used and collected.
    """
    x = x.astype(self.dtype)
    if self.upsamples:
      x = resize.upsample2x(x)
    for i in range(1, self.num_convs + 1):
      maps = [x] if skip is None or i > 1 else [x, skip]
      x = ConcatConv(self.out_channels, self.dtype, name=f'conv{i}')(maps)
      x = norms.make_norm(
        self.norm,
        train=train,
        num_groups=self.num_groups,
        epsilon=self.norm_epsilon,
        dtype=self.dtype,
        name=f'norm{i}',
      )(x)
      if embedding is not None:
        x = norms.Modulation(self.dtype, name=f'modulation{i}')(x, embedding)
      x = nn.relu(x)
    return x


def _contains(skips: bool | tuple[int, ...], stride: int) -> bool:
  """Returns whether the skip of a stride is among `UNetDecoder.skips`."""
  if isinstance(skips, bool):
    return skips and stride > 1
  return stride in skips


class UNetDecoder(network_part.NetworkPart):
  """Upsamples the encoder's deepest map to the output stride.

  From 2^n times the output stride, n blocks upsample by 2 each. With n + 1
  widths one more block keeps the resolution; the layout decides which.
  TransUNet's five widths fit stride 32, and stride 16 with such a block.

  A block whose result has a stride above 1 concatenates the encoder's deepest
  map of that stride. Returns the map of each block: 'up0', 'up1', … Kernels are
  initialized as He's normal (fan-in, truncated).
  Source: the decoder of TransUNet (Chen et al. 2021), widened by DDeP
  (Brempong et al. 2022, Sec. 5.1), which leaves the layout open.

  Attributes:
    widths: channels of the blocks.
    width_multiplier: factor on all widths.
    layout: arrangement of the n + 1 blocks: in 'A' the first one keeps the
      resolution, in 'A1' it does so with a single convolution, in 'B' the last
      one does. With n blocks only 'A' is possible.
    output_stride: stride of the last map: 1 for the resolution of the image.
    skips: True for a skip at every stride above 1, False for none, or the
      strides that have one. A skip that the encoder lacks is an error.
    shown_skips: as `skips`, those whose values the blocks see; the others are
      zeros. Parameters have the same shapes, so a network with all skips can
      start from weights that were trained without them.
    norm: 'group' or 'batch'; see `norm.make_norm`.
    num_groups: number of groups of a group norm.
    norm_epsilon: constant added to the variance by a group norm; a batch norm
      adds 1e-5.
    conditional: whether each normalized map is modulated by the noise level.
  """

  widths: Sequence[int] = (1024, 512, 256, 128, 64)
  width_multiplier: int = 1
  layout: Literal['A', 'A1', 'B'] = 'A'
  output_stride: Literal[1, 2, 4, 8] = 1
  skips: bool | tuple[int, ...] = True
  shown_skips: bool | tuple[int, ...] = True
  norm: str = 'group'
  num_groups: int = 32
  norm_epsilon: float = 1e-6
  conditional: bool = False

  @property
  def doubles_maps(self) -> bool:
    """Returns that skips have twice the cells: no side may be rounded up."""
    return True

  @nn.compact
  def __call__(
    self,
    features: features_lib.Features,
    condition: Float[Array, 'B'] | None = None,
    train: bool = False,
  ) -> features_lib.Features:
    """Decodes the maps of an encoder.

    Args:
      features: feature maps of the encoder.
      condition: noise level γ of each image, 1 for no noise, for a conditional
        decoder only; None for 1.
      train: whether batch statistics are used and collected.

    Raises:
      ValueError: the encoder lacks a map (MissingMapError), or the widths, the
        layout, the size of a skip or the condition do not fit.
    """
    self._check_strides(features)
    x, stride = features.deepest.array, features.deepest.stride
    upsamples = self._upsamples(stride)
    embedding = self._embed(condition, len(x))
    block = DecoderBlock
    if self.remat:
      block = nn.remat(DecoderBlock, static_argnums=(4,))
    maps = []
    for i, width in enumerate(self.widths):
      stride = stride // 2 if upsamples[i] else stride
      skip = self._skip(features, stride, x) if upsamples[i] else None
      x = block(
        width * self.width_multiplier,
        upsamples[i],
        1 if self.layout == 'A1' and i == 0 else 2,
        self.norm,
        self.num_groups,
        self.norm_epsilon,
        self.dtype,
        name=f'block{i}',
      )(x, skip, embedding, train)
      maps.append(features_lib.FeatureMap(f'up{i}', stride, x))
    return features_lib.Features(tuple(maps))

  def _check_strides(self, features: features_lib.Features) -> None:
    """Raises MissingMapError if the encoder lacks a map that is joined.

    A ValueError is raised for a skip that is finer than the last map.
    """
    deepest, last = features.deepest.stride, self.output_stride
    for name in ('skips', 'shown_skips'):
      given = getattr(self, name)
      if not isinstance(given, bool) and min(given, default=last) < last:
        raise ValueError(
          f'{name}: expected strides from {last} on, that of the last map, got '
          f'{", ".join(map(str, given))}'
        )
    strides = [last * 2**i for i in range(1 + len(self.widths))]
    fits = deepest in [last * 2**i for i in range(16)]
    if fits:
      strides = [n for n in strides if n < deepest] + [deepest]
    needed = [n for n in strides[:-1] if self._has_skip(n)] + [strides[-1]]
    if fits and set(needed) <= set(features.strides):
      return
    raise features_lib.MissingMapError(
      f'decoder unet: expected maps at strides {", ".join(map(str, needed))}, '
      f'got {features.strides_text}',
      'use decoder dpt' if len(features.strides) == 1 else '',
    )

  def _has_skip(self, stride: int) -> bool:
    """Returns whether the block whose result has this stride joins a skip."""
    return _contains(self.skips, stride)

  def _upsamples(self, stride: int) -> tuple[bool, ...]:
    """Returns for each block whether it upsamples."""
    num_upsamplings = (stride // self.output_stride).bit_length() - 1
    num_others = len(self.widths) - num_upsamplings
    if num_upsamplings < 1 or num_others not in (0, 1):
      raise ValueError(
        f'widths: expected {num_upsamplings} or {num_upsamplings + 1} from '
        f'stride {stride} to {self.output_stride}, got {len(self.widths)}'
      )
    if self.layout != 'A' and not num_others:
      raise ValueError(
        f'layout: expected A, since all {len(self.widths)} blocks upsample '
        f'from stride {stride}, got {self.layout}'
      )
    keep, upsample = (False,) * num_others, (True,) * num_upsamplings
    return upsample + keep if self.layout == 'B' else keep + upsample

  def _skip(
    self, features: features_lib.Features, stride: int, x: Cells
  ) -> Float[Array, 'B h_out w_out D_skip'] | None:
    """Returns the encoder's map that is joined to x after its upsampling."""
    if not self._has_skip(stride):
      return None
    skip = features.at_stride(stride)
    height, width = 2 * x.shape[1], 2 * x.shape[2]
    if skip.array.shape[1:3] != (height, width):
      raise ValueError(
        f'the skip {skip.name!r}: expected {height}x{width} cells, got '
        f'{skip.array.shape[1]}x{skip.array.shape[2]}: the sides of the images '
        f'must be multiples of {features.deepest.stride}, and a dilated_resnet '
        "must have stem='plain' or 'small'"
      )
    if not _contains(self.shown_skips, stride):
      return jnp.zeros_like(skip.array)
    return skip.array

  def _embed(
    self, condition: Float[Array, 'B'] | None, batch: int
  ) -> Float[Array, 'B D_noise'] | None:
    """Embeds the noise level, if the decoder is conditional."""
    if not self.conditional:
      if condition is not None:
        raise ValueError(
          'condition: expected None for a decoder with conditional=False'
        )
      return None
    if condition is None:
      condition = jnp.ones(batch)
    return norms.NoiseEmbedding(name='embedding')(condition)
