"""The heads of representation learning (spec §2.4), and of pixel attention.

Each is a head of a `Segmenter`, called on a map of the encoder; training also
calls their parts, since views of several sizes share them.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pass_luss.pretrain import embedding_ops
from segcore.models.layers import norm


@dataclasses.dataclass(frozen=True)
class HeadSizes:
  """Widths of the heads.

  Attributes:
    hidden: h, of all projections.
    embedding: of images and of pixels.
    prototypes: K.
  """

  hidden: int = 512
  embedding: int = 128
  prototypes: int = 500

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 2:
        raise ValueError(f'{name}: found {value}, expected 2 or more')


def _uniform(fan_in: int) -> Callable[..., Array]:
  """Torch's first values of dense layers and of all biases: ±1/sqrt(fan_in)."""
  bound = 1.0 / math.sqrt(fan_in)

  def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def _dense(fan_in: int, size: int, dtype: DTypeLike, name: str) -> nn.Dense:
  init = _uniform(fan_in)
  return nn.Dense(
    size, kernel_init=init, bias_init=init, dtype=dtype, name=name
  )


def _conv(
  fan_in: int, size: int, dtype: DTypeLike, name: str, use_bias: bool = False
) -> nn.Conv:
  """A 1x1 convolution."""
  return nn.Conv(
    size,
    (1, 1),
    use_bias=use_bias,
    kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
    bias_init=_uniform(fan_in),
    dtype=dtype,
    name=name,
  )


class Projection(nn.Module):
  """From a pooled map to an embedding of unit length: P of §2.4.

  Dense, norm, ReLU, dense, and a norm without scale and shift.

  Attributes:
    hidden: width h.
    size: of the embedding.
    dtype: of the dense layers.
  """

  hidden: int
  size: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B D'], train: bool = False
  ) -> Float[Array, 'B E']:
    """Embeds each row."""
    x = _dense(x.shape[-1], self.hidden, self.dtype, 'dense1')(x)
    x = norm.batch_norm(train=train, dtype=self.dtype, name='bn1')(x)
    # From here on in float32: a mean is taken off, and may be large.
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    x = _dense(self.hidden, self.size, dtype, 'dense2')(nn.relu(x))
    x = norm.batch_norm(train=train, dtype=dtype, name='bn2', affine=False)(x)
    return embedding_ops.l2_normalize(x)


class PixelLayers(nn.Module):
  """Three 1x1 convolutions without bias, each with a norm.

  ReLU between them; the last norm has no scale and shift.

  Attributes:
    hidden: width h.
    size: channels of the result.
    dtype: of the convolutions.
  """

  hidden: int
  size: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """Maps each pixel."""
    for i, size in enumerate((self.hidden, self.hidden, self.size), start=1):
      dtype = (
        self.dtype if i < 3 else jnp.promote_types(self.dtype, jnp.float32)
      )
      x = _conv(x.shape[-1], size, dtype, f'conv{i}')(x)
      x = norm.batch_norm(
        train=train, dtype=dtype, name=f'bn{i}', affine=i < 3
      )(x)
      x = nn.relu(x) if i < 3 else x
    return x


class Clusters(nn.Module):
  """An embedding of the image, and the prototypes it is compared with.

  Attributes:
    hidden: width of the projection.
    size: of the embedding.
    num_prototypes: K.
    reads: 'encoder'; its deepest map.
    stride: None, of the deepest.
    map_name: name of another map of the encoder.
    dtype: of the dense layers.
  """

  hidden: int
  size: int
  num_prototypes: int
  reads: str = 'encoder'
  stride: int | None = None
  map_name: str | None = None
  dtype: DTypeLike = jnp.float32

  def setup(self):
    """The parts."""
    self.projection = Projection(self.hidden, self.size, self.dtype)
    self.prototypes = self.param(
      'prototypes', _uniform(self.size), (self.size, self.num_prototypes)
    )

  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B K']:
    """Scores of each image against the prototypes, as these are."""
    return self.score(self.embed(embedding_ops.average_pool(x), train))

  def embed(
    self, x: Float[Array, 'B D'], train: bool = False
  ) -> Float[Array, 'B E']:
    """Embeddings of unit length of pooled maps."""
    return self.projection(x, train)

  def score(self, embeddings: Float[Array, 'B E']) -> Float[Array, 'B K']:
    """Products with the prototypes."""
    return embedding_ops.similarities(embeddings, self.prototypes)


class Shallow(nn.Module):
  """An embedding of a shallow map: its pixels are mapped before the mean.

  Attributes:
    map_name: name of the encoder's map.
    hidden: width of both parts.
    size: of the embedding.
    reads: 'encoder'.
    stride: None: the map is named.
    dtype: of the layers.
  """

  map_name: str | None
  hidden: int
  size: int
  reads: str = 'encoder'
  stride: int | None = None
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B E']:
    """Embeds each image, to unit length."""
    x = PixelLayers(self.hidden, x.shape[-1], self.dtype, name='pixels')(
      x, train
    )
    return Projection(self.hidden, self.size, self.dtype, name='projection')(
      embedding_ops.average_pool(x), train
    )


class Alignment(nn.Module):
  """Projection and predictor of pixels, for P2P.

  Attributes:
    hidden: width of the projection.
    size: of a pixel's embedding.
    project: whether there is a projection.
    predict: whether there is a predictor.
    reads: 'encoder'; its deepest map.
    stride: None, of the deepest.
    map_name: name of another map of the encoder.
    dtype: of the convolutions.
  """

  hidden: int
  size: int
  project: bool = True
  predict: bool = True
  reads: str = 'encoder'
  stride: int | None = None
  map_name: str | None = None
  dtype: DTypeLike = jnp.float32

  def setup(self):
    """The parts there are."""
    if self.project:
      self.projection = PixelLayers(self.hidden, self.size, self.dtype)
    if self.predict:
      self.predictor = Predictor(self.dtype)

  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """All parts in turn."""
    return self.predicted(self.projected(x, train), train)

  def projected(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """Pixels projected; as they are, without a projection."""
    return self.projection(x, train) if self.project else x

  def predicted(
    self, x: Float[Array, 'B h w E'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """What the other view is expected to show there."""
    return self.predictor(x, train) if self.predict else x


class Predictor(nn.Module):
  """1x1 convolution, norm, ReLU and a 1x1 convolution with bias: q of §2.4.

  Attributes:
    dtype: of the convolutions.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w E'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """Maps each pixel; channels stay as many."""
    size = x.shape[-1]
    x = _conv(size, size, self.dtype, 'conv1')(x)
    x = nn.relu(norm.batch_norm(train=train, dtype=self.dtype, name='bn1')(x))
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    return _conv(size, size, dtype, 'conv2', use_bias=True)(x)


class PixelPro(nn.Module):
  """Projector of PixelPro, and the transform of its propagation (§2.10).

  Attributes:
    hidden: width of the projector.
    size: channels of a pixel's embedding.
    reads: 'encoder'; its deepest map.
    stride: None, of the deepest.
    map_name: name of another map of the encoder.
    dtype: of the convolutions.
  """

  hidden: int
  size: int
  reads: str = 'encoder'
  stride: int | None = None
  map_name: str | None = None
  dtype: DTypeLike = jnp.float32

  def setup(self):
    """The parts; biases everywhere."""
    self.projector = _Projector(self.hidden, self.size, self.dtype)
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    self.transform = _conv(
      self.size, self.size, dtype, 'transform', use_bias=True
    )

  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """Both in turn."""
    return self.transform(self.projected(x, train))

  def projected(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """Pixels projected."""
    return self.projector(x, train)

  def transformed(self, x: Float[Array, 'B h w E']) -> Float[Array, 'B h w E']:
    """What is propagated."""
    return self.transform(x)


class _Projector(nn.Module):
  """Two 1x1 convolutions with bias; norm and ReLU between."""

  hidden: int
  size: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    x = _conv(x.shape[-1], self.hidden, self.dtype, 'conv1', use_bias=True)(x)
    x = nn.relu(norm.batch_norm(train=train, dtype=self.dtype, name='bn1')(x))
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    return _conv(self.hidden, self.size, dtype, 'conv2', use_bias=True)(x)


class Attention(nn.Module):
  """How much each channel of each pixel counts: sigmoid(MLP(x) + θ) of §3.1.

  Attributes:
    shared: one map for all channels, instead of one for each.
    reads: 'encoder'; its deepest map.
    stride: None, of the deepest.
    map_name: name of another map of the encoder.
    dtype: of the convolutions.
  """

  shared: bool = False
  reads: str = 'encoder'
  stride: int | None = None
  map_name: str | None = None
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B H W E']:
    """Attention, in (0, 1), to the map enlarged; E is D, or 1 if shared."""
    size = x.shape[-1]
    x = embedding_ops.l2_normalize(embedding_ops.upsample(x))
    x = _conv(size, size, self.dtype, 'conv1', use_bias=True)(x)
    x = nn.relu(norm.batch_norm(train=train, dtype=self.dtype, name='bn1')(x))
    channels = 1 if self.shared else size
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    x = _conv(size, channels, dtype, 'conv2', use_bias=True)(x)
    x = norm.batch_norm(train=train, dtype=dtype, name='bn2')(x)
    threshold = self.param('threshold', nn.initializers.zeros, (channels,))
    return nn.sigmoid(x + threshold)


class Classifier(nn.Module):
  """A 1x1 convolution with bias: a score for each cell of the deepest map.

  Attributes:
    num_classes: channels of the result, which is float32 at least.
    reads: 'encoder'; its deepest map.
    stride: None, of the deepest.
    map_name: name of another map of the encoder.
    dtype: of the convolution.
  """

  num_classes: int
  reads: str = 'encoder'
  stride: int | None = None
  map_name: str | None = None
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w C']:
    """Scores each cell."""
    del train
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    return _conv(x.shape[-1], self.num_classes, dtype, 'conv', use_bias=True)(x)
