"""Dense features of an encoder that is not trained further.

  features = encoder.features(encoder.state, images)   # [B, h, w, D]

Images are resized so that their sides are multiples of the cells, and nothing
has to be padded (spec comparators §8.1.1).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pass_luss.pretrain import embedding_ops
from segcore.eval import short_side as short_side_lib
from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize
from segcore.train import train_state

# Short side of images, in pixels, for cells of at most 8 pixels, and for larger
# ones.
_SHORT_SIDES = (224, 448)
_SMALL_CELL = 8
# Least side of the image that is traced for the shapes of its maps.
_PROBE_SIDE = 64


def probe_side(encoder: object) -> int:
  """Returns the side, in pixels, of a small square image for an encoder."""
  multiple = encoder.size_multiple
  return -(-_PROBE_SIDE // multiple) * multiple


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenEncoder:
  """An encoder, its parameters, and the map that provides the features.

  Attributes:
    segmenter: network; only its encoder is applied.
    state: parameters and batch statistics, replicated on all devices.
    stride: stride of the map, in pixels.
    channels: number of features D of a cell of the map.
    short_side: short side of the resized images, in pixels.
  """

  segmenter: segmenter_lib.Segmenter
  state: train_state.TrainState
  stride: int
  channels: int
  short_side: int

  @classmethod
  def build(
    cls,
    segmenter: segmenter_lib.Segmenter,
    state: train_state.TrainState,
    stride: int = 0,
    short_side: int = 0,
  ) -> 'FrozenEncoder':
    """Chooses the map and the size of images; traces shapes, computes nothing.

    Args:
      segmenter: network with the encoder.
      state: its parameters and batch statistics.
      stride: stride of the map, in pixels; of several maps the deepest one is
        used. 0 for the largest stride.
      short_side: short side of images, in pixels; 0 for 448, or for 224 at
        strides of at most 8.

    Raises:
      ValueError: the encoder has no map of this stride.
    """
    side = probe_side(segmenter.encoder)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    maps = jax.eval_shape(
      lambda state, images: _encoder_maps(segmenter, state, images),
      state,
      images,
    )
    chosen = maps.at_stride(stride) if stride else maps.deepest
    small, large = _SHORT_SIDES
    default = small if chosen.stride <= _SMALL_CELL else large
    return cls(
      segmenter,
      state,
      chosen.stride,
      chosen.array.shape[-1],
      short_side or default,
    )

  @property
  def size_multiple(self) -> int:
    """Returns the divisor of the sides of images, in pixels."""
    return math.lcm(self.stride, self.segmenter.encoder.size_multiple)

  def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
    """Computes (height, width) of an image after resizing, in pixels."""
    return short_side_lib.short_side_size(
      size, self.short_side, self.size_multiple
    )

  def count_cells(self, size: tuple[int, int]) -> int:
    """Computes the number of cells of an image of (height, width) pixels."""
    return math.prod(n // self.stride for n in self.input_size(size))

  def features(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w D']:
    """Computes the features of all cells, in float32, not normalized."""
    maps = _encoder_maps(self.segmenter, state, images)
    return maps.at_stride(self.stride).array.astype(jnp.float32)

  def normalized_features(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w D']:
    """Computes the features of all cells, L2-normalized over the channels."""
    return embedding_ops.l2_normalize_embeddings(self.features(state, images))

  def enlarged_features(
    self,
    state: train_state.TrainState,
    images: Float[Array, 'B H W 3'],
    factor: int,
  ) -> Float[Array, 'B h_out w_out D']:
    """Computes features, not normalized, on a grid enlarged by a factor."""
    maps = self.features(state, images)
    height, width = maps.shape[1:3]
    return resize.resize_bilinear(maps, (factor * height, factor * width))

  def feature_maps(
    self, function: short_side_lib.ForwardFn
  ) -> short_side_lib.FeatureMaps:
    """Builds the predictor that applies a function to the resized images."""
    return short_side_lib.FeatureMaps(
      function, self.short_side, input_multiple=self.size_multiple
    )


def _encoder_maps(
  segmenter: segmenter_lib.Segmenter,
  state: train_state.TrainState,
  images: Float[Array, 'B H W 3'],
):
  """Computes all maps of the encoder, in evaluation mode."""
  return segmenter.apply(
    train_state.train_state_variables(state),
    images,
    decode=False,
    method='features',
  )['encoder']
