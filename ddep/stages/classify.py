"""Pretraining of an encoder on image-level labels."""

import dataclasses
from typing import Literal

from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from segcore.ops import losses
from segcore.train import method, train_state, update


@dataclasses.dataclass(frozen=True)
class Classify(method.SingleLossMethod):
  """Learns which classes occur in an image.

  The segmenter is an encoder with a head `tags`.

  Attributes:
    kind: 'softmax' where each image has one class, 'sigmoid' where it may have
      several.
  """

  kind: Literal['softmax', 'sigmoid']

  def loss(self, params, batch_stats, batch, keys) -> update.LossOutput:
    """Sum over images of the cross entropy of their tags, in nats."""
    scores, batch_stats = self.forward(
      params,
      batch_stats,
      batch_lib.to_symmetric(batch['image']),
      'tags',
      keys,
    )
    total, count = losses.masked_sum_and_count(
      losses.tag_cross_entropy(scores, batch['tags'], self.kind),
      batch['mask'],
    )
    return update.LossOutput(total, count, {}, batch_stats)

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B C']:
    """Scores of the classes."""
    return self.apply(state, images, 'tags')
