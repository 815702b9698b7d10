"""The decoder of DeepLabv3+: context at many dilations, joined to fine detail.

DeepLabV3Plus().apply(variables, encoder_features).at_stride(4)
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segcore.models import features as features_lib
from segcore.models.layers import conv_block, resize

_STRIDE = 4


class DeepLabV3Plus(nn.Module):
  """Pools the deepest map over five views and joins the map at stride 4.

  The views, in order: the mean over the image; a 1x1; a 3x3 at each dilation.
  A 3x3 fuses them; the result is resized to the grid of the encoder's deepest
  map at stride 4, corners aligned, and stands after a 1x1 of that map. Returns
  'fused', twice the width in channels, stride 4. Sides of any length fit.

  Source: Chen et al. 2018, Sec. 3.1, as U2PL (Wang et al. 2022) has it: the
  low level keeps the full width and the classifier is a head's affair.

  Attributes:
    width: channels of each view, of their fusion and of the low level.
    dilations: of the 3x3 convolutions over the deepest map.
    dropout_rate: share of the fused maps cleared in training.
    dtype: of the activations; parameters and statistics are float32.
    remat: recompute each block in the backward pass instead of storing it.
  """

  width: int = 256
  dilations: Sequence[int] = (12, 24, 36)
  dropout_rate: float = 0.1
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    features: features_lib.Features,
    condition: Float[Array, 'B'] | None = None,
    train: bool = False,
  ) -> features_lib.Features:
    """Decodes.

    Args:
      features: of the encoder: a map at stride 4, and a deeper one.
      condition: must be None; this decoder is told no noise level.
      train: whether batch norms use and collect the batch's statistics, and
        dropout is on.
    """
    if condition is not None:
      raise ValueError('DeepLabv3+ takes no condition: use the U-Net for it')
    low, deep = self._sources(features)

    def block(x: Array, name: str, kernel: int = 1, **fields) -> Array:
      module = conv_block.ConvBlock
      if self.remat:
        module = nn.remat(module, static_argnums=(2,))
      return module(self.width, kernel, **fields, dtype=self.dtype, name=name)(
        x, train
      )

    mean = jnp.mean(deep.astype(jnp.float32), axis=(1, 2), keepdims=True)
    pooled = block(mean, 'pool')
    views = [
      jnp.broadcast_to(pooled, (*deep.shape[:3], self.width)),
      block(deep, 'conv1x1'),
      *(
        block(deep, f'dilated{i}', 3, dilation=dilation)
        for i, dilation in enumerate(self.dilations, 1)
      ),
    ]
    fused = block(
      jnp.concatenate(views, axis=-1),
      'fuse',
      3,
      dropout_rate=self.dropout_rate,
    )
    fused = resize.bilinear(fused, low.shape[1:3], align_corners=True)
    low = block(low, 'low', use_bias=True)
    joined = jnp.concatenate([low, fused], axis=-1)
    return features_lib.Features(
      (features_lib.FeatureMap('fused', _STRIDE, joined),)
    )

  def _sources(self, features: features_lib.Features) -> tuple[Array, Array]:
    """The maps at stride 4 and at the largest stride."""
    deep = features.deepest
    if _STRIDE not in features.strides or deep.stride == _STRIDE:
      raise ValueError(
        f'DeepLabv3+ joins a map at stride {_STRIDE} to a deeper one; the '
        'encoder has maps at strides '
        f'{", ".join(map(str, features.strides))}'
      )
    return features.at_stride(_STRIDE).array, deep.array
