"""Class activation maps of images at several scales (spec comparators §4).

The result is what `labeler.Labeler` reads: the category of an image, and the
activation of that category at each pixel.
"""

import dataclasses

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pass_luss.weak import advcam, classifier_options, image_classifier
from segcore.models import cam
from segcore.models.layers import resize
from segcore.train import train_state
from segcore.types import Images


@flax.struct.dataclass
class CategoryState:
  """A training state, and the category whose maps are computed.

  Attributes:
    trained: training state of the classifier.
    category: int32 [], category 1…C of all images.
  """

  trained: train_state.TrainState
  category: Int[Array, '']


@dataclasses.dataclass(frozen=True)
class MultiScaleCams:
  """Computes the category of images and its class activation map.

  Attributes:
    method: trained classifier.
    scales: factors of the sides of the images, in order.
    climbing: options of AdvCAM; None leaves images as they are.
  """

  method: image_classifier.ImageClassifier
  scales: tuple[float, ...]
  climbing: classifier_options.AdvCamOptions | None = None

  def predicted(
    self, state: train_state.TrainState, images: Images
  ) -> Float[Array, 'B H W 2']:
    """Computes the category of the highest score, and its activation.

    Returns:
      The category 1…C, the same at all pixels, and the activation, stacked.
    """
    classes = jnp.argmax(self.method.predict(state, images), axis=-1)
    return self._stack(state, images, classes)

  def given(
    self, state: CategoryState, images: Images
  ) -> Float[Array, 'B H W 2']:
    """Computes the activation of a given category, stacked as `predicted`."""
    classes = jnp.broadcast_to(state.category - 1, images.shape[:1])
    return self._stack(state.trained, images, classes)

  def _stack(
    self,
    state: train_state.TrainState,
    images: Images,
    classes: Int[Array, 'B'],
  ) -> Float[Array, 'B H W 2']:
    """Stacks the category 1…C and its activation, about 0 to 1.

    Args:
      state: training state of the classifier.
      images: images in [-1, 1].
      classes: class of each image, from 0, without 'other'.
    """
    size = images.shape[1:3]
    pairs = [cam.resize_and_flip(images, scale) for scale in self.scales]
    if self.climbing is None:
      evidence = [self._evidence(state, each, classes) for each in pairs]
      activation = self.method.normalize_evidence(
        sum(
          cam.sum_flipped_cams(resize.resize_bilinear(each, size))
          for each in evidence
        )
      )
    else:
      plan = advcam.plan_steps(self.climbing.num_steps, self.scales)
      regions = 0.0
      for each, (num_steps, factor) in zip(pairs, plan, strict=True):
        added = advcam.climb(
          self.method, self.climbing, state, each, classes, num_steps
        )
        regions = regions + factor * resize.resize_bilinear(added, size)
      activation = image_classifier.normalize_by_maximum(regions)
    categories = jnp.broadcast_to(1 + classes[:, None, None], activation.shape)
    return jnp.stack([categories.astype(activation.dtype), activation], axis=-1)

  def _evidence(
    self,
    state: train_state.TrainState,
    pairs: Float[Array, 'B_doubled h w 3'],
    classes: Int[Array, 'B'],
  ) -> Float[Array, 'B_doubled _ _ K']:
    """Computes the maps of the class for images and mirror images."""
    variables = train_state.train_state_variables(state)
    maps = self.method.feature_maps(variables, pairs)
    return self.method.class_evidence(
      state.params, pairs, maps, jnp.repeat(classes, 2)
    )
