"""Denoising pretraining: DDeP of a decoder, DeP of the whole network."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddep import noise
from input_pipeline import batch as batch_lib
from segcore import losses, method


@dataclasses.dataclass(frozen=True)
class Denoise(method.OneLoss):
  """Learns to find the noise in unlabelled images (Eq. 6).

  The segmenter has a head `noise` of 3 channels at full resolution. With
  `update.trained = ('decoder', 'heads')` the encoder is a constant that sees
  the noisy image (DDeP); with 'encoder' among them the whole network learns
  (DeP).

  Attributes:
    noise: kind and strength of the noise.
  """

  noise: noise.Options

  def loss(self, params, batch_stats, batch, keys) -> method.Outcome:
    """Sum over values of the squared error of what was found."""
    images = batch_lib.to_symmetric(batch['image'])
    eps = noise.sample(keys.rows, images.shape)
    noisy = noise.corrupt(images, eps, self.noise)
    found, batch_stats = self.forward(params, batch_stats, noisy, 'noise', keys)
    error = losses.squared_error(found, noise.target(images, eps, self.noise))
    mask = jnp.broadcast_to(batch['mask'][:, None, None, None], error.shape)
    total, count = losses.masked_sum_and_count(error, mask)
    return method.Outcome(total, count, {}, batch_stats)

  def predict(
    self, state: method.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B H W 3']:
    """The noise in images that are noisy already."""
    return self.apply(state, images, 'noise')
