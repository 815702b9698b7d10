"""The U-Net decoder: from the deepest map to full resolution, with skips.

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
from segcore.models.layers import norm as norms
from segcore.models.layers import resize


class JoiningConv(nn.Module):
  """A 3x3 convolution, without bias, of maps that lie side by side.

  Each map meets its own part of the kernel, so the joined map is never made,
  and no gradient is computed by a map that needs none: a frozen encoder's skip.
  """

  size: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, maps: Sequence[Float[Array, 'B h w _']]
  ) -> Float[Array, 'B h w O']:
    """The sum of the parts."""
    ends = np.cumsum([x.shape[-1] for x in maps])
    kernel = self.param(
      'kernel',
      nn.initializers.he_normal(),
      (3, 3, int(ends[-1]), self.size),
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
  """[Doubles,] joins the skip, then 3x3 convolution, norm and ReLU, n times."""

  size: int
  doubles: bool
  num_convs: int
  norm: str
  num_groups: int
  norm_epsilon: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B h w I'],
    skip: Float[Array, 'B i j S'] | None,
    embedding: Float[Array, 'B E'] | None,
    train: bool,
  ) -> Float[Array, 'B i j O']:
    """Decodes one step; i j are h w, or twice that."""
    x = x.astype(self.dtype)
    if self.doubles:
      x = resize.upsample2x(x)
    for i in range(1, self.num_convs + 1):
      maps = [x] if skip is None or i > 1 else [x, skip]
      x = JoiningConv(self.size, self.dtype, name=f'conv{i}')(maps)
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


class UNetDecoder(nn.Module):
  """Doubles the encoder's deepest map until it has the image's resolution.

  From stride 32 five widths are five doublings. From stride 16 there are only
  four: the layout says which of five blocks keeps the resolution, and with four
  widths each block doubles. Any other number of widths is refused.
  Blocks that arrive at a stride above 1 join the encoder's deepest map of that
  stride. Returns each block's map: 'up0', 'up1', … Kernels start as
  He's normal (fan-in, truncated).
  Source: the decoder of TransUNet (Chen et al. 2021), widened by DDeP
  (Brempong et al. 2022, Sec. 5.1), which leaves the layout open.

  Attributes:
    widths: channels of the blocks.
    width_multiplier: multiplies all of them.
    layout: where there is a block more than there are doublings: 'A' the first
      one keeps the resolution, 'A1' so it does with a single convolution, 'B'
      the last one keeps it. Without such a block only 'A' is possible.
    skips: True for a skip at every stride above 1, False for none, or the
      strides that have one. A skip that the encoder lacks is an error.
    norm: 'group', or 'batch' with running statistics.
    num_groups: of a group norm.
    norm_epsilon: of a group norm; a batch norm has 1e-5.
    conditional: scale and shift each normalized map by the noise level.
    dtype: of the activations; parameters and statistics are float32.
    remat: recompute each block in the backward pass instead of storing it.
  """

  widths: Sequence[int] = (1024, 512, 256, 128, 64)
  width_multiplier: int = 1
  layout: Literal['A', 'A1', 'B'] = 'A'
  skips: bool | tuple[int, ...] = True
  norm: str = 'group'
  num_groups: int = 32
  norm_epsilon: float = 1e-6
  conditional: bool = False
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    features: features_lib.Features,
    condition: Float[Array, 'B'] | None = None,
    train: bool = False,
  ) -> features_lib.Features:
    """Decodes.

    Args:
      features: of the encoder.
      condition: the noise level γ of each image, 1 where there is no noise,
        for a conditional decoder only; without it all are taken as 1.
      train: whether batch norms use and collect the batch's statistics.
    """
    x, stride = features.deepest.array, features.deepest.stride
    doubles = self._doubles(stride)
    embedding = self._embed(condition, len(x))
    block = DecoderBlock
    if self.remat:
      block = nn.remat(DecoderBlock, static_argnums=(4,))
    stages = []
    for i, width in enumerate(self.widths):
      stride = stride // 2 if doubles[i] else stride
      skip = self._skip(features, stride, x) if doubles[i] else None
      x = block(
        width * self.width_multiplier,
        doubles[i],
        1 if self.layout == 'A1' and i == 0 else 2,
        self.norm,
        self.num_groups,
        self.norm_epsilon,
        self.dtype,
        name=f'block{i}',
      )(x, skip, embedding, train)
      stages.append(features_lib.FeatureMap(f'up{i}', stride, x))
    return features_lib.Features(tuple(stages))

  def _doubles(self, stride: int) -> tuple[bool, ...]:
    """Which blocks double the resolution."""
    doublings = stride.bit_length() - 1
    spare = len(self.widths) - doublings
    if 2**doublings != stride or spare not in (0, 1):
      raise ValueError(
        f"{len(self.widths)} decoder widths do not fit the encoder's deepest "
        f'map at stride {stride}: a stride of 2^n takes n or n + 1 widths'
      )
    if self.layout != 'A' and not spare:
      raise ValueError(
        f'layout={self.layout!r} is about a block that keeps the resolution; '
        f'from stride {stride} all of {len(self.widths)} blocks double it'
      )
    keep, double = (False,) * spare, (True,) * doublings
    return double + keep if self.layout == 'B' else keep + double

  def _skip(
    self, features: features_lib.Features, stride: int, x: Array
  ) -> Array | None:
    """The map that the doubled x is joined with."""
    wanted = (
      stride > 1 if isinstance(self.skips, bool) else stride in self.skips
    )
    if self.skips is False or not wanted:
      return None
    if stride not in features.strides:
      raise ValueError(
        f'the decoder needs a map at stride {stride} to join; the encoder '
        f'has maps at strides {", ".join(map(str, features.strides))}'
      )
    skip = features.at_stride(stride)
    doubled = (2 * x.shape[1], 2 * x.shape[2])
    if skip.array.shape[1:3] != doubled:
      raise ValueError(
        f'the skip {skip.name!r} is {skip.array.shape[1]}x'
        f'{skip.array.shape[2]}, but the map it joins {doubled[0]}x'
        f'{doubled[1]}: the sides of the images must be multiples of '
        f'{features.deepest.stride}'
      )
    return skip.array

  def _embed(
    self, condition: Float[Array, 'B'] | None, batch: int
  ) -> Float[Array, 'B E'] | None:
    if not self.conditional:
      if condition is not None:
        raise ValueError(
          'a condition was given to a decoder with conditional=False'
        )
      return None
    if condition is None:
      condition = jnp.ones(batch)
    return norms.NoiseEmbedding(name='embedding')(condition)
