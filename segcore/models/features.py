"""Feature maps as encoders and decoders return them: in order, by name."""

import math
from typing import Any

import flax.struct


class MissingMapError(ValueError):
  """A map that a decoder or a head reads is missing.

  Attributes:
    reason: what was expected, and the maps that there are.
    advice: what to do; '' if the reason shows it.
  """

  def __init__(self, reason: str, advice: str = ''):
    super().__init__(f'{reason}; {advice}' if advice else reason)
    self.reason, self.advice = reason, advice


@flax.struct.dataclass
class FeatureMap:
  """A feature map, with its name and its stride.

  Attributes:
    name: name of the stage of the network that returns the map, e.g. 'block2'.
    stride: pixels of the image per cell of the map; no int where patches of 14
      pixels are upsampled by 4 or 8.
    array: [B, h, w, D]. Not typed as an array, since trees of shapes and of
      shardings have the same structure.
  """

  name: str = flax.struct.field(pytree_node=False)
  stride: int | float = flax.struct.field(pytree_node=False)
  array: Any


@flax.struct.dataclass
class Attention:
  """Queries and keys of a self-attention of the cells of a map.

  Attributes:
    query: [B, P, heads, D] of the P cells, in row-major order.
    key: the same for the keys.
  """

  query: Any
  key: Any


@flax.struct.dataclass
class Features:
  """Feature maps in the order of computation; several may have one stride.

  Attributes:
    maps: the maps.
    attention: attention of each block of the last stage, in order; empty where
      an encoder has none.
  """

  maps: tuple[FeatureMap, ...]
  attention: tuple[Attention, ...] = ()

  @property
  def strides(self) -> tuple[int | float, ...]:
    """Returns the different strides in ascending order."""
    return tuple(sorted({each.stride for each in self.maps}))

  @property
  def strides_text(self) -> str:
    """Returns 'strides 2, 4, 8', or 'stride 14 alone', for a message."""
    if len(self.strides) == 1:
      return f'stride {self.strides[0]} alone'
    return f'strides {", ".join(map(str, self.strides))}'

  @property
  def deepest(self) -> FeatureMap:
    """Returns the last map of the largest stride."""
    return self.at_stride(self.strides[-1])

  def at_stride(self, stride: int | float) -> FeatureMap:
    """Returns the deepest map of a stride: the one computed last.

    Raises:
      MissingMapError: no map has this stride.
    """
    for each in reversed(self.maps):
      if each.stride == stride:
        return each
    raise MissingMapError(
      f'no map at stride {stride}; there are maps at strides '
      f'{", ".join(map(str, self.strides))}'
    )

  def near_stride(self, stride: int | float) -> FeatureMap:
    """Returns the deepest map of the stride that is nearest by its factor.

    For stride 1 it is the finest map. Of two as near, it is the finer one.
    """
    # Ascending, so the first of two as near is the finer one.
    return self.at_stride(
      min(self.strides, key=lambda each: abs(math.log2(each / stride)))
    )

  def by_name(self, name: str) -> FeatureMap:
    """Returns the map with this name.

    Raises:
      MissingMapError: no map has this name.
    """
    for each in self.maps:
      if each.name == name:
        return each
    raise MissingMapError(
      f'no map named {name!r}; there are '
      f'{", ".join(each.name for each in self.maps)}'
    )
