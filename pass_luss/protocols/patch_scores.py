"""Class scores of cells: votes of the nearest patches of a memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
from jaxtyping import Array, Float

from pass_luss.protocols import frozen_encoder, knn
from segcore.eval import short_side
from segcore.train import train_state

# Label maps of fewer pixels than the image are a rule of PASS alone: no image
# has the square of this side.
_MAX_SIDE = 2**20


@flax.struct.dataclass
class FrozenKnnState(train_state.TrainState):
  """An encoder and its memory.

  Attributes:
    memory: a `knn.SoftKnnBank`, replicated.
  """

  memory: Any


@dataclasses.dataclass(frozen=True, eq=False)
class NeighborScores:
  """Model whose class scores are the mean label of the nearest patches.

  Attributes:
    encoder: the encoder.
    vote: function from queries and a memory to scores, of
      `knn.make_sharded_soft_vote`.
  """

  encoder: frozen_encoder.FrozenEncoder
  vote: Callable[[Array, knn.SoftKnnBank], Array]

  def predict(
    self, state: FrozenKnnState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w C']:
    """Predicts the class scores of each cell."""
    maps = self.encoder.normalized_features(state, images)
    scores = self.vote(maps.reshape(-1, maps.shape[-1]), state.memory)
    return scores.reshape(*maps.shape[:-1], -1)


def label_map_predictor(
  encoder: frozen_encoder.FrozenEncoder,
  vote: Callable[[Array, knn.SoftKnnBank], Array],
) -> short_side.LabelMaps:
  """Builds the predictor of the classes of an image's pixels.

  The scores of cells are interpolated at every pixel of an image of any size.

  Args:
    encoder: encoder of the cells.
    vote: function from queries and a memory to scores.
  """
  return short_side.LabelMaps(
    NeighborScores(encoder, vote),
    encoder.short_side,
    max_side=_MAX_SIDE,
    input_multiple=encoder.size_multiple,
  )
