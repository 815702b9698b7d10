"""The heads of the objectives that the paper compares with (spec §2).

Each is a list of dense layers for the projection and one for the prediction;
an objective states them as its paper does.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pass_luss.pretrain import embedding_ops, head_layers
from segcore.models import heads
from segcore.models.layers import norm


@dataclasses.dataclass(frozen=True)
class Layer:
  """Specification of a dense layer, and of the norm and ReLU after it.

  Attributes:
    size: number of its outputs; 0 for that of the encoder's features, D, which
      the first layer reads.
    bias: whether it has a bias.
    norm: batch norm after it: 'none', 'affine' with scale and shift, 'scale'
      with a scale alone, or 'plain' without parameters.
    relu: whether a ReLU follows.
    init: initialization of the kernel: 'fan_in_uniform' in ±1/sqrt(fan_in), of
      the bias, too (PyTorch's default); 'kaiming', normal with the variance
      2/fan_in, or 'normal', with the standard deviation 0.01, both with a bias
      of 0.
  """

  size: int
  bias: bool = True
  norm: Literal['none', 'affine', 'scale', 'plain'] = 'none'
  relu: bool = False
  init: Literal['fan_in_uniform', 'kaiming', 'normal'] = 'fan_in_uniform'


class Layers(nn.Module):
  """Applies dense layers to the last axis, to maps as 1x1 convolutions.

  Attributes:
    layers: layers in their order.
    dtype: dtype of all layers but the last, which is float32 or wider.
  """

  layers: Sequence[Layer]
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B *space D'], train: bool = False
  ) -> Float[Array, 'B *space E']:
    """Computes the outputs of the last layer."""
    width = x.shape[-1]
    for i, layer in enumerate(self.layers, start=1):
      is_last = i == len(self.layers)
      dtype = head_layers.wide(self.dtype) if is_last else self.dtype
      kernel_init, bias_init = _initializers(layer.init, x.shape[-1])
      x = nn.Dense(
        layer.size or width,
        use_bias=layer.bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        name=f'dense{i}',
      )(x)
      if layer.norm != 'none':
        x = norm.batch_norm(
          train=train,
          dtype=dtype,
          name=f'bn{i}',
          affine=layer.norm != 'plain',
          shift=layer.norm == 'affine',
        )(x)
      x = nn.relu(x) if layer.relu else x
    return x


def _initializers(
  name: str, fan_in: int
) -> tuple[nn.initializers.Initializer, nn.initializers.Initializer]:
  """Returns the initializers of the kernel and of the bias of a layer."""
  if name == 'fan_in_uniform':
    init = head_layers.fan_in_uniform(fan_in)
    return init, init
  if name == 'kaiming':
    kernel_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
    return kernel_init, nn.initializers.zeros
  return nn.initializers.normal(0.01), nn.initializers.zeros


class ProjectionHead(heads.EncoderHead):
  """Projects pooled maps, and predicts projections where it has a predictor.

  Attributes:
    projection: layers of the projector.
    prediction: layers of the predictor; () for none.
    dtype: dtype of all layers but the last ones.
  """

  projection: Sequence[Layer]
  prediction: Sequence[Layer] = ()
  dtype: DTypeLike = jnp.float32

  def setup(self):
    """Builds the projector, and the predictor if it has layers."""
    self.projector = Layers(self.projection, self.dtype)
    if self.prediction:
      self.predictor = Layers(self.prediction, self.dtype)

  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B E']:
    """Projects each image; returns the prediction if there is a predictor."""
    rows = self.project(embedding_ops.average_pool_embeddings(x), train)
    return self.predict(rows, train) if self.prediction else rows

  def project(
    self, x: Float[Array, 'B D'], train: bool = False
  ) -> Float[Array, 'B E']:
    """Computes the projections of pooled maps, not normalized."""
    return self.projector(x, train)

  def predict(
    self, x: Float[Array, 'B E'], train: bool = False
  ) -> Float[Array, 'B E']:
    """Predicts the projections of another view."""
    return self.predictor(x, train)


class DenseHead(heads.EncoderHead):
  """The two parallel projections of DenseCL: of images, and of cells.

  Attributes:
    image_layers: layers of the projection of the pooled map.
    cell_layers: layers of the projection of each cell, 1x1 convolutions.
    dtype: dtype of all layers but the last ones.
  """

  image_layers: Sequence[Layer]
  cell_layers: Sequence[Layer]
  dtype: DTypeLike = jnp.float32

  def setup(self):
    """Builds the projectors of images and of cells."""
    self.image_projector = Layers(self.image_layers, self.dtype)
    self.cell_projector = Layers(self.cell_layers, self.dtype)

  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w E']:
    """Projects each cell; the projection of the image is not returned."""
    return self.project(x, train)[1]

  def project(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> tuple[Float[Array, 'B E'], Float[Array, 'B h w E']]:
    """Computes the projections of each image and of each of its cells."""
    pooled = embedding_ops.average_pool_embeddings(x)
    return self.image_projector(pooled, train), self.cell_projector(x, train)
