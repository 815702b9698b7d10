"""Denoising pretraining: DDeP of a decoder, DeP of the whole network."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddep import noise
from input_pipeline import batch as batch_lib
from segcore import losses, method, types
from segcore.models import segmenter as segmenter_lib


@dataclasses.dataclass(frozen=True)
class Denoise:
  """Learns to find the noise in unlabelled images (Eq. 6).

  With `update.trained = ('decoder', 'heads')` the encoder is a constant (DDeP);
  with 'encoder' among them the whole network learns (DeP).

  Attributes:
    segmenter: has a head `noise` of 3 channels at full resolution.
    noise: kind and strength of the noise.
    update: what is trained, and how.
  """

  segmenter: segmenter_lib.Segmenter
  noise: noise.Options
  update: method.Update

  def init(self, rng, batch_spec, loaded) -> method.TrainState:
    """See `Method.init`."""
    shape = batch_spec['image'].shape
    return self.update.init(self.segmenter, rng, shape, loaded)

  def train_step(
    self, state: method.TrainState, batch: batch_lib.Batch
  ) -> tuple[method.TrainState, types.Metrics]:
    """One step; 'loss' is the mean over pixels and channels."""
    return self.update(self.loss, state, batch)

  def loss(self, params, batch_stats, batch, keys) -> method.Outcome:
    """Squared error of the noise that was found (Eq. 6)."""
    images = batch_lib.to_symmetric(batch['image'])
    eps = noise.sample(keys.rows, images.shape)
    noisy = noise.corrupt(images, eps, self.noise)
    found, batch_stats = method.forward(
      self.segmenter,
      params,
      batch_stats,
      noisy,
      heads=('noise',),
      train=self.update.trained,
      rng=keys.network,
    )
    error = losses.squared_error(
      found['noise'], noise.target(images, eps, self.noise)
    )
    mask = jnp.broadcast_to(batch['mask'][:, None, None, None], error.shape)
    total, count = losses.masked_sum_and_count(error, mask)
    return method.Outcome(total, count, {}, batch_stats)

  def predict(
    self, state: method.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B H W 3']:
    """The noise in images that are noisy already."""
    return self.segmenter.apply(
      method.variables(state), images, heads=('noise',)
    )['noise']
