"""The top-down pathway of a feature pyramid network, without smoothing.

FPN(width=128).apply(variables, encoder_features).at_stride(4)
"""

import flax.linen as nn

from segcore.models import features as features_lib
from segcore.models.decoders import unconditional
from segcore.models.layers import conv_block, resize

_STRIDE = 4


class FPN(unconditional.UnconditionalDecoder):
  """Adds up 1x1 convolutions of all maps from stride 4, the deepest first.

  Each sum is resized bilinearly to the next finer map, of half-pixel centers.
  There are no 3x3 convolutions, norms or nonlinearities. Of several maps of one
  stride the last one is used. Returns 'pyramid', at stride 4.

  Source: Lin et al. 2017, in the variant of PiCIE (Cho et al. 2021).

  Attributes:
    width: channels of the result.
  """

  width: int = 128

  def _strides(self, features: features_lib.Features) -> list[int | float]:
    """Returns the strides of the maps, from the largest to 4."""
    strides = [each for each in features.strides if each >= _STRIDE]
    if not strides or strides[0] != _STRIDE:
      raise features_lib.MissingMapError(
        f'decoder fpn: expected a map at stride {_STRIDE}, got '
        f'{features.strides_text}'
      )
    return strides[::-1]

  @nn.compact
  def decode(
    self, features: features_lib.Features, train: bool
  ) -> features_lib.Features:
    """Computes the sum of all maps at stride 4."""
    del train
    total = None
    for stride in self._strides(features):
      x = features.at_stride(stride).array
      lateral = conv_block.conv(
        x.shape[-1], self.width, 1, dtype=self.dtype, name=f'lateral{stride}'
      )(x)
      if total is None:
        total = lateral
      else:
        total = lateral + resize.resize_bilinear(total, lateral.shape[1:3])
    return features_lib.Features(
      (features_lib.FeatureMap('pyramid', _STRIDE, total),)
    )
