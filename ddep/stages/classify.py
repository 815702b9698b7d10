"""Pretraining of an encoder on image-level labels."""

import dataclasses
from typing import Literal

from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from segcore.ops import losses
from segcore.train import method


@dataclasses.dataclass(frozen=True)
class Classify(method.OneLoss):
  """Learns which classes occur in an image.

  The segmenter is an encoder with a head `tags`.

  Attributes:
    kind: 'softmax' where each image has one class, 'sigmoid' where it may have
      several.
  """

  kind: Literal['softmax', 'sigmoid']

  def loss(self, params, batch_stats, batch, keys) -> method.Outcome:
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
    return method.Outcome(total, count, {}, batch_stats)

  def predict(
    self, state: method.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B C']:
    """Scores of the classes."""
    return self.apply(state, images, 'tags')
