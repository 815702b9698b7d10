"""Denoising pretraining: DDeP of a decoder, DeP of the whole network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ddep import noise
from input_pipeline import batch as batch_lib
from segcore.distributed import sharding
from segcore.eval import panels
from segcore.ops import losses
from segcore.train import method, tensorboard, train_state, update


@dataclasses.dataclass(frozen=True)
class Denoise(method.SingleLossMethod):
  """Learns to find the noise in unlabeled images (Eq. 6).

  The segmenter has a head `noise` of 3 channels at full resolution. With
  `update.trained = ('decoder', 'heads')` the encoder is a constant that sees
  the noisy image (DDeP); with 'encoder' among them the whole network learns
  (DeP). A conditional decoder is told how noisy each image is; without noise,
  as in fine-tuning, it takes that for granted.

  Attributes:
    noise: kind and strength of the noise.
  """

  noise: noise.NoiseOptions

  def loss(self, params, batch_stats, batch, keys) -> update.LossOutput:
    """Sum over values of the squared error of what was found."""
    images = batch_lib.to_symmetric(batch['image'])
    gamma = noise.sample_gamma(keys.rows, self.noise)
    eps = noise.sample(keys.rows, images.shape)
    noisy = noise.corrupt(images, eps, gamma, self.noise)
    found, batch_stats = self.forward(
      *(params, batch_stats, noisy, 'noise', keys), self._condition(gamma)
    )
    error = losses.squared_error(
      found, noise.target(images, eps, gamma, self.noise)
    )
    mask = jnp.broadcast_to(batch['mask'][:, None, None, None], error.shape)
    total, count = losses.masked_sum_and_count(error, mask)
    return update.LossOutput(total, count, {}, batch_stats)

  def predict(
    self,
    state: train_state.TrainState,
    images: Float[Array, 'B H W 3'],
    gamma: Float[Array, 'B'] | None = None,
  ) -> Float[Array, 'B H W 3']:
    """The noise in images that are noisy already.

    Args:
      state: after training.
      images: in [-1, 1], but for their noise.
      gamma: how noisy each is, for a conditional decoder.
    """
    return self.apply(state, images, 'noise', self._condition(gamma))

  def _condition(
    self, gamma: Float[Array, 'B'] | None
  ) -> Float[Array, 'B'] | None:
    """What the decoder is told of the noise level."""
    return gamma if self.segmenter.conditional else None


@dataclasses.dataclass(frozen=True, eq=False)
class Watch:
  """What denoising makes of the same few noisy images, as training goes on.

  Attributes:
    trained: the method.
    split: which the images are of; the tags begin with it.
    images: uint8 [N, H, W, 3].
    num_pictures: of them that are shown: clean, noisy, denoised.
    mesh: the devices; each of them looks at all images, one at a time.
  """

  trained: Denoise
  split: str
  images: np.ndarray
  num_pictures: int
  mesh: Mesh

  def __call__(self, state: train_state.TrainState) -> tensorboard.Summaries:
    """The loss on the images, and a panel; the same on every host."""
    loss, noisy, restored = jax.device_get(self._look(state, self.images))
    rows = [
      [image, batch_lib.to_uint8(before), batch_lib.to_uint8(after)]
      for image, before, after in zip(
        self.images[: self.num_pictures], noisy, restored, strict=False
      )
    ]
    panel = panels.draw_grid(rows, ('clean', 'noisy', 'denoised'))
    return tensorboard.Summaries(
      {f'{self.split}/loss': float(loss)}, {f'{self.split}/panels': panel}
    )

  @functools.cached_property
  def _look(self):
    options = self.trained.noise

    def look_at_one(state, image, key):
      clean = batch_lib.to_symmetric(image[None])
      gamma = noise.sample_gamma(key[None], options)
      eps = noise.sample(key[None], clean.shape)
      noisy = noise.corrupt(clean, eps, gamma, options)
      found = self.trained.predict(state, noisy, gamma)
      aim = noise.target(clean, eps, gamma, options)
      error = losses.squared_error(found, aim)
      restored = noise.clean(noisy, found, gamma, options)
      return jnp.mean(error), noisy[0], restored[0]

    def look(state, images):
      keys = update.row_keys(jax.random.PRNGKey(0), len(images))
      errors, noisy, restored = jax.lax.map(
        lambda pair: look_at_one(state, *pair), (images, keys)
      )
      return jnp.mean(errors), noisy, restored

    return jax.jit(look, out_shardings=sharding.replicated(self.mesh))
