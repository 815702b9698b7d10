"""Supervised fine-tuning on pixel labels, from whatever came before."""

import dataclasses

from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from segcore.ops import losses
from segcore.train import method, train_state, update


@dataclasses.dataclass(frozen=True)
class Finetune(method.SingleLossMethod):
  """Cross entropy of each labeled pixel, in nats; every parameter learns.

  The segmenter has a head `logits` at full resolution.
  """

  def loss(self, params, batch_stats, batch, keys) -> update.LossOutput:
    """Sum over the pixels with a label."""
    logits, batch_stats = self.forward(
      params,
      batch_stats,
      batch_lib.to_symmetric(batch['image']),
      'logits',
      keys,
    )
    labels = batch['label']
    counted = (labels >= 0) & batch['mask'][:, None, None]
    total, count = losses.masked_sum_and_count(
      losses.cross_entropy(logits, labels), counted
    )
    return update.LossOutput(total, count, {}, batch_stats)

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w C']:
    """Class scores."""
    return self.apply(state, images, 'logits')
