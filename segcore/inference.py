"""How a network is applied to images: functions on scores.

A predictor maps (state, images uint8 [B, H, W, 3]) to what a metric reads.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Int16, UInt8

from input_pipeline import batch as batch_lib
from segcore import method as method_lib
from segcore.models import resize

Predictor = Callable[[method_lib.TrainState, Array], Array]


def label_maps(method: method_lib.Method) -> Predictor:
  """The best class of each pixel, whole images at once.

  Scores are enlarged to the size of the images (half-pixel bilinear) before the
  best class is taken.
  """

  def predict(
    state: method_lib.TrainState, images: UInt8[Array, 'B H W 3']
  ) -> Int16[Array, 'B H W']:
    scores = method.predict(state, batch_lib.to_symmetric(images))
    scores = resize.bilinear(scores, images.shape[1:3])
    return jnp.argmax(scores, axis=-1).astype(jnp.int16)

  return predict


def image_scores(method: method_lib.Method) -> Predictor:
  """Class scores of whole images, for methods that classify."""

  def predict(state, images):
    return method.predict(state, batch_lib.to_symmetric(images))

  return predict
