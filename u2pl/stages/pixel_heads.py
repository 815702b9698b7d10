"""Heads on a transformer's decoder, in adaptation and weak supervision."""

import dataclasses
from typing import Any, Literal

from etils import epy
from jax.typing import DTypeLike

with epy.lazy_imports():
  from segcore.models import heads as heads_lib
  from segcore.models.layers import conv_block


@dataclasses.dataclass(frozen=True)
class HeadOptions:
  """Options of the heads on the decoder's finest map.

  Attributes:
    dropout_rate: share of the channels that the classifier of pixels drops in
      training.
    width: channels of the blocks of representations.
    representation: D, channels of a representation; its map has stride 4, or
      the nearest that the decoder has.
    represented: map that representations are computed from: the 'fused' one
      before dropout; the 'branches' that DAFormer's decoder fuses, which needs
      its `returns_branches`; or the 'deepest' of the encoder, whose cells are
      compared then.
  """

  dropout_rate: float = 0.1
  width: int = 256
  representation: int = 256
  represented: Literal['fused', 'branches', 'deepest'] = 'fused'

  def build_classifier(
    self, num_classes: int, dtype: DTypeLike, **fields: Any
  ) -> 'heads_lib.PixelClassifier':
    """Builds the classifier of pixels.

    Args:
      num_classes: number of scores of a pixel.
      dtype: dtype of the input.
      **fields: further fields of the classifier.
    """
    return heads_lib.PixelClassifier(
      num_classes,
      nearest=True,
      dropout_rate=self.dropout_rate,
      dtype=dtype,
      **fields,
    )

  def build_representation(
    self, dtype: DTypeLike
  ) -> 'heads_lib.ConvBlocksHead':
    """Builds the head of representations, with convolutions of `dtype`."""
    reads: dict[str, Any] = {
      'fused': {},
      'branches': {'map_name': 'branches'},
      'deepest': {'reads': 'encoder', 'stride': None},
    }[self.represented]
    return heads_lib.ConvBlocksHead(
      self.representation,
      width=self.width,
      nearest=True,
      dropout_rate=0.0,
      kernel_init=conv_block.he_normal_fan_out,
      dtype=dtype,
      **reads,
    )
