"""ResNets with weight-standardized convolutions and group normalization.

  ResNet(blocks=(3, 4, 9)).apply(variables, images).at_stride(8)

The first is the stem of the hybrid vision transformer `R50+ViT-B_16`, whose
parameter names these are; `blocks=(3, 4, 6, 3)` is the ResNet-50 of its family.
The pre-activation ResNet (`bit`) is built of the same convolution and blocks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features
from segcore.models.layers import norm as norms


class StdConv(nn.Module):
  """A convolution without bias whose kernels have mean 0 and deviation 1.

  The raw kernel is the parameter, standardized over height, width and input
  channels at every call, in float32. Source: Qiao et al. 2019.

  Attributes:
    size: of the output channels.
    kernel: height and width of the kernel.
    stride: of the output.
    epsilon: keeps the divisor from 0.
    epsilon_on: what it is added to: the 'deviation', as in the official ViT
      code, or the 'variance', as in BiT's.
    padding: TensorFlow's 'same', which pads low sides less, or 'symmetric'.
    dtype: of the convolution.
  """

  size: int
  kernel: int = 1
  stride: int = 1
  epsilon: float = 1e-5
  epsilon_on: Literal['deviation', 'variance'] = 'deviation'
  padding: Literal['same', 'symmetric'] = 'same'
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w I']) -> Float[Array, 'B i j O']:
    """Convolves; output sides are input sides over the stride, up."""
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (self.kernel, self.kernel, x.shape[-1], self.size),
      jnp.float32,
    )
    kernel = kernel - jnp.mean(kernel, (0, 1, 2))
    variance = jnp.mean(jnp.square(kernel), (0, 1, 2))
    if self.epsilon_on == 'variance':
      divisor = jnp.sqrt(variance + self.epsilon)
    else:
      divisor = jnp.sqrt(variance) + self.epsilon
    kernel = (kernel / divisor).astype(self.dtype)
    x = x.astype(self.dtype)
    if self.kernel == 1:  # A matrix product: XLA:CPU is twice as fast with it.
      return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
    side = (self.kernel // 2, self.kernel // 2)
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(self.stride, self.stride),
      padding='SAME' if self.padding == 'same' else (side, side),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


class Unit(nn.Module):
  """A bottleneck: 1x1, 3x3 with the stride, 1x1 to 4 x width; ReLU after."""

  width: int
  stride: int
  num_groups: int
  norm_epsilon: float
  conv_epsilon: float
  zero_init: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w I']) -> Float[Array, 'B i j O']:
    """Applies the unit; O is 4 times the width."""

    def conv(x: Array, name: str, **kwargs: int) -> Array:
      return StdConv(
        **kwargs, epsilon=self.conv_epsilon, dtype=self.dtype, name=name
      )(x)

    def norm(x: Array, name: str, zero_scale: bool = False) -> Array:
      return norms.GroupNorm(
        self.num_groups,
        self.norm_epsilon,
        zero_scale,
        dtype=self.dtype,
        name=name,
      )(x)

    shortcut = x
    if self.stride != 1 or x.shape[-1] != 4 * self.width:
      shortcut = conv(x, 'conv_proj', size=4 * self.width, stride=self.stride)
      shortcut = norm(shortcut, 'gn_proj')
    x = nn.relu(norm(conv(x, 'conv1', size=self.width), 'gn1'))
    x = conv(x, 'conv2', size=self.width, kernel=3, stride=self.stride)
    x = nn.relu(norm(x, 'gn2'))
    x = conv(x, 'conv3', size=4 * self.width)
    return nn.relu(shortcut + norm(x, 'gn3', self.zero_init))


class Block(nn.Module):
  """Units of one width; the first takes the stride.

  Attributes:
    num_units: how many.
    unit: makes one, from its stride and name.
    stride: of the first.
  """

  num_units: int
  unit: Callable[..., nn.Module]
  stride: int

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w I']) -> Float[Array, 'B i j O']:
    """Applies the units in turn."""
    for i in range(self.num_units):
      stride = self.stride if i == 0 else 1
      x = self.unit(stride=stride, name=f'unit{i + 1}')(x)
    return x


class ResNet(nn.Module):
  """Post-activation bottleneck network (v1.5: the stride is on the 3x3).

  Returns 'root' (stride 2, after its ReLU and before the pool), then 'block1'
  (4), 'block2' (8), … Images are [-1, 1], which is what its public weights
  expect. Source: He et al. 2016, as in Dosovitskiy et al. 2021, App. B.

  Attributes:
    blocks: how many units each block has.
    width: channels of the root; block b has 4·width·2^(b-1).
    num_groups: of every norm.
    norm_epsilon: added to the variance of a group.
    conv_epsilon: added to the standard deviation of a kernel.
    zero_init: units start as their shortcut alone: the last scale is 0.
    dtype: of the activations; parameters and statistics are float32.
    remat: recompute each unit in the backward pass instead of storing it.
  """

  blocks: Sequence[int] = (3, 4, 9)
  width: int = 64
  num_groups: int = 32
  norm_epsilon: float = 1e-6
  conv_epsilon: float = 1e-5
  zero_init: bool = True
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @property
  def size_multiple(self) -> int:
    """Sides of images must be multiples of this: the last stride."""
    return 2 ** (len(self.blocks) + 1)

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B H W 3'], train: bool = False
  ) -> features.Features:
    """Encodes images of any size; sides are halved rounding up."""
    del train  # Neither dropout nor running statistics.
    x = StdConv(
      self.width,
      kernel=7,
      stride=2,
      epsilon=self.conv_epsilon,
      dtype=self.dtype,
      name='conv_root',
    )(images)
    x = norms.GroupNorm(
      self.num_groups, self.norm_epsilon, dtype=self.dtype, name='gn_root'
    )(x)
    x = nn.relu(x)
    stages = [features.FeatureMap('root', 2, x)]
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
    for b, num_units in enumerate(self.blocks):
      unit = functools.partial(
        nn.remat(Unit) if self.remat else Unit,
        self.width * 2**b,
        num_groups=self.num_groups,
        norm_epsilon=self.norm_epsilon,
        conv_epsilon=self.conv_epsilon,
        zero_init=self.zero_init,
        dtype=self.dtype,
      )
      stride = 1 if b == 0 else 2
      x = Block(num_units, unit, stride, name=f'block{b + 1}')(x)
      stages.append(features.FeatureMap(f'block{b + 1}', 4 * 2**b, x))
    return features.Features(tuple(stages))
