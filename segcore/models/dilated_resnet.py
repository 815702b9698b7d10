"""ResNets with batch norm whose last blocks dilate instead of striding.

  DilatedResNet(blocks=(3, 4, 23, 3)).apply(variables, images).named('x3')

Padding and arithmetic are torch's, so that its public weights fit (see
`segcore.torch_weights`).
"""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features
from segcore.models import norm as norms

# Of the images of ImageNet, 0 to 255, by which its public weights are trained.
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)


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
  """A bottleneck: 1x1, 3x3 with stride and dilation, 1x1 to 4 x width."""

  width: int
  stride: int
  dilation: int
  zero_init: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w I'], train: bool
  ) -> Float[Array, 'B i j O']:
    """Applies the unit; O is 4 times the width."""

    def conv(
      x: Array, name: str, size: int, kernel: int = 1, **steps: int
    ) -> Array:
      return _conv(size, kernel, self.dtype, name, **steps)(x)

    def norm(x: Array, name: str, zero_scale: bool = False) -> Array:
      return norms.batch_norm(
        train=train, dtype=self.dtype, name=name, zero_scale=zero_scale
      )(x)

    size, stride = 4 * self.width, self.stride
    shortcut = x
    if stride != 1 or x.shape[-1] != size:
      shortcut = norm(conv(x, 'conv_proj', size, stride=stride), 'bn_proj')
    x = nn.relu(norm(conv(x, 'conv1', self.width), 'bn1'))
    x = conv(x, 'conv2', self.width, 3, stride=stride, dilation=self.dilation)
    x = conv(nn.relu(norm(x, 'bn2')), 'conv3', size)
    return nn.relu(shortcut + norm(x, 'bn3', self.zero_init))


class Block(nn.Module):
  """Units of one width, each with its dilation; the first takes the stride."""

  dilations: tuple[int, ...]
  width: int
  stride: int
  zero_init: bool
  dtype: DTypeLike
  remat: bool

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w I'], train: bool
  ) -> Float[Array, 'B i j O']:
    """Applies the units in turn; O is 4 times the width."""
    unit = nn.remat(Unit, static_argnums=(2,)) if self.remat else Unit
    for i, dilation in enumerate(self.dilations):
      x = unit(
        self.width,
        self.stride if i == 0 else 1,
        dilation,
        self.zero_init,
        self.dtype,
        name=f'unit{i + 1}',
      )(x, train)
    return x


class DilatedResNet(nn.Module):
  """Post-activation bottleneck network with batch norm, at an output stride.

  Returns 'stem' (stride 2, before the pool), then 'x1' (4), 'x2', 'x3', 'x4'.
  Blocks that would exceed the output stride multiply their dilation by 2
  instead; the first unit of such a block keeps the dilation before it. Images
  in [-1, 1] are given ImageNet's mean and deviation first, so that the
  pre-processing travels with the weights.

  Sides of any length fit and are halved rounding up (513 → 257 → 129 → 65).
  The pool after the deep stem adds a cell to even sides, torch's 'ceil_mode',
  so 512 → 256 → 129; a U-Net, whose maps double exactly, takes the plain stem.

  Source: He et al. 2016 (the stride is on the 3x3); dilation and multi-grid:
  Chen et al. 2017 (DeepLabv3), Sec. 3; stem: Zhao et al. 2017 (PSPNet).

  Attributes:
    blocks: how many units each block has; (3, 4, 23, 3) is ResNet-101.
    width: channels of the first block's 3x3; block b returns 4·width·2^(b-1).
    stem: 'deep', three 3x3 of width, width and twice the width; or 'plain',
      one 7x7 of width, as torchvision's.
    output_stride: of the last block.
    multi_grid: factors of the dilations of the last block's units. None for
      (2, 2, 4) at output stride 8 and none elsewhere.
    zero_init: units start as their shortcut alone: the last scale is 0.
    dtype: of the activations; parameters and statistics are float32.
    remat: recompute each unit in the backward pass instead of storing it.
  """

  blocks: Sequence[int] = (3, 4, 23, 3)
  width: int = 64
  stem: Literal['deep', 'plain'] = 'deep'
  output_stride: Literal[8, 16, 32] = 8
  multi_grid: Sequence[int] | None = None
  zero_init: bool = True
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @property
  def multiple(self) -> int:
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
    stages = [features.Stage('stem', 2, x)]
    # torch's ceil_mode: even sides have one more window, half off the map.
    pads = [(1, 1 + (self.stem == 'deep' and n % 2 == 0)) for n in x.shape[1:3]]
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=pads)
    stride = 4
    for b, (step, dilations) in enumerate(self._plan()):
      stride *= step
      x = Block(
        dilations,
        self.width * 2**b,
        step,
        self.zero_init,
        self.dtype,
        self.remat,
        name=f'block{b + 1}',
      )(x, train)
      stages.append(features.Stage(f'x{b + 1}', stride, x))
    return features.Features(tuple(stages))

  def _stem(
    self, x: Float[Array, 'B H W 3'], train: bool
  ) -> Float[Array, 'B i j D']:
    """The convolutions before the pool; the last is the root."""
    layers = [('stem1', self.width, 3, 2), ('stem2', self.width, 3, 1)]
    layers.append(('root', 2 * self.width, 3, 1))
    if self.stem == 'plain':
      layers = [('root', self.width, 7, 2)]
    for name, size, kernel, stride in layers:
      x = _conv(size, kernel, self.dtype, f'conv_{name}', stride)(x)
      x = norms.batch_norm(train=train, dtype=self.dtype, name=f'bn_{name}')(x)
      x = nn.relu(x)
    return x

  def _plan(self) -> list[tuple[int, tuple[int, ...]]]:
    """The stride of each block, and the dilations of its units."""
    plan, stride, dilation = [], 4, 1
    for b, num_units in enumerate(self.blocks):
      step, before = (1 if b == 0 else 2), dilation
      if stride * step > self.output_stride:
        step, dilation = 1, step * dilation
      stride *= step
      plan.append((step, (before,) + (dilation,) * (num_units - 1)))
    if stride != self.output_stride:
      raise ValueError(
        f'output_stride={self.output_stride}, but the blocks {self.blocks} end '
        f'at stride {stride}'
      )
    step, dilations = plan[-1]
    grid = self.multi_grid
    if grid is None:
      grid = (2, 2, 4) if self.output_stride == 8 else (1,) * len(dilations)
    if len(grid) != len(dilations):
      raise ValueError(
        f'multi_grid {tuple(grid)} has {len(grid)} factors, but the last block '
        f'has {len(dilations)} units: give one for each'
      )
    products = [d * factor for d, factor in zip(dilations, grid, strict=True)]
    plan[-1] = (step, tuple(products))
    return plan
