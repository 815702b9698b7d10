"""What encoders and decoders return: maps in order, by name and stride."""

from typing import Any

import flax.struct


@flax.struct.dataclass
class FeatureMap:
  """One feature map.

  Attributes:
    name: what the network calls it ('block2').
    stride: pixels of the image per cell of the map.
    array: [B, h, w, D]. Typed loosely, for a tree of arrays also travels as a
      tree of shapes or of shardings.
  """

  name: str = flax.struct.field(pytree_node=False)
  stride: int = flax.struct.field(pytree_node=False)
  array: Any


@flax.struct.dataclass
class Features:
  """The maps of a network in the order of computing; strides may repeat."""

  maps: tuple[FeatureMap, ...]

  @property
  def strides(self) -> tuple[int, ...]:
    """The strides there are, each once, ascending."""
    return tuple(sorted({each.stride for each in self.maps}))

  @property
  def deepest(self) -> FeatureMap:
    """The last map with the largest stride."""
    return self.at_stride(self.strides[-1])

  def at_stride(self, stride: int) -> FeatureMap:
    """The deepest map with this stride: the last one that was computed."""
    for each in reversed(self.maps):
      if each.stride == stride:
        return each
    raise ValueError(
      f'no map at stride {stride}; there are maps at strides '
      f'{", ".join(map(str, self.strides))}'
    )

  def by_name(self, name: str) -> FeatureMap:
    """The map of this name."""
    for each in self.maps:
      if each.name == name:
        return each
    raise ValueError(
      f'no map named {name!r}; there are '
      f'{", ".join(each.name for each in self.maps)}'
    )
