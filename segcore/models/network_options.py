"""Options of the network, checked without importing any network."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
  """A network without its heads, which belong to a training stage.

  Attributes:
    encoder: name (see `network.ENCODERS`) and fields of the module; a `grid` of
      (0, 0) stands for that of the training images (see
      `network.with_position_grid`).
    decoder: name (see `network.DECODERS`) and fields of the module; None where
      all heads read the encoder.
    dtype: dtype of the activations; parameters are always float32.
    remat: whether blocks are recomputed in the backward pass, to save memory.
  """

  encoder: Mapping[str, Any]
  decoder: Mapping[str, Any] | None = None
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: bool = False
