"""Step 3 of PASS: fine-tunes the encoder to segment, on pseudo-labels.

The semi-supervised protocol trains on the masks of the few labeled images
instead, and the image-level baseline on one category per image (spec §4, §3.4).
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
  """Trains a segmenter by cross entropy at reduced resolution.

  The segmenter has a head `logits` at the encoder's deepest feature map.

  Attributes:
    level: 'pixels', or 'images' where a label map is constant: the mean logits
      of all cells are trained on the image's category.
    reduction: factor of level 'pixels' by which label maps are downsampled, by
      floor-nearest; logits are upsampled to that size.
    repeated_upsampling: whether logits are upsampled by 2 repeatedly on the way
      there, instead of at once; predictions are then upsampled by 2 as well.
    colors: color augmentation.
  """

  level: Literal['pixels', 'images'] = 'pixels'
  reduction: int = 2
  repeated_upsampling: bool = False
  colors: color_augment.ColorOptions = color_augment.ColorOptions()

  def loss(self, params, batch_stats, batch, keys) -> update.LossOutput:
    """Computes the cross entropy, summed over labeled pixels or images."""
    images = batch_lib.batch_images_to_symmetric(batch['image'])
    images = color_augment.augment_colors(images, keys.rows, self.colors)
    logits, batch_stats = self.forward(
      params, batch_stats, images, 'logits', keys
    )
    logits = losses.at_least_float32(logits)
    labels = batch['label'].astype(jnp.int32)
    if self.level == 'images':
      labels = labels[:, :1, :1]
      logits = jnp.mean(logits, axis=(1, 2), keepdims=True)
    else:
      size = tuple(n // self.reduction for n in labels.shape[1:])
      labels = resize.resize_nearest_floor(labels, size)
      while self.repeated_upsampling and 2 * logits.shape[1] <= size[0]:
        logits = resize.upsample2x(logits)
      logits = resize.resize_bilinear(logits, size)
    total, count = losses.labeled_cross_entropy(logits, labels, batch['mask'])
    return update.LossOutput(total, count, {}, batch_stats)

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w C']:
    """Computes logits at the encoder's deepest feature map.

    With `repeated_upsampling` they have twice its size (spec §5.5).
    """
    logits = self.apply(state, images, 'logits')
    return resize.upsample2x(logits) if self.repeated_upsampling else logits

  def activation(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w 2']:
    """Computes the category 1…C of each image and its class activation map.

    The category is the argmax of the mean logits without 'other'; its
    activation is max(s, 0) / max s at each cell, in [0, 1] (spec §5.4).

    Returns:
      The category, the same at all cells, and the activation, stacked.
    """
    logits = self.predict(state, images).astype(jnp.float32)
    category = 1 + jnp.argmax(jnp.mean(logits, axis=(1, 2))[:, 1:], axis=-1)
    category = category[:, None, None]
    activation = jnp.take_along_axis(logits, category[..., None], axis=-1)
    activation = jnp.maximum(activation[..., 0], 0.0)
    highest = jnp.max(activation, axis=(1, 2), keepdims=True)
    activation = activation / jnp.where(highest > 0, highest, 1.0)
    categories = jnp.broadcast_to(category, activation.shape)
    return jnp.stack([categories.astype(jnp.float32), activation], axis=-1)
