"""Supervised fine-tuning on pixel labels, from whatever came before."""

import dataclasses

from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from segcore import losses, method, types
from segcore.models import segmenter as segmenter_lib


@dataclasses.dataclass(frozen=True)
class Finetune:
  """Cross entropy of each labelled pixel; every parameter learns.

  Attributes:
    segmenter: has a head `logits` at full resolution.
    update: what is trained, and how.
  """

  segmenter: segmenter_lib.Segmenter
  update: method.Update

  def init(self, rng, batch_spec, loaded) -> method.TrainState:
    """See `Method.init`."""
    shape = batch_spec['image'].shape
    return self.update.init(self.segmenter, rng, shape, loaded)

  def train_step(
    self, state: method.TrainState, batch: batch_lib.Batch
  ) -> tuple[method.TrainState, types.Metrics]:
    """One step; 'loss' is the mean over labelled pixels, in nats."""
    return self.update(self.loss, state, batch)

  def loss(self, params, batch_stats, batch, keys) -> method.Outcome:
    """Sum of the cross entropy over pixels with a label."""
    found, batch_stats = method.forward(
      self.segmenter,
      params,
      batch_stats,
      batch_lib.to_symmetric(batch['image']),
      heads=('logits',),
      train=self.update.trained,
      rng=keys.network,
    )
    labels = batch['label']
    counted = (labels >= 0) & batch['mask'][:, None, None]
    total, count = losses.masked_sum_and_count(
      losses.cross_entropy(found['logits'], labels), counted
    )
    return method.Outcome(total, count, {}, batch_stats)

  def predict(
    self, state: method.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w C']:
    """Class scores."""
    return self.segmenter.apply(
      method.variables(state), images, heads=('logits',)
    )['logits']
