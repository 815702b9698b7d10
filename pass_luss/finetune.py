"""Step 3 of PASS: the encoder learns to segment from generated labels.

Or from the masks of the few labeled images, for the semi-supervised protocol;
or whole images learn their category, for the image-level baseline (§4, §3.4).
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from segcore.models.layers import resize
from segcore.ops import color_augment, losses
from segcore.train import method, train_state, update


@dataclasses.dataclass(frozen=True)
class Finetune(method.SingleLossMethod):
  """Learns labels of pixels, at a part of the resolution, or of images.

  The segmenter has a head `logits` at the encoder's deepest grid.

  Attributes:
    of: 'pixels', or 'images', where a label map is the same everywhere and the
      mean score of all cells learns it.
    reduction: of pixels: factor by which label maps are made smaller, by the
      floor rule; scores are enlarged to that.
    doubles: whether they are doubled on the way, again and again, instead of
      being enlarged at once; the first time in predictions, too.
    colors: how images are changed.
  """

  of: Literal['pixels', 'images'] = 'pixels'
  reduction: int = 2
  doubles: bool = False
  colors: color_augment.ColorOptions = color_augment.ColorOptions()

  def loss(self, params, batch_stats, batch, keys) -> update.LossOutput:
    """Cross entropy, summed over the pixels, or images, with a label."""
    images = batch_lib.to_symmetric(batch['image'])
    images = color_augment.augment(images, keys.rows, self.colors)
    logits, batch_stats = self.forward(
      params, batch_stats, images, 'logits', keys
    )
    logits = losses.at_least_float32(logits)
    labels = batch['label'].astype(jnp.int32)
    if self.of == 'images':
      labels = labels[:, :1, :1]
      logits = jnp.mean(logits, axis=(1, 2), keepdims=True)
    else:
      size = tuple(n // self.reduction for n in labels.shape[1:])
      labels = resize.nearest_floor(labels, size)
      while self.doubles and 2 * logits.shape[1] <= size[0]:
        logits = resize.upsample2x(logits)
      logits = resize.bilinear(logits, size)
    counted = (labels >= 0) & batch['mask'][:, None, None]
    total, count = losses.masked_sum_and_count(
      losses.cross_entropy(logits, labels), counted
    )
    return update.LossOutput(total, count, {}, batch_stats)

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w C']:
    """Scores at the grid of the encoder; once doubled, if scores are (§5.5)."""
    scores = self.apply(state, images, 'logits')
    return resize.upsample2x(scores) if self.doubles else scores

  def activation(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w 2']:
    """The image's category 1…C, and its activation at each cell, up to 1.

    The category has the largest mean score, 'other' left out; its activation
    is max(s, 0) / max s (§5.4).
    """
    scores = self.predict(state, images).astype(jnp.float32)
    best = 1 + jnp.argmax(jnp.mean(scores, axis=(1, 2))[:, 1:], axis=-1)
    of_best = jnp.take_along_axis(scores, best[:, None, None, None], axis=-1)
    activation = jnp.maximum(of_best[..., 0], 0.0)
    most = jnp.max(activation, axis=(1, 2), keepdims=True)
    activation = activation / jnp.where(most > 0, most, 1.0)
    category = jnp.broadcast_to(best[:, None, None], activation.shape)
    return jnp.stack([category.astype(jnp.float32), activation], axis=-1)
