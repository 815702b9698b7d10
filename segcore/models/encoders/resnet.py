"""ResNets with batch norm, whose last blocks may dilate instead of striding.

  DilatedResNet(blocks=(3, 4, 23, 3)).apply(variables, images).by_name('x3')

torchvision's ResNet-50 has blocks=(3, 4, 6, 3), its ResNet-18 blocks=(2, 2, 2,
2) and unit='basic', both stem='plain', output_stride=32 and zero_init=False.

Padding and arithmetic are torch's, so that its public weights can be used (see
`segcore.weights.layouts.torchvision`).
"""

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segcore.models import features, network_part
from segcore.models.layers import conv_block
from segcore.models.layers import norm as norms
from segcore.types import Cells, Images, NewCells, ResizedCells

# Mean and standard deviation of ImageNet's images, 0 to 255, by which torch's
# public weights expect images to be standardized.
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)


Kind = Literal['bottleneck', 'basic']
# First parts of the names of a convolution of the stem and of its norm.
_STEM_KINDS = ('conv', 'bn')
# Without bias: a batch norm follows. The fan-in is not needed.
_conv = functools.partial(
  conv_block.conv,
  None,
  use_bias=False,
  kernel_init=conv_block.he_normal_fan_out,
)


def standardize_images(images: Images) -> Images:
  """Standardizes images in [-1, 1] by ImageNet's mean and deviation."""
  return (127.5 * (images + 1.0) - _MEAN) / _STD


class ResNetUnit(nn.Module):
  """Two or three convolutions with norms, added to a shortcut.

  A 'bottleneck' is a 1x1, a 3x3 with the stride and a 1x1 to 4 times the width;
  a 'basic' unit is a 3x3 with the stride and a 3x3. Where stride or channels
  change, the shortcut is a 1x1.

  Attributes:
    kind: 'bottleneck' or 'basic'.
    width: channels of the 3x3.
    stride: stride of the unit.
    dilations: dilations of the first and of the second 3x3 convolution; a
      bottleneck has only the first.
    zero_init: whether the last norm's scale is initialized with 0.
    dtype: dtype of the activations.
  """

  kind: Kind
  width: int
  stride: int
  dilations: tuple[int, int]
  zero_init: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Cells, train: bool) -> NewCells:
    """Applies the unit; D_out is the width, or 4 times that of a bottleneck."""

    def norm(x: Cells, name: str, zero_scale: bool = False) -> Cells:
      return norms.batch_norm(
        train=train, dtype=self.dtype, name=name, zero_scale=zero_scale
      )(x)

    branch = self._branch()
    out_channels, shortcut = branch[-1][0], x
    if self.stride != 1 or x.shape[-1] != out_channels:
      proj = _conv(
        out_channels, 1, dtype=self.dtype, name='conv_proj', stride=self.stride
      )
      shortcut = norm(proj(x), 'bn_proj')
    for i, (channels, kernel, stride, dilation) in enumerate(branch, 1):
      x = _conv(
        channels,
        kernel,
        dtype=self.dtype,
        name=f'conv{i}',
        stride=stride,
        dilation=dilation,
      )(x)
      last = i == len(branch)
      x = norm(x, f'bn{i}', last and self.zero_init)
      x = nn.relu(shortcut + x if last else x)
    return x

  def _branch(self) -> tuple[tuple[int, int, int, int], ...]:
    """Returns channels, kernel, stride and dilation of each convolution."""
    width, stride, (first, second) = self.width, self.stride, self.dilations
    if self.kind == 'basic':
      return (width, 3, stride, first), (width, 3, 1, second)
    return (width, 1, 1, 1), (width, 3, stride, first), (4 * width, 1, 1, 1)


class ResNetBlock(nn.Module):
  """A sequence of units of one width; the first one has the stride.

  Attributes:
    kind: kind of the units.
    dilations: dilations of each unit.
    width: width of the units.
    stride: stride of the first unit.
    zero_init: whether the last norm's scale is initialized with 0.
    dtype: dtype of the activations.
    remat: whether units are recomputed in the backward pass.
  """

  kind: Kind
  dilations: tuple[tuple[int, int], ...]
  width: int
  stride: int
  zero_init: bool
  dtype: DTypeLike
  remat: bool

  @nn.compact
  def __call__(self, x: Cells, train: bool) -> NewCells:
    """Applies the units one after the other."""
    unit = (
      nn.remat(ResNetUnit, static_argnums=(2,)) if self.remat else ResNetUnit
    )
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


class DilatedResNet(network_part.NetworkPart):
  """A post-activation ResNet with batch norm, for a given output stride.

  Returns 'stem' (stride 2, before the pool), then 'x1' (4), 'x2', 'x3', 'x4';
  with the small stem, which has no pool, 'x1' has stride 2 and so on. A block
  whose stride would exceed the output stride doubles the dilation instead; the
  3x3 of its first unit that would have had the stride keeps the dilation of the
  block before. Images in [-1, 1] are standardized by ImageNet's mean and
  standard deviation first, so that preprocessing travels with the weights.

  Sides of any length are possible; they are halved, rounded up (513 → 257 → 129
  → 65). The pool after the deep stem adds a cell to even sides, as torch's
  'ceil_mode' does: 512 → 256 → 129. A U-Net, whose maps double exactly, needs
  the plain stem.

  Source: He et al. 2016 (a bottleneck's 3x3 has the stride); dilation and
  multi-grid: Chen et al. 2017 (DeepLabv3), Sec. 3; deep stem: Zhao et al. 2017
  (PSPNet).

  Attributes:
    blocks: number of units in each block; (3, 4, 23, 3) is ResNet-101.
    width: channels of the first block's 3x3; block b returns width·2^(b-1)
      channels, bottlenecks 4 times as many.
    stem: 'deep', three 3x3 of width, width and twice the width; 'plain', one
      7x7, as torchvision's; or 'small', one 3x3 without a pool, for images of
      about 64 pixels.
    output_stride: stride of the last block's map.
    multi_grid: factors of the dilations of the last block's units. None for
      (2, 2, 4) with bottlenecks at output stride 8, and for 1 elsewhere.
    unit: kind of the units; see `ResNetUnit`.
    zero_init: whether units start as their shortcut alone, by a last norm
      whose scale is initialized with 0.
    dilates: whether a block that does not stride, for the output stride,
      dilates instead; otherwise its kernels read closer cells.
    frozen_blocks: number of blocks that are frozen with the stem: they pass no
      gradient, their batch statistics are the running ones, which stay as they
      are, and optimizers leave their parameters out. 0 for the stem alone, None
      for nothing frozen.
  """

  blocks: Sequence[int] = (3, 4, 23, 3)
  width: int = 64
  stem: Literal['deep', 'plain', 'small'] = 'deep'
  output_stride: Literal[8, 16, 32] = 8
  multi_grid: Sequence[int] | None = None
  unit: Kind = 'bottleneck'
  zero_init: bool = True
  dilates: bool = True
  frozen_blocks: int | None = None

  @property
  def frozen_parameters(self) -> tuple[str, ...]:
    """Returns the names of the modules that are frozen."""
    if self.frozen_blocks is None:
      return ()
    stem = (f'{kind}_{n}' for n, *_ in self._stem_plan for kind in _STEM_KINDS)
    return (*stem, *(f'block{b + 1}' for b in range(self.frozen_blocks)))

  @property
  def size_multiple(self) -> int:
    """Returns 1: sides of any length are possible.

    An evaluation on images of many sizes should set a larger size multiple in
    its protocol, since it compiles a program for each padded size.
    """
    return 1

  @nn.compact
  def __call__(self, images: Images, train: bool = False) -> features.Features:
    """Encodes images; ValueError if the fields contradict each other."""
    # In float32: pixels are rounded to the network's type once, afterwards.
    images = standardize_images(images.astype(jnp.float32))
    x = self._stem(images.astype(self.dtype), train and not self._freezes(0))
    x = jax.lax.stop_gradient(x) if self._freezes(0) else x
    maps = [features.FeatureMap('stem', 2, x)]
    if self.stem != 'small':
      x = self._pool(x)
    stride = self._stem_stride
    for b, (block_stride, dilations) in enumerate(self._plan()):
      stride *= block_stride
      frozen = self._freezes(b + 1)
      x = ResNetBlock(
        self.unit,
        dilations,
        self.width * 2**b,
        block_stride,
        self.zero_init,
        self.dtype,
        self.remat,
        name=f'block{b + 1}',
      )(x, train and not frozen)
      x = jax.lax.stop_gradient(x) if frozen else x
      maps.append(features.FeatureMap(f'x{b + 1}', stride, x))
    return features.Features(tuple(maps))

  def _freezes(self, block: int) -> bool:
    """Returns whether a block is frozen; 0 stands for the stem."""
    return self.frozen_blocks is not None and block <= self.frozen_blocks

  @property
  def _stem_plan(self) -> tuple[tuple[str, int, int, int], ...]:
    """Returns name, channels, kernel and stride of each convolution."""
    width = self.width
    return {
      'deep': (
        ('stem1', width, 3, 2),
        ('stem2', width, 3, 1),
        ('root', 2 * width, 3, 1),
      ),
      'plain': (('root', width, 7, 2),),
      'small': (('root', width, 3, 2),),
    }[self.stem]

  def _stem(self, x: Images, train: bool) -> Cells:
    """Applies the convolutions before the pool; the last one is the root."""
    for name, channels, kernel, stride in self._stem_plan:
      x = _conv(
        channels, kernel, dtype=self.dtype, name=f'conv_{name}', stride=stride
      )(x)
      x = norms.batch_norm(train=train, dtype=self.dtype, name=f'bn_{name}')(x)
      x = nn.relu(x)
    return x

  def _pool(self, x: Cells) -> ResizedCells:
    """Applies a 3x3 max pool of stride 2, padded by -inf."""
    # torch's ceil_mode: even sides have one more window, mostly on padding.
    pads = [(1, 1 + (self.stem == 'deep' and n % 2 == 0)) for n in x.shape[1:3]]
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=pads)

  @property
  def _stem_stride(self) -> int:
    """Returns the stride of the blocks' input."""
    return 2 if self.stem == 'small' else 4

  def _plan(self) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    """Returns the stride of each block, and the dilations of its units."""
    if not 0 <= (self.frozen_blocks or 0) <= len(self.blocks):
      raise ValueError(
        f'frozen_blocks: expected None or 0 to {len(self.blocks)}, got '
        f'{self.frozen_blocks}'
      )
    plan, stride, dilation = [], self._stem_stride, 1
    for b, num_units in enumerate(self.blocks):
      block_stride, before = (1 if b == 0 else 2), dilation
      if stride * block_stride > self.output_stride:
        dilation *= block_stride if self.dilates else 1
        block_stride = 1
      stride *= block_stride
      # torch's `_make_layer`: the first 3x3 of a block that dilates instead of
      # striding has the dilation of the block before.
      first, rest = (before, dilation), (dilation, dilation)
      plan.append((block_stride, (first, *[rest] * (num_units - 1))))
    if stride != self.output_stride:
      raise ValueError(
        f'output_stride: expected the stride {stride}, at which the blocks '
        f'{self.blocks} end, got {self.output_stride}'
      )
    block_stride, dilations = plan[-1]
    factors = self.multi_grid
    if factors is None:
      has_grid = self.output_stride == 8 and self.unit == 'bottleneck'
      factors = (
        (2, 2, 4) if has_grid and self.dilates else (1,) * len(dilations)
      )
    if len(factors) != len(dilations):
      raise ValueError(
        f'multi_grid: expected a factor for each of the {len(dilations)} units '
        f'of the last block, got {tuple(factors)}'
      )
    plan[-1] = (
      block_stride,
      tuple(
        (factor * first, factor * second)
        for (first, second), factor in zip(dilations, factors, strict=True)
      ),
    )
    return plan
