"""Segmentation by class activation maps alone, without tags of the image."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.models import cam
from segcore.models import segmenter as segmenter_lib
from segcore.ops import pixel_adaptive_refinement
from segcore.train import train_state
from u2pl.weak import cam_labels


@dataclasses.dataclass(frozen=True)
class CamScores:
  """Model whose scores are the CAMs of the classes that it predicts.

  The score of the background is the threshold. A class whose logit is not above
  0 has a map of 0, or no probability if maps are refined.

  Attributes:
    segmenter: network with a head `tags`.
    threshold: value of a map above which a pixel is no background.
    refinement: pixel-adaptive refinement of the scores, as of AFA's labels;
      None for none.
  """

  segmenter: segmenter_lib.Segmenter
  threshold: float
  refinement: pixel_adaptive_refinement.PixelAdaptiveOptions | None = None

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w K']:
    """Computes scores of background and classes.

    They are those of the cells of the CAMs; of the pixels if they are refined.
    """
    outputs = self.segmenter.apply(
      train_state.train_state_variables(state), images, heads=('tags',)
    )['tags']
    maps = cam.normalize_cams(jnp.maximum(outputs.maps, 0.0))
    predicted = outputs.logits > 0
    if self.refinement:
      tagged = cam_labels.TaggedImages(
        127.5 * (images + 1.0),
        predicted,
        jnp.ones(images.shape[:3], bool),
      )
      return cam_labels.refine_cam_scores(
        maps, tagged, (self.threshold,), self.refinement
      )
    maps *= predicted[:, None, None]
    background = jnp.full_like(maps[..., :1], self.threshold)
    return jnp.concatenate([background, maps], axis=-1)
