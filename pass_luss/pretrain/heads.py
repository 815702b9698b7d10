"""The heads of pretraining (spec §2.4, §2.10), attention and classifier.

Each is a head of a `Segmenter` and reads a map of the encoder. Objectives call
their methods in training, since views of several sizes share a head.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pass_luss.pretrain import embedding_ops, head_layers
from segcore.models import heads
from segcore.models.layers import norm
from segcore.types import Cells


class Projection(nn.Module):
  """Projects pooled maps to L2-normalized embeddings: P of §2.4.

  Dense, batch norm, ReLU, dense, and a batch norm without scale and shift.

  Attributes:
    hidden: width h.
    size: number of features of the embedding.
    dtype: dtype of the first dense layer.
  """

  hidden: int
  size: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B D'], train: bool = False
  ) -> Float[Array, 'B E']:
    """Embeds each row of pooled features."""
    x = head_layers.dense(x.shape[-1], self.hidden, self.dtype, 'dense1')(x)
    x = norm.batch_norm(train=train, dtype=self.dtype, name='bn1')(x)
    dtype = head_layers.wide(self.dtype)
    x = head_layers.dense(self.hidden, self.size, dtype, 'dense2')(nn.relu(x))
    # The last norm is PASS's addition to the head of SwAV (spec §2.4).
    x = norm.batch_norm(train=train, dtype=dtype, name='bn2', affine=False)(x)
    return embedding_ops.l2_normalize_embeddings(x)


class PixelProjection(nn.Module):
  """Projects each pixel by three 1x1 convolutions: g_s and p of §2.4.

  No biases; batch norms after each, ReLU between; the last norm has no scale
  and shift.

  Attributes:
    hidden: width h.
    size: channels of the result.
    dtype: dtype of the first two convolutions.
  """

  hidden: int
  size: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B h w E']:
    """Projects the features of each pixel."""
    # No biases: the mean that the norm subtracts would cancel them.
    for i, size in enumerate((self.hidden, self.hidden, self.size), start=1):
      dtype = self.dtype if i < 3 else head_layers.wide(self.dtype)
      x = head_layers.conv(x.shape[-1], size, dtype, f'conv{i}')(x)
      x = norm.batch_norm(
        train=train, dtype=dtype, name=f'bn{i}', affine=i < 3
      )(x)
      x = nn.relu(x) if i < 3 else x
    return x


class Clusters(heads.EncoderHead):
  """Projection of images, and the prototypes that embeddings are compared with.

  Attributes:
    hidden: width of the projection.
    size: number of features of the embedding.
    num_prototypes: number K of prototypes.
    dtype: dtype of the projection.
  """

  hidden: int
  size: int
  num_prototypes: int
  dtype: DTypeLike = jnp.float32

  def setup(self):
    """Builds the projection and the prototypes [E, K]."""
    self.projection = Projection(self.hidden, self.size, self.dtype)
    # Transposed with respect to PyTorch's linear layer, [K, E].
    self.prototypes = self.param(
      'prototypes',
      head_layers.fan_in_uniform(self.size),
      (self.size, self.num_prototypes),
    )

  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B K']:
    """Scores each image, with the prototypes as they are."""
    return self.score(
      self.embed(embedding_ops.average_pool_embeddings(x), train)
    )

  def embed(
    self, x: Float[Array, 'B D'], train: bool = False
  ) -> Float[Array, 'B E']:
    """Projects pooled maps to L2-normalized embeddings."""
    return self.projection(x, train)

  def score(self, embeddings: Float[Array, 'B E']) -> Float[Array, 'B K']:
    """Computes inner products with the prototypes."""
    return embedding_ops.prototype_similarities(embeddings, self.prototypes)

  def fixed_scores(
    self, embeddings: Float[Array, 'B E']
  ) -> Float[Array, 'B K']:
    """Computes `score` without a gradient to the prototypes."""
    prototypes = jax.lax.stop_gradient(self.prototypes)
    return embedding_ops.prototype_similarities(embeddings, prototypes)


class Shallow(heads.EncoderHead):
  """Embeds a shallow map: pixels are projected, pooled, and projected again.

  Attributes:
    hidden: width of both projections.
    size: number of features of the embedding.
    dtype: dtype of both projections.
  """

  hidden: int
  size: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B E']:
    """Computes an L2-normalized embedding of each image."""
    x = PixelProjection(self.hidden, x.shape[-1], self.dtype, name='pixels')(
      x, train
    )
    return Projection(self.hidden, self.size, self.dtype, name='projection')(
      embedding_ops.average_pool_embeddings(x), train
    )


class Alignment(heads.EncoderHead):
  """The projection p and the predictor q of pixels, for P2P.

  Attributes:
    hidden: width of the projection.
    size: number of features of a pixel's embedding.
    has_projection: whether there is a projection.
    has_predictor: whether there is a predictor.
    dtype: dtype of the convolutions.
  """

  hidden: int
  size: int
  has_projection: bool = True
  has_predictor: bool = True
  dtype: DTypeLike = jnp.float32

  def setup(self):
    """Builds the projection and the predictor, where there are any."""
    if self.has_projection:
      self.projection = PixelProjection(self.hidden, self.size, self.dtype)
    if self.has_predictor:
      self.predictor = Predictor(self.dtype)

  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B h w E']:
    """Projects and predicts each pixel."""
    return self.predict(self.project(x, train), train)

  def project(self, x: Cells, train: bool = False) -> Float[Array, 'B h w E']:
    """Projects each pixel; returns x if the head has no projection."""
    return self.projection(x, train) if self.has_projection else x

  def predict(
    self, x: Float[Array, 'B h w E'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """Predicts the other view's embedding of each pixel.

    Returns x if the head has no predictor.
    """
    return self.predictor(x, train) if self.has_predictor else x


class Predictor(nn.Module):
  """Predicts pixel by pixel: q of §2.4.

  1x1 convolution, batch norm, ReLU and a 1x1 convolution with bias.

  Attributes:
    dtype: dtype of the first convolution.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w E'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """Maps each pixel; the number of channels stays."""
    size = x.shape[-1]
    x = head_layers.conv(size, size, self.dtype, 'conv1')(x)
    x = nn.relu(norm.batch_norm(train=train, dtype=self.dtype, name='bn1')(x))
    return head_layers.conv(
      size, size, head_layers.wide(self.dtype), 'conv2', use_bias=True
    )(x)


class PixproHead(heads.EncoderHead):
  """The projector of PixPro and the transform of its propagation (§2.10).

  Attributes:
    hidden: width of the projector.
    size: channels of a pixel's embedding.
    dtype: dtype of the projector's first convolution.
  """

  hidden: int
  size: int
  dtype: DTypeLike = jnp.float32

  def setup(self):
    """Builds both parts, with biases everywhere."""
    self.projector = _Projector(self.hidden, self.size, self.dtype)
    self.transform = head_layers.conv(
      self.size,
      self.size,
      head_layers.wide(self.dtype),
      'transform',
      use_bias=True,
    )

  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B h w E']:
    """Projects and transforms each pixel."""
    return self.transform(self.project(x, train))

  def project(self, x: Cells, train: bool = False) -> Float[Array, 'B h w E']:
    """Projects the features of each pixel."""
    return self.projector(x, train)

  def apply_transform(
    self, x: Float[Array, 'B h w E']
  ) -> Float[Array, 'B h w E']:
    """Computes the transformed pixels that the propagation averages."""
    return self.transform(x)


class _Projector(nn.Module):
  """Two 1x1 convolutions with bias; batch norm and ReLU between."""

  hidden: int
  size: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    x = head_layers.conv(
      x.shape[-1], self.hidden, self.dtype, 'conv1', use_bias=True
    )(x)
    x = nn.relu(norm.batch_norm(train=train, dtype=self.dtype, name='bn1')(x))
    dtype = head_layers.wide(self.dtype)
    return head_layers.conv(
      self.hidden, self.size, dtype, 'conv2', use_bias=True
    )(x)


class AttentionHead(heads.EncoderHead):
  """Pixel attention: sigmoid(MLP(x) + θ) for each channel (§3.1).

  Attributes:
    shared: whether all channels share one attention map; else each has its own.
    dtype: dtype of the first convolution.
  """

  shared: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B H W E']:
    """Computes the attention weights of the upsampled map, in (0, 1).

    The number E of weights of a pixel is D, or 1 if channels share them.
    """
    size = x.shape[-1]
    x = embedding_ops.l2_normalize_embeddings(
      embedding_ops.upsample_embeddings(x)
    )
    x = head_layers.conv(size, size, self.dtype, 'conv1', use_bias=True)(x)
    x = nn.relu(norm.batch_norm(train=train, dtype=self.dtype, name='bn1')(x))
    channels = 1 if self.shared else size
    dtype = head_layers.wide(self.dtype)
    x = head_layers.conv(size, channels, dtype, 'conv2', use_bias=True)(x)
    x = norm.batch_norm(train=train, dtype=dtype, name='bn2')(x)
    # θ = 0 at first. LARC does not scale the gradient of a tensor of zeros, so
    # the first step of θ is a plain one (spec §2.9).
    threshold = self.param('threshold', nn.initializers.zeros, (channels,))
    return nn.sigmoid(x + threshold)


class Classifier(heads.EncoderHead):
  """A 1x1 convolution with bias on the deepest map (§4).

  Attributes:
    num_classes: channels of the result, which is float32 or wider.
    dtype: dtype of the network; the convolution is float32 or wider.
  """

  num_classes: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Cells, train: bool = False) -> Float[Array, 'B h w C']:
    """Computes the class scores of each cell."""
    del train
    return head_layers.conv(
      x.shape[-1],
      self.num_classes,
      head_layers.wide(self.dtype),
      'conv',
      use_bias=True,
    )(x)
