"""The one shape of network: an encoder, a decoder and named heads.

segmenter = Segmenter(
  HybridViT(), UNetDecoder(), {'noise': ConvHead(3), 'logits': ConvHead(59)}
)
segmenter.apply(variables, images, heads=('logits',))['logits']
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.core
import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features as features_lib
from segcore.models.decoders import deeplabv3plus, unet
from segcore.models.encoders import bit, hybrid_vit, resnet_gn
from segcore.models.encoders import resnet as resnet_lib
from segcore.models.layers import conv_block

ENCODERS = {
  'resnet': resnet_gn.ResNet,
  'bit': bit.BiT,
  'dilated_resnet': resnet_lib.DilatedResNet,
  'hybrid_vit': hybrid_vit.HybridViT,
}
DECODERS = {
  'unet': unet.UNetDecoder,
  'deeplabv3plus': deeplabv3plus.DeepLabV3Plus,
}
PARTS = ('encoder', 'decoder', 'heads')


class ConvHead(nn.Module):
  """One convolution with bias: a score or a value for each cell.

  Attributes:
    out_features: channels of the result, which is float32 at least.
    kernel: height and width of the kernel.
    reads: whose map it reads, 'encoder' or 'decoder'.
    stride: of the map it reads; None for the deepest.
    stage: name of the map it reads; if given, the stride does not count.
    init_scale: of the kernel's first values, against a unit variance of the
      result; 0 for a head that starts at zero.
    dtype: of the convolution.
  """

  out_features: int
  kernel: int = 3
  reads: str = 'decoder'
  stride: int | None = 1
  stage: str = ''
  init_scale: float = 1.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w C']:
    """Scores each cell."""
    del train
    conv = nn.Conv(
      self.out_features,
      (self.kernel, self.kernel),
      kernel_init=_scaled_init(self.init_scale),
      dtype=self.dtype,
      name='conv',
    )
    return _at_least_float32(conv(x))


class PoolHead(nn.Module):
  """The mean over a map and a dense layer: scores for the whole image.

  Attributes:
    out_features: channels of the result, which is float32 at least.
    reads: whose map it reads, 'encoder' or 'decoder'.
    stride: of the map it reads; None for the deepest.
    stage: name of the map it reads; if given, the stride does not count.
    init_scale: as in `ConvHead`.
  """

  out_features: int
  reads: str = 'encoder'
  stride: int | None = None
  stage: str = ''
  init_scale: float = 1.0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B C']:
    """Scores each image."""
    del train
    return nn.Dense(
      self.out_features,
      kernel_init=_scaled_init(self.init_scale),
      name='dense',
    )(jnp.mean(x.astype(jnp.float32), axis=(1, 2)))


class ConvBlocksHead(nn.Module):
  """3x3 convolutions with batch norm, ReLU and channel dropout, then a 1x1.

  U2PL's classifier and representation (two blocks) and auxiliary classifier
  (one block, on 'x3'); the representation is not normalised. All convolutions
  have biases.

  Attributes:
    out_features: channels of the result, which is float32 at least.
    width: channels of each block.
    num_blocks: how many there are.
    reads: whose map it reads, 'encoder' or 'decoder'.
    stride: of the map it reads; None for the deepest.
    stage: name of the map it reads; if given, the stride does not count.
    dropout_rate: share of each block's maps cleared in training.
    dtype: of the convolutions.
  """

  out_features: int
  width: int = 256
  num_blocks: int = 2
  reads: str = 'decoder'
  stride: int | None = 4
  stage: str = ''
  dropout_rate: float = 0.1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w C']:
    """Scores or represents each cell."""
    for i in range(self.num_blocks):
      x = conv_block.ConvBlock(
        self.width,
        use_bias=True,
        dropout_rate=self.dropout_rate,
        dtype=self.dtype,
        name=f'block{i + 1}',
      )(x, train)
    # The result itself is never rounded to less than float32.
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    return conv_block.conv(
      x.shape[-1], self.out_features, 1, dtype=dtype, name='conv'
    )(x)


def _at_least_float32(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _scaled_init(scale: float) -> nn.initializers.Initializer:
  if scale == 0.0:
    return nn.initializers.zeros
  return nn.initializers.variance_scaling(
    scale**2, 'fan_in', 'truncated_normal'
  )


def _parts(train: bool | tuple[str, ...]) -> tuple[str, ...]:
  """The parts in training mode."""
  if isinstance(train, bool):
    return PARTS if train else ()
  for part in train:
    if part not in PARTS:
      raise ValueError(f'train={part!r} is none of {", ".join(PARTS)}')
  return train


class Heads(nn.Module):
  """Modules by name, with their parameters under just these names."""

  modules: Mapping[str, nn.Module]

  preserve_adopted_names = True  # Else flax would call them 'modules_NAME'.

  def __post_init__(self) -> None:
    if self.parent is None:
      self.modules = flax.core.FrozenDict(
        {
          name: head.clone(parent=None, name=name)
          for name, head in self.modules.items()
        }
      )
    super().__post_init__()

  def __call__(
    self, maps: Mapping[str, Array], train: bool = False
  ) -> dict[str, Any]:
    """Applies the heads named by the keys to the maps given for them."""
    return {name: self.modules[name](x, train) for name, x in maps.items()}

  def use(self, name: str, part: str, *arguments: Any) -> Any:
    """Calls a method of one head, for training that needs its parts."""
    return getattr(self.modules[name], part)(*arguments)


class Segmenter(nn.Module):
  """Encoder, decoder and heads; parameters stand under just these names.

  Any parts fit together that keep to this: the encoder maps (images, train) to
  `Features`, the decoder (features, condition, train) to `Features`; a head
  says in `reads`, `stride` and `stage` which map it wants and maps (map, train)
  to an array. Batch statistics and dropout streams are flax's own.

  Attributes:
    encoder: from images in [-1, 1].
    decoder: None where all heads read the encoder.
    heads: by name; the names are the caller's ('logits', 'noise', 'rep').
  """

  encoder: nn.Module
  decoder: nn.Module | None
  heads: Mapping[str, nn.Module] | Heads

  def __post_init__(self) -> None:
    if not isinstance(self.heads, Heads):
      self.heads = Heads(self.heads, parent=None)
    super().__post_init__()

  @property
  def conditional(self) -> bool:
    """Whether the decoder reads a noise level of each image."""
    return getattr(self.decoder, 'conditional', False)

  def __call__(
    self,
    images: Float[Array, 'B H W 3'],
    *,
    heads: Sequence[str] | None = None,
    train: bool | tuple[str, ...] = False,
    condition: Float[Array, 'B'] | None = None,
  ) -> dict[str, Array]:
    """The results of the heads asked for; what none of them reads is not run.

    Args:
      images: in [-1, 1].
      heads: their names; all of them by default, as for `init`.
      train: the parts whose dropout and batch statistics are those of
        training; True for all of them.
      condition: the noise level of each image, for a conditional decoder.
    """
    names = tuple(self.heads.modules) if heads is None else tuple(heads)
    for name in names:
      self._check(name)
    decode = any(self.heads.modules[name].reads == 'decoder' for name in names)
    found = self.features(
      images, decode=decode, train=train, condition=condition
    )
    maps = {name: self._map(name, found) for name in names}
    return self.heads(maps, 'heads' in _parts(train))

  def features(
    self,
    images: Float[Array, 'B H W 3'],
    *,
    decode: bool = True,
    train: bool | tuple[str, ...] = False,
    condition: Float[Array, 'B'] | None = None,
  ) -> dict[str, features_lib.Features]:
    """The maps themselves: of the 'encoder' and, if it is run, the 'decoder'.

    Used as `segmenter.apply(variables, images, method='features')`.
    """
    train = _parts(train)
    found = {'encoder': self.encoder(images, 'encoder' in train)}
    if decode and self.decoder is not None:
      found['decoder'] = self.decoder(
        found['encoder'], condition, 'decoder' in train
      )
    elif condition is not None:
      raise ValueError('a condition was given, but no decoder runs to read it')
    return found

  def _check(self, name: str) -> None:
    if name not in self.heads.modules:
      raise ValueError(
        f'no head named {name!r}; there are {", ".join(self.heads.modules)}'
      )
    reads = self.heads.modules[name].reads
    if reads not in ('encoder', 'decoder'):
      raise ValueError(
        f'head {name!r} reads {reads!r}, which is neither encoder nor decoder'
      )
    if reads == 'decoder' and self.decoder is None:
      raise ValueError(f'head {name!r} reads the decoder, but there is none')

  def _map(
    self, name: str, found: Mapping[str, features_lib.Features]
  ) -> Float[Array, 'B h w D']:
    head = self.heads.modules[name]
    maps = found[head.reads]
    try:
      if head.stage:
        return maps.named(head.stage).array
      if head.stride is None:
        return maps.deepest.array
      return maps.at_stride(head.stride).array
    except ValueError as error:
      raise ValueError(f'head {name!r} of the {head.reads}: {error}') from None
