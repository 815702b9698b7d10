"""Feature maps as encoders and decoders return them: in order, by name."""

from typing import Any

import flax.struct


@flax.struct.dataclass
class FeatureMap:
  """A feature map, with its name and its stride.

  Attributes:
    name: name of the stage of the network that returns the map, e.g. 'block2'.
    stride: pixels of the image per cell of the map.
    array: [B, h, w, D]. Not typed as an array, since trees of shapes and of
      shardings have the same structure.
  """

  name: str = flax.struct.field(pytree_node=False)
  stride: int = flax.struct.field(pytree_node=False)
  array: Any


@flax.struct.dataclass
class Features:
  """Feature maps in the order of computation; several may have one stride."""

  maps: tuple[FeatureMap, ...]

  @property
  def strides(self) -> tuple[int, ...]:
    """Returns the different strides in ascending order."""
    return tuple(sorted({each.stride for each in self.maps}))

  @property
  def deepest(self) -> FeatureMap:
    """Returns the last map of the largest stride."""
    return self.at_stride(self.strides[-1])

  def at_stride(self, stride: int) -> FeatureMap:
    """Returns the deepest map of a stride: the one computed last.

    Raises:
      ValueError: no map has this stride or name.
    """
    for each in reversed(self.maps):
      if each.stride == stride:
        return each
    raise ValueError(
      f'no map at stride {stride}; there are maps at strides '
      f'{", ".join(map(str, self.strides))}'
    )

  def by_name(self, name: str) -> FeatureMap:
    """Returns the map of a name.

    Raises:
      ValueError: no map has this stride or name.
    """
    for each in self.maps:
      if each.name == name:
        return each
    raise ValueError(
      f'no map named {name!r}; there are '
      f'{", ".join(each.name for each in self.maps)}'
    )
