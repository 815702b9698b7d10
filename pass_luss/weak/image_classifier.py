"""Classifiers of whole images, whose class activation maps segment.

Spec comparators §4. `seam` and `sc_cam` extend this class; `advcam` reads it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import batch as batch_lib
from pass_luss.weak import classifier_options
from segcore import types
from segcore.models import cam, segmenter
from segcore.models import features as features_lib
from segcore.models import heads as heads_lib
from segcore.models.layers import standardize
from segcore.ops import color_augment, losses
from segcore.train import method as method_lib
from segcore.train import train_state
from segcore.train import update as update_lib

# Added to the maximum that a map is divided by.
_EPSILON = 1e-5


def class_head(num_classes: int) -> nn.Module:
  """Builds a linear classifier without bias of the mean over cells.

  Args:
    num_classes: number of its scores.
  """
  return heads_lib.TagHead(
    num_classes, 'mean', kernel_init=nn.initializers.xavier_uniform()
  )


@dataclasses.dataclass(frozen=True)
class ImageClassifier(method_lib.SingleLossMethod):
  """Classifies images by a matrix on the cells of the deepest map.

  The score of a class is the mean of its scores over the cells, so these are
  its class activation map.

  Attributes:
    options: dropout and batch norms.
    colors: color augmentation.
  """

  options: classifier_options.ClassifierOptions
  colors: color_augment.ColorOptions = color_augment.ColorOptions()

  @classmethod
  def heads(
    cls, options: classifier_options.ClassifierOptions, num_classes: int
  ) -> Mapping[str, nn.Module]:
    """Builds the heads: scores of the classes without 'other'.

    Args:
      options: options of the method.
      num_classes: number C of classes without 'other'.
    """
    del options
    return {'classes': class_head(num_classes)}

  @classmethod
  def num_tags(
    cls, options: classifier_options.ClassifierOptions, num_classes: int
  ) -> int:
    """Returns the number of tags of an image, among them that of 'other'."""
    del options
    return 1 + num_classes

  def loss(self, params, batch_stats, batch, keys) -> update_lib.LossOutput:
    """Computes the multi-label soft-margin loss, summed over images."""
    images = self.augmented_images(batch, keys)
    _, deepest, batch_stats = self.encode(params, batch_stats, images, keys)
    scores = mean_over_cells(class_maps_of_head(params, 'classes', deepest))
    tags = batch['tags'][:, 1:]
    loss = losses.tag_cross_entropy(scores, tags, 'sigmoid')
    return summed_terms(
      {'loss_classes': loss}, scores, tags, batch, batch_stats
    )

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B C']:
    """Computes the scores of the classes without 'other'."""
    variables = train_state.train_state_variables(state)
    maps = self.feature_maps(variables, images)
    return mean_over_cells(
      self.class_scores(variables['params'], maps.deepest.array)
    )

  def class_scores(
    self, params: types.Params, deepest: Float[Array, 'B h w D']
  ) -> Float[Array, 'B h w C']:
    """Computes the scores of the classes without 'other' at each cell.

    Args:
      params: all parameters.
      deepest: deepest map of the encoder.
    """
    return class_maps_of_head(params, 'classes', deepest)

  def class_evidence(
    self,
    params: types.Params,
    images: Float[Array, 'B H W 3'],
    maps: features_lib.Features,
    classes: Int[Array, 'B'],
  ) -> Float[Array, 'B _ _ K']:
    """Computes the maps of one class that are summed over scales.

    These are its scores, 0 at least; K is 1 but of sub-categories.

    Args:
      params: all parameters.
      images: images in [-1, 1].
      maps: maps of the encoder for these images.
      classes: class of each image, from 0, without 'other'.
    """
    del images
    scores = self.class_scores(params, maps.deepest.array)
    return jax.nn.relu(maps_of_classes(scores, classes))

  def normalize_evidence(
    self, evidence: Float[Array, 'B H W K']
  ) -> Float[Array, 'B H W']:
    """Divides sums over scales by their maximum, then takes the largest map."""
    return normalize_by_maximum(evidence)

  def augmented_images(
    self, batch: batch_lib.Batch, keys: update_lib.ForwardKeys
  ) -> Float[Array, 'B H W 3']:
    """Augments colors; padding has the mean color, standardized 0."""
    images = batch_lib.batch_images_to_symmetric(batch['image'])
    images = color_augment.augment_colors(
      images, keys.rows, self.colors, batch['valid']
    )
    mean_color = standardize.destandardize_by_imagenet(jnp.zeros((1, 1, 1, 3)))
    return jnp.where(batch['valid'][..., None], images, mean_color)

  def encode(
    self,
    params: types.Params,
    batch_stats: types.Params,
    images: Float[Array, 'B H W 3'],
    keys: update_lib.ForwardKeys,
  ) -> tuple[features_lib.Features, Float[Array, 'B h w D'], types.Params]:
    """Computes the encoder's maps in training.

    Returns:
      All maps, the deepest one with random channels of each image dropped, and
      the batch statistics.
    """
    train = not self.options.fixed_norms

    def network(net: segmenter.Segmenter) -> features_lib.Features:
      return net.features(images, decode=False, train=train)['encoder']

    maps, changed = self.segmenter.apply(
      {'params': params, 'batch_stats': batch_stats},
      method=network,
      rngs={'dropout': keys.network},
      mutable=['batch_stats'],
    )
    deepest = self._drop_channels(maps.deepest.array, keys.rows)
    return maps, deepest, {**batch_stats, **changed.get('batch_stats', {})}

  def feature_maps(
    self, variables: Mapping[str, Any], images: Float[Array, 'B H W 3']
  ) -> features_lib.Features:
    """Computes the encoder's maps in evaluation mode."""
    maps = self.segmenter.apply(
      variables, images, decode=False, method='features'
    )
    return maps['encoder']

  def _drop_channels(
    self, maps: Float[Array, 'B h w D'], rows: types.ExampleKeys
  ) -> Float[Array, 'B h w D']:
    """Sets random channels to 0 and divides the others by their share."""
    rate = self.options.dropout_rate
    kept = sample_kept_channels(rows, maps.shape[-1], rate)
    maps = losses.at_least_float32(maps)
    return jnp.where(kept[:, None, None], maps / (1.0 - rate), 0.0)


def sample_kept_channels(
  rows: types.ExampleKeys, num_channels: int, rate: float
) -> Bool[Array, 'B D']:
  """Draws the channels of each image that dropout keeps.

  Args:
    rows: PRNG key of each image.
    num_channels: number D of channels.
    rate: probability that a channel is dropped.
  """
  return jax.vmap(
    lambda key: jax.random.bernoulli(key, 1.0 - rate, (num_channels,))
  )(rows)


def class_maps_of_head(
  params: types.Params, name: str, maps: Float[Array, 'B h w D']
) -> Float[Array, 'B h w C']:
  """Applies the matrix of a head to each cell.

  Args:
    params: all parameters.
    name: name of the head.
    maps: map that the head reads.
  """
  return cam.class_activation_maps(maps, params['heads'][name]['kernel'])


def mean_over_cells(maps: Float[Array, 'B h w C']) -> Float[Array, 'B C']:
  """Computes the mean of each map over its cells."""
  return jnp.mean(maps, axis=(1, 2))


def maps_of_classes(
  maps: Float[Array, 'B h w D'], classes: Int[Array, 'B'], num_maps: int = 1
) -> Float[Array, 'B h w K']:
  """Selects the maps of the class of each image.

  Args:
    maps: maps of all classes, those of one class after the other.
    classes: class of each image, from 0.
    num_maps: number K of maps of a class.
  """
  by_class = maps.reshape(*maps.shape[:3], -1, num_maps)
  index = classes[:, None, None, None, None]
  return jnp.take_along_axis(by_class, index, axis=3)[..., 0, :]


def normalize_by_maximum(
  evidence: Float[Array, 'B H W K'],
) -> Float[Array, 'B H W']:
  """Divides the K maps of each image by one maximum, and takes the largest.

  To the maximum 1e-5 is added.
  """
  highest = jnp.max(evidence, axis=(1, 2, 3), keepdims=True)
  return jnp.max(evidence / (highest + _EPSILON), axis=-1)


def summed_terms(
  terms: Mapping[str, Float[Array, 'B']],
  scores: Float[Array, 'B C'],
  tags: Bool[Array, 'B C'],
  batch: batch_lib.Batch,
  batch_stats: types.Params,
) -> update_lib.LossOutput:
  """Sums the terms of a loss over images.

  Args:
    terms: terms of the loss of each image, by name; means of them are logged.
    scores: scores of the classes.
    tags: classes of each image; logged is the share of images whose highest
      score is that of one of them.
    batch: batch, of which padding rows do not count.
    batch_stats: batch statistics after the forward pass.
  """
  mask = batch['mask']
  total, count = losses.masked_sum_and_count(sum(terms.values()), mask)
  best = jnp.argmax(scores, axis=-1)[:, None]
  hits = jnp.take_along_axis(tags, best, axis=-1)[:, 0].astype(jnp.float32)
  scalars = {name: losses.masked_mean(x, mask) for name, x in terms.items()}
  scalars['accuracy'] = losses.masked_mean(hits, mask)
  return update_lib.LossOutput(total, count, scalars, batch_stats)
