"""ResNets with batch norm whose last blocks may dilate instead of striding.

  DilatedResNet(blocks=(3, 4, 23, 3)).apply(variables, images).by_name('x3')

As torchvision has them, ResNet-50 is blocks=(3, 4, 6, 3) and ResNet-18 is
blocks=(2, 2, 2, 2), unit='basic', both with stem='plain', output_stride=32 and
zero_init=False.

Padding and arithmetic are torch's, so that its public weights fit (see
`segcore.weights.layouts.torchvision`).
"""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features
from segcore.models.layers import norm as norms

# Of the images of ImageNet, 0 to 255, by which its public weights are trained.
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)


Kind = Literal['bottleneck', 'basic']


def _conv(
  size: int,
  kernel: int,
  dtype: DTypeLike,
  name: str,
  stride: int = 1,
  dilation: int = 1,
) -> nn.Conv:
  """A convolution without bias, padded alike on both sides."""
  return nn.Conv(
    size,
    (kernel, kernel),
    strides=stride,
    padding=dilation * (kernel // 2),
    kernel_dilation=dilation,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
    dtype=dtype,
    name=name,
  )


class Unit(nn.Module):
  """Two or three convolutions with norms, added to a shortcut.

  A bottleneck is a 1x1, a 3x3 with the stride, a 1x1 to 4 x width; a basic unit
  a 3x3 with the stride and a 3x3. Where stride or channels change, the shortcut
  is a 1x1.

  Attributes:
    kind: which of them.
    width: channels within.
    stride: of the unit.
    dilations: of the 3x3 that has the stride, and of the one after it.
    zero_init: the last norm's scale starts as 0.
    dtype: of the activations.
  """

  kind: Kind
  width: int
  stride: int
  dilations: tuple[int, int]
  zero_init: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w I'], train: bool
  ) -> Float[Array, 'B i j O']:
    """Applies the unit; O is the width, or 4 times that of a bottleneck."""

    def norm(x: Array, name: str, zero_scale: bool = False) -> Array:
      return norms.batch_norm(
        train=train, dtype=self.dtype, name=name, zero_scale=zero_scale
      )(x)

    branch = self._branch()
    size, shortcut = branch[-1][0], x
    if self.stride != 1 or x.shape[-1] != size:
      proj = _conv(size, 1, self.dtype, 'conv_proj', self.stride)
      shortcut = norm(proj(x), 'bn_proj')
    for i, (size, kernel, stride, dilation) in enumerate(branch, 1):
      x = _conv(size, kernel, self.dtype, f'conv{i}', stride, dilation)(x)
      last = i == len(branch)
      x = norm(x, f'bn{i}', last and self.zero_init)
      x = nn.relu(shortcut + x if last else x)
    return x

  def _branch(self) -> tuple[tuple[int, int, int, int], ...]:
    """Channels, kernel, stride and dilation of each convolution."""
    width, stride, (first, second) = self.width, self.stride, self.dilations
    if self.kind == 'basic':
      return (width, 3, stride, first), (width, 3, 1, second)
    return (width, 1, 1, 1), (width, 3, stride, first), (4 * width, 1, 1, 1)


class Block(nn.Module):
  """Units of one width, each with its dilations; the first takes the stride."""

  kind: Kind
  dilations: tuple[tuple[int, int], ...]
  width: int
  stride: int
  zero_init: bool
  dtype: DTypeLike
  remat: bool

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w I'], train: bool
  ) -> Float[Array, 'B i j O']:
    """Applies the units in turn."""
    unit = nn.remat(Unit, static_argnums=(2,)) if self.remat else Unit
    for i, dilations in enumerate(self.dilations):
      x = unit(
        self.kind,
        self.width,
        self.stride if i == 0 else 1,
        dilations,
        self.zero_init,
        self.dtype,
        name=f'unit{i + 1}',
      )(x, train)
    return x


class DilatedResNet(nn.Module):
  """Post-activation network with batch norm, at an output stride.

  Returns 'stem' (stride 2, before the pool), then 'x1' (4), 'x2', 'x3', 'x4';
  with the small stem, which has no pool, 'x1' has stride 2 and so on. Blocks
  that would exceed the output stride multiply their dilation by 2 instead; in
  the first unit of such a block the 3x3 that strides no longer keeps the
  dilation before it. Images in [-1, 1] are given ImageNet's mean and deviation
  first, so that the pre-processing travels with the weights.

  Sides of any length fit and are halved rounding up (513 → 257 → 129 → 65).
  The pool after the deep stem adds a cell to even sides, torch's 'ceil_mode',
  so 512 → 256 → 129; a U-Net, whose maps double exactly, takes the plain stem.

  Source: He et al. 2016 (a bottleneck's stride is on the 3x3); dilation and
  multi-grid: Chen et al. 2017 (DeepLabv3), Sec. 3; deep stem: Zhao et al. 2017
  (PSPNet).

  Attributes:
    blocks: how many units each block has; (3, 4, 23, 3) is ResNet-101.
    width: channels of the first block's 3x3; block b returns width·2^(b-1), 4
      times as many of bottlenecks.
    stem: 'deep', three 3x3 of width, width and twice the width; 'plain', one
      7x7 of width, as torchvision's; or 'small', one 3x3 of width and no pool,
      for images of some 64 pixels.
    output_stride: of the last block.
    multi_grid: factors of the dilations of the last block's units. None for
      (2, 2, 4) of bottlenecks at output stride 8 and none elsewhere.
    unit: of two layers or three; see `Unit`.
    zero_init: units start as their shortcut alone: the last scale is 0.
    dtype: of the activations; parameters and statistics are float32.
    remat: recompute each unit in the backward pass instead of storing it.
  """

  blocks: Sequence[int] = (3, 4, 23, 3)
  width: int = 64
  stem: Literal['deep', 'plain', 'small'] = 'deep'
  output_stride: Literal[8, 16, 32] = 8
  multi_grid: Sequence[int] | None = None
  unit: Kind = 'bottleneck'
  zero_init: bool = True
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @property
  def size_multiple(self) -> int:
    """Any side fits. For images of many sizes an evaluation sets a canvas.

    Without one it compiles a program for each size.
    """
    return 1

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W 3'], train: bool = False
  ) -> features.Features:
    """Encodes images; ValueError if the fields contradict each other."""
    images = (127.5 * (images.astype(jnp.float32) + 1.0) - _MEAN) / _STD
    x = self._stem(images.astype(self.dtype), train)
    stages = [features.FeatureMap('stem', 2, x)]
    if self.stem != 'small':
      x = self._pool(x)
    stride = self._stem_stride
    for b, (step, dilations) in enumerate(self._plan()):
      stride *= step
      x = Block(
        self.unit,
        dilations,
        self.width * 2**b,
        step,
        self.zero_init,
        self.dtype,
        self.remat,
        name=f'block{b + 1}',
      )(x, train)
      stages.append(features.FeatureMap(f'x{b + 1}', stride, x))
    return features.Features(tuple(stages))

  def _stem(
    self, x: Float[Array, 'B H W 3'], train: bool
  ) -> Float[Array, 'B i j D']:
    """The convolutions before the pool; the last is the root."""
    width = self.width
    layers = {
      'deep': (
        ('stem1', width, 3, 2),
        ('stem2', width, 3, 1),
        ('root', 2 * width, 3, 1),
      ),
      'plain': (('root', width, 7, 2),),
      'small': (('root', width, 3, 2),),
    }[self.stem]
    for name, size, kernel, stride in layers:
      x = _conv(size, kernel, self.dtype, f'conv_{name}', stride)(x)
      x = norms.batch_norm(train=train, dtype=self.dtype, name=f'bn_{name}')(x)
      x = nn.relu(x)
    return x

  def _pool(self, x: Float[Array, 'B h w D']) -> Float[Array, 'B i j D']:
    """3x3 of stride 2; what is padded never wins."""
    # torch's ceil_mode: even sides have one more window, half off the map.
    pads = [(1, 1 + (self.stem == 'deep' and n % 2 == 0)) for n in x.shape[1:3]]
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=pads)

  @property
  def _stem_stride(self) -> int:
    """The stride at which the blocks begin."""
    return 2 if self.stem == 'small' else 4

  def _plan(self) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    """The stride of each block, and the dilations of its units."""
    plan, stride, dilation = [], self._stem_stride, 1
    for b, num_units in enumerate(self.blocks):
      step, before = (1 if b == 0 else 2), dilation
      if stride * step > self.output_stride:
        step, dilation = 1, step * dilation
      stride *= step
      first, rest = (before, dilation), (dilation, dilation)
      plan.append((step, (first, *[rest] * (num_units - 1))))
    if stride != self.output_stride:
      raise ValueError(
        f'output_stride={self.output_stride}, but the blocks {self.blocks} end '
        f'at stride {stride}'
      )
    step, dilations = plan[-1]
    grid = self.multi_grid
    if grid is None:
      spread = self.output_stride == 8 and self.unit == 'bottleneck'
      grid = (2, 2, 4) if spread else (1,) * len(dilations)
    if len(grid) != len(dilations):
      raise ValueError(
        f'multi_grid {tuple(grid)} has {len(grid)} factors, but the last block '
        f'has {len(dilations)} units: give one for each'
      )
    plan[-1] = (
      step,
      tuple(
        (factor * first, factor * second)
        for (first, second), factor in zip(dilations, grid, strict=True)
      ),
    )
    return plan
