"""EfficientNet-Lite: inverted bottlenecks with depthwise convolutions.

  EfficientNet('lite0').apply(variables, images).at_stride(16)

Arithmetic and padding are those of the release in TensorFlow, so that its
public weights can be used (see `segcore.weights.layouts.efficientnet`).
"""

import math
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features, network_part
from segcore.models.layers import depthwise
from segcore.models.layers import norm as norms
from segcore.ops import losses
from segcore.types import Cells, Images, NewCells

Variant = Literal['lite0', 'lite1', 'lite2', 'lite3', 'lite4']

# Factors of width and depth.
SCALES: dict[str, tuple[float, float]] = {
  'lite0': (1.0, 1.0),
  'lite1': (1.0, 1.1),
  'lite2': (1.1, 1.2),
  'lite3': (1.2, 1.4),
  'lite4': (1.4, 1.8),
}
_STEM_CHANNELS, _HEAD_CHANNELS = 32, 1280


class EfficientNetBlock(NamedTuple):
  """Sizes of a block of an EfficientNet.

  Attributes:
    stage: number of its stage, from 1.
    kernel: height and width of the depthwise kernels.
    channels: channels of the result.
    expansion: channels of the depthwise convolution per channel of the input.
    stride: stride of the block at output stride 32.
    shortcut: whether the input is added to the result.
  """

  stage: int
  kernel: int
  channels: int
  expansion: int
  stride: int
  shortcut: bool


# The stages of EfficientNet-B0: kernel, blocks, channels, expansion, stride.
_STAGES = (
  (3, 1, 16, 1, 1),
  (3, 2, 24, 6, 2),
  (5, 2, 40, 6, 2),
  (3, 3, 80, 6, 2),
  (5, 3, 112, 6, 1),
  (5, 4, 192, 6, 2),
  (3, 1, 320, 6, 1),
)


def scale_blocks(variant: str) -> list[EfficientNetBlock]:
  """Scales the blocks of EfficientNet-B0; Lite scales neither end in depth.

  Channels are multiples of 8, at least 90 % of the scaled number.
  """
  width, depth = SCALES[variant]
  blocks = []
  for stage, (kernel, repeats, channels, expansion, stride) in enumerate(
    _STAGES, 1
  ):
    if 1 < stage < len(_STAGES):
      repeats = math.ceil(depth * repeats)
    scaled = channels * width
    channels = max(8, int(scaled + 4) // 8 * 8)
    if channels < 0.9 * scaled:
      channels += 8
    first = EfficientNetBlock(stage, kernel, channels, expansion, stride, False)
    rest = first._replace(stride=1, shortcut=True)
    blocks += [first, *[rest] * (repeats - 1)]
  return blocks


def _conv(
  out_channels: int, kernel: int, stride: int, dtype: DTypeLike, name: str
) -> nn.Conv:
  """Builds a convolution without bias, with TensorFlow's 'SAME' padding."""
  return nn.Conv(
    out_channels,
    (kernel, kernel),
    strides=stride,
    padding='SAME',
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
    dtype=dtype,
    name=name,
  )


def _norm(train: bool, dtype: DTypeLike, name: str) -> nn.BatchNorm:
  return norms.batch_norm(
    train=train, dtype=dtype, name=name, decay=0.99, epsilon=1e-3
  )


class InvertedBottleneck(nn.Module):
  """A 1x1 that expands, a depthwise convolution, and a 1x1 that projects.

  Source: Sandler et al. 2018 (MobileNetV2), Fig. 3d.

  Attributes:
    block: sizes of the block.
    stride: stride of the depthwise convolution.
    dilation: dilation of the depthwise convolution.
    dtype: dtype of the activations.
  """

  block: EfficientNetBlock
  stride: int
  dilation: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Cells, train: bool) -> NewCells:
    """Applies the block; batch statistics are those of training if `train`."""
    block, shortcut, dtype = self.block, x, self.dtype
    if block.expansion != 1:
      width = block.expansion * x.shape[-1]
      x = _conv(width, 1, 1, dtype, 'expand_conv')(x)
      x = nn.relu6(_norm(train, dtype, 'bn0')(x))
    x = depthwise.DepthwiseConv(
      block.kernel, self.stride, self.dilation, dtype, name='depthwise_conv'
    )(x)
    x = nn.relu6(_norm(train, dtype, 'bn1')(x))
    x = _conv(block.channels, 1, 1, dtype, 'project_conv')(x)
    x = _norm(train, dtype, 'bn2')(x)
    return x + shortcut if block.shortcut else x


class EfficientNet(network_part.NetworkPart):
  """An EfficientNet-Lite without its classifier, for a given output stride.

  Returns 'stem' (stride 2), 'stage1' (2), 'stage2' (4), 'stage3' (8), 'stage4'
  and 'stage5' (16), 'stage6' and 'stage7' (32). A block whose stride would
  exceed the output stride doubles the dilation of those after it instead. At
  sides that are multiples of 32, the maps of such a network contain those of
  output stride 32, as it is trained on.

  Images in [-1, 1] are converted to (x - 127) / 128 of values up to 255, as the
  weights expect.

  Source: Tan & Le 2019, Table 1 and Sec. 3.3; "EfficientNet-Lite" in the TPU
  models of TensorFlow (2020): no squeeze-and-excitation, ReLU6, and stem and
  head that are not scaled. Stochastic depth is left out.

  Attributes:
    variant: 'lite0' to 'lite4', the larger the slower.
    output_stride: stride of the last map.
    frozen_blocks: number of blocks that are frozen with the stem: they pass no
      gradient, their batch statistics are the running ones, which stay as they
      are, and optimizers leave their parameters out. 0 for the stem alone, None
      for nothing frozen.
  """

  variant: Variant = 'lite0'
  output_stride: Literal[8, 16, 32] = 32
  frozen_blocks: int | None = None

  def __post_init__(self) -> None:
    num_blocks = len(scale_blocks(self.variant))
    if not 0 <= (self.frozen_blocks or 0) <= num_blocks:
      raise ValueError(
        f'frozen_blocks: expected None or 0 to {num_blocks}, got '
        f'{self.frozen_blocks}'
      )
    super().__post_init__()

  @property
  def size_multiple(self) -> int:
    """Returns the output stride: other sides move the padding."""
    return self.output_stride

  @property
  def frozen_parameters(self) -> tuple[str, ...]:
    """Returns the names of the modules that are frozen."""
    if self.frozen_blocks is None:
      return ()
    blocks = (f'block{b + 1}' for b in range(self.frozen_blocks))
    return ('conv_stem', 'bn_stem', *blocks)

  @nn.compact
  def __call__(self, images: Images, train: bool = False) -> features.Features:
    """Encodes images."""
    # In float32: pixels are rounded to the network's type once, afterwards.
    x = (127.5 * (images.astype(jnp.float32) + 1.0) - 127.0) / 128.0
    x = _conv(_STEM_CHANNELS, 3, 2, self.dtype, 'conv_stem')(
      x.astype(self.dtype)
    )
    frozen = self.frozen_blocks is not None
    x = nn.relu6(_norm(train and not frozen, self.dtype, 'bn_stem')(x))
    x = jax.lax.stop_gradient(x) if frozen else x
    maps = {'stem': features.FeatureMap('stem', 2, x)}
    module = InvertedBottleneck
    if self.remat:
      module = nn.remat(InvertedBottleneck, static_argnums=(2,))
    stride, dilation = 2, 1
    for b, block in enumerate(scale_blocks(self.variant)):
      frozen = b < (self.frozen_blocks or 0)
      dilates = stride * block.stride > self.output_stride
      block_stride = 1 if dilates else block.stride
      x = module(
        block, block_stride, dilation, self.dtype, name=f'block{b + 1}'
      )(x, train and not frozen)
      x = jax.lax.stop_gradient(x) if frozen else x
      stride *= block_stride
      # The block that dilates keeps the dilation before: only later ones see
      # cells that are closer than they would be.
      dilation *= block.stride if dilates else 1
      name = f'stage{block.stage}'
      maps[name] = features.FeatureMap(name, stride, x)
    return features.Features(tuple(maps.values()))


class ImageClassifier(nn.Module):
  """The classifier of the published networks: a 1x1, the mean, a dense layer.

  Attributes:
    out_features: number of classes.
    reads: network whose map the head reads.
    stride: stride of the map that the head reads; None for the deepest map.
    map_name: name of the map that the head reads, instead of its stride.
    dtype: dtype of the convolution; the output is float32 at least.
  """

  out_features: int = 1000
  reads: str = 'encoder'
  stride: int | None = None
  map_name: str | None = None
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B C']:
    """Computes the scores of each image."""
    x = _conv(_HEAD_CHANNELS, 1, 1, self.dtype, 'conv_head')(x)
    x = nn.relu6(_norm(train, self.dtype, 'bn_head')(x))
    x = jnp.mean(losses.at_least_float32(x), axis=(1, 2))
    return nn.Dense(self.out_features, name='dense')(x)
