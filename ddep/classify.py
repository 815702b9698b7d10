"""Pretraining of an encoder on image-level labels."""

import dataclasses
from typing import Literal

from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from segcore import losses, method, types
from segcore.models import segmenter as segmenter_lib


@dataclasses.dataclass(frozen=True)
class Classify:
  """Learns which classes occur in an image.

  Attributes:
    segmenter: an encoder with a head `tags`.
    update: what is trained, and how.
    kind: 'softmax' where each image has one class, 'sigmoid' where it may have
      several.
  """

  segmenter: segmenter_lib.Segmenter
  update: method.Update
  kind: Literal['softmax', 'sigmoid']

  def init(self, rng, batch_spec, loaded) -> method.TrainState:
    """See `Method.init`."""
    shape = batch_spec['image'].shape
    return self.update.init(self.segmenter, rng, shape, loaded)

  def train_step(
    self, state: method.TrainState, batch: batch_lib.Batch
  ) -> tuple[method.TrainState, types.Metrics]:
    """One step; 'loss' is the mean over images, in nats."""
    return self.update(self.loss, state, batch)

  def loss(self, params, batch_stats, batch, keys) -> method.Outcome:
    """Sum of the cross entropy of the tags over images."""
    found, batch_stats = method.forward(
      self.segmenter,
      params,
      batch_stats,
      batch_lib.to_symmetric(batch['image']),
      heads=('tags',),
      train=self.update.trained,
      rng=keys.network,
    )
    total, count = losses.masked_sum_and_count(
      losses.tag_cross_entropy(found['tags'], batch['tags'], self.kind),
      batch['mask'],
    )
    return method.Outcome(total, count, {}, batch_stats)

  def predict(
    self, state: method.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B C']:
    """Scores of the classes."""
    return self.segmenter.apply(
      method.variables(state), images, heads=('tags',)
    )['tags']
