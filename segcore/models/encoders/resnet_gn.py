"""ResNets with weight-standardized convolutions and group normalization.

  ResNet(blocks=(3, 4, 9)).apply(variables, images).at_stride(8)

With blocks (3, 4, 9) it is the stem of the hybrid vision transformer
`R50+ViT-B_16`, whose parameter names these are, and with (3, 4, 6, 3) the
ResNet-50 of that family. `bit` has the same convolution and blocks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from segcore.models import features, network_part
from segcore.models.layers import norm as norms
from segcore.types import Cells, Images, NewCells


class StdConv(nn.Module):
  """A weight-standardized convolution without bias.

  At every call, in float32, the kernel of each output channel is standardized
  to mean 0 and standard deviation 1 over height, width and input channels.
  Source: Qiao et al. 2019.

  Attributes:
    out_channels: channels of the result.
    kernel: height and width of the kernel.
    stride: stride of the convolution.
    epsilon: constant that keeps the divisor from 0.
    epsilon_on: the quantity that epsilon is added to: the standard 'deviation',
      as in the official ViT code, or the 'variance', as in BiT's.
    padding: 'same', as TensorFlow's, which pads top and left less where a
      stride makes the padding odd; or 'symmetric'.
    dtype: dtype of the convolution.
  """

  out_channels: int
  kernel: int = 1
  stride: int = 1
  epsilon: float = 1e-5
  epsilon_on: Literal['deviation', 'variance'] = 'deviation'
  padding: Literal['same', 'symmetric'] = 'same'
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Cells) -> NewCells:
    """Convolves; sides are divided by the stride, rounded up."""
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (self.kernel, self.kernel, x.shape[-1], self.out_channels),
      jnp.float32,
    )
    # Two passes: the raw kernel may have a mean far larger than its deviation.
    kernel = kernel - jnp.mean(kernel, (0, 1, 2))
    variance = jnp.mean(jnp.square(kernel), (0, 1, 2))
    if self.epsilon_on == 'variance':
      divisor = jnp.sqrt(variance + self.epsilon)
    else:
      divisor = jnp.sqrt(variance) + self.epsilon
    kernel = (kernel / divisor).astype(self.dtype)
    x = x.astype(self.dtype)
    if self.kernel == 1:  # As a matrix product, twice as fast on a CPU.
      return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
    pad = (self.kernel // 2, self.kernel // 2)
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(self.stride, self.stride),
      padding='SAME' if self.padding == 'same' else (pad, pad),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


class Bottleneck(nn.Module):
  """Base of the units of a ResNet, whose result has 4 times their width.

  Attributes:
    width: channels of the first two convolutions.
    stride: stride of the unit.
    num_groups: number of groups of every norm.
    norm_epsilon: constant added to the variance of a group.
    conv_epsilon: `epsilon` of every `StdConv`.
    dtype: dtype of the activations.
  """

  width: int
  stride: int
  num_groups: int
  norm_epsilon: float
  conv_epsilon: float
  dtype: DTypeLike


class ResNetGNUnit(Bottleneck):
  """A bottleneck: 1x1, 3x3 with the stride, 1x1, added to a shortcut.

  Attributes:
    zero_init: whether the last norm's scale is initialized with 0.
  """

  zero_init: bool

  @nn.compact
  def __call__(self, x: Cells) -> NewCells:
    """Applies the unit; D_out is 4 times the width."""

    def conv(x: Cells, name: str, **kwargs: int) -> NewCells:
      return StdConv(
        **kwargs, epsilon=self.conv_epsilon, dtype=self.dtype, name=name
      )(x)

    def norm(x: Cells, name: str, zero_scale: bool = False) -> Cells:
      return norms.GroupNorm(
        self.num_groups,
        self.norm_epsilon,
        zero_scale,
        dtype=self.dtype,
        name=name,
      )(x)

    shortcut = x
    if self.stride != 1 or x.shape[-1] != 4 * self.width:
      shortcut = conv(
        x, 'conv_proj', out_channels=4 * self.width, stride=self.stride
      )
      shortcut = norm(shortcut, 'gn_proj')
    x = nn.relu(norm(conv(x, 'conv1', out_channels=self.width), 'gn1'))
    x = conv(x, 'conv2', out_channels=self.width, kernel=3, stride=self.stride)
    x = nn.relu(norm(x, 'gn2'))
    x = conv(x, 'conv3', out_channels=4 * self.width)
    return nn.relu(shortcut + norm(x, 'gn3', self.zero_init))


class ResNetGNBlock(nn.Module):
  """A sequence of units of one width; the first one has the stride.

  Attributes:
    num_units: number of units.
    unit: function that builds a unit from its stride and name.
    stride: stride of the first unit.
  """

  num_units: int
  unit: Callable[..., nn.Module]
  stride: int

  @nn.compact
  def __call__(self, x: Cells) -> NewCells:
    """Applies the units one after the other."""
    for i in range(self.num_units):
      stride = self.stride if i == 0 else 1
      x = self.unit(stride=stride, name=f'unit{i + 1}')(x)
    return x


def apply_resnet_blocks(
  x: Cells, blocks: Sequence[int], width: int, unit: Callable[..., nn.Module]
) -> dict[str, Array]:
  """Applies blocks 'block1', 'block2', … inside the compact call of a module.

  Args:
    x: map after the pool.
    blocks: number of units in each block; all but the first have stride 2.
    width: width of the first block's units, which doubles from block to block.
    unit: function that builds a unit from its width, stride and name.

  Returns:
    The map of each block by its name.
  """
  maps = {}
  for b, num_units in enumerate(blocks):
    name = f'block{b + 1}'
    of_width = functools.partial(unit, width * 2**b)
    x = ResNetGNBlock(num_units, of_width, 1 if b == 0 else 2, name=name)(x)
    maps[name] = x
  return maps


def features_of_maps(maps: dict[str, Array]) -> features.Features:
  """Builds the features of maps by name, whose strides are 2, 4, 8, …"""
  return features.Features(
    tuple(
      features.FeatureMap(name, 2 * 2**i, x)
      for i, (name, x) in enumerate(maps.items())
    )
  )


class ResNetEncoder(network_part.NetworkPart):
  """Base of encoders that begin with a weight-standardized ResNet.

  Attributes:
    blocks: number of units in each block.
    width: channels of the root; block b has 4·width·2^(b-1).
    num_groups: number of groups of every norm of the ResNet.
    norm_epsilon: constant added to the variance of a group.
    conv_epsilon: constant added to the standard deviation of a kernel, or to
      its variance (see `StdConv`).
  """

  blocks: Sequence[int] = (3, 4, 9)
  width: int = 64
  num_groups: int = 32
  norm_epsilon: float = 1e-6
  conv_epsilon: float = 1e-5

  @property
  def size_multiple(self) -> int:
    """Returns the last stride: sides of images must be multiples of it."""
    return 2 ** (len(self.blocks) + 1)


class MapsEncoder(ResNetEncoder):
  """Base of encoders that are such a ResNet, without dropout or batch norm."""

  def __call__(self, images: Images, train: bool = False) -> features.Features:
    """Encodes images of any size; sides are halved, rounded up."""
    del train  # There is neither dropout nor batch norm.
    return features_of_maps(self.encode(images))

  def encode(self, images: Images) -> dict[str, Array]:
    """Computes the maps by name; implemented by subclasses."""
    raise NotImplementedError

  def root_conv(self, conv: Callable[..., StdConv] = StdConv) -> StdConv:
    """Builds the first convolution, of the kind `conv`."""
    return conv(
      self.width,
      kernel=7,
      stride=2,
      epsilon=self.conv_epsilon,
      dtype=self.dtype,
      name='conv_root',
    )

  def unit_of(
    self, kind: type[Bottleneck], **fields: bool
  ) -> Callable[..., Bottleneck]:
    """Returns the function that builds a unit from width, stride and name."""
    return functools.partial(
      nn.remat(kind) if self.remat else kind,
      num_groups=self.num_groups,
      norm_epsilon=self.norm_epsilon,
      conv_epsilon=self.conv_epsilon,
      dtype=self.dtype,
      **fields,
    )


class ResNet(MapsEncoder):
  """A post-activation bottleneck ResNet (v1.5: the 3x3 has the stride).

  Returns 'root' (stride 2, after its ReLU and before the pool), then 'block1'
  (4), 'block2' (8), … Its public weights are trained on images in [-1, 1], as
  here. Source: He et al. 2016, as in Dosovitskiy et al. 2021, App. B.

  Attributes:
    zero_init: whether units start as their shortcut alone, by a last norm
      whose scale is initialized with 0.
  """

  zero_init: bool = True

  @nn.compact
  def encode(self, images: Images) -> dict[str, Array]:
    """Computes the maps by name."""
    x = self.root_conv()(images)
    x = norms.GroupNorm(
      self.num_groups, self.norm_epsilon, dtype=self.dtype, name='gn_root'
    )(x)
    x = nn.relu(x)
    root = x
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
    unit = self.unit_of(ResNetGNUnit, zero_init=self.zero_init)
    return {
      'root': root,
      **apply_resnet_blocks(x, self.blocks, self.width, unit),
    }
