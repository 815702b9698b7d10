"""Segmentation by class activation maps alone, without tags of the image."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.models import cam
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state


@dataclasses.dataclass(frozen=True)
class CamScores:
  """Model whose scores are the CAMs of the classes that it predicts.

  The score of the background is the threshold. A class whose logit is not above
  0 has a map of 0.

  Attributes:
    segmenter: network with a head `tags`.
    threshold: value of a map above which a pixel is no background.
  """

  segmenter: segmenter_lib.Segmenter
  threshold: float

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w K']:
    """Computes scores of background and classes at the cells of the CAMs."""
    outputs = self.segmenter.apply(
      train_state.train_state_variables(state), images, heads=('tags',)
    )['tags']
    maps = cam.normalize_cams(jnp.maximum(outputs.maps, 0.0))
    maps *= (outputs.logits > 0)[:, None, None]
    background = jnp.full_like(maps[..., :1], self.threshold)
    return jnp.concatenate([background, maps], axis=-1)
