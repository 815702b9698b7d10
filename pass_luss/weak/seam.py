"""SEAM: class activation maps that are equivariant to the scale of an image.

Source: Wang et al. 2020 (Self-supervised equivariant attention mechanism for
weakly supervised semantic segmentation); spec comparators §4.1.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pass_luss.weak import (
  classifier_options,
  image_classifier,
  pixel_correlation,
)
from segcore import types
from segcore.models import features as features_lib
from segcore.models.layers import resize
from segcore.ops import losses
from segcore.train import update as update_lib
from segcore.types import Cells, Images

_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Seam(image_classifier.ImageClassifier):
  """Trains maps of an image, and refined ones, to agree with a smaller image.

  Attributes:
    options: scale, and maps of the pixel correlation module.
  """

  options: classifier_options.SeamOptions

  @classmethod
  def heads(
    cls, options: classifier_options.SeamOptions, num_classes: int
  ) -> Mapping[str, nn.Module]:
    """Builds the heads: scores with those of 'other', and the module."""
    return {
      'classes': image_classifier.class_head(1 + num_classes),
      **pixel_correlation.correlation_heads(*options.module_maps),
    }

  def loss(self, params, batch_stats, batch, keys) -> update_lib.LossOutput:
    """Computes classification, equivariance and cross losses of images.

    m(x) = max(x⁺ - min - ε, 0) / (max - min + ε) of each map; y is 1 for the
    background and the classes of the image, else 0.

      classes = ½ Σ over scales [soft-margin(mean x) + min-pool(x̂ y)]
      er = mean |a - a'|     a = shrink(m(x)) y, a' = m(x') y
      ecr = top(|strongest(a') - b|) + top(|strongest(a) - b'|)   b as a, of x̂

    where x are maps, x̂ refined ones, and ' marks those of the smaller image.
    """
    images = self.augmented_images(batch, keys)
    size = tuple(int(self.options.scale * n) for n in images.shape[1:3])
    small = resize.resize_bilinear(images, size, align_corners=True)
    # Maps and refined maps of both images, at the size of their image.
    rows = [jax.vmap(jax.random.split)(keys.rows)[:, i] for i in range(2)]
    large_maps, batch_stats = self._maps(
      params, batch_stats, images, keys._replace(rows=rows[0])
    )
    small_maps, batch_stats = self._maps(
      params, batch_stats, small, keys._replace(rows=rows[1])
    )
    tags = batch['tags'][:, 1:]
    terms = seam_terms(large_maps, small_maps, tags, self.options.hardest)
    scores = image_classifier.mean_over_cells(large_maps[0])[:, 1:]
    return image_classifier.summed_terms(
      terms, scores, tags, batch, batch_stats
    )

  def class_scores(
    self, params: types.Params, deepest: Cells
  ) -> Float[Array, 'B h w C']:
    """Computes the scores of the classes at each cell, without 'other'."""
    return image_classifier.class_maps_of_head(params, 'classes', deepest)[
      ..., 1:
    ]

  def class_evidence(
    self,
    params: types.Params,
    images: Images,
    maps: features_lib.Features,
    classes: Int[Array, 'B'],
  ) -> Float[Array, 'B H W 1']:
    """Computes the refined map of the class, at the size of the images."""
    _, refined = self._refine(params, images, maps, maps.deepest.array)
    return resize.resize_bilinear(
      image_classifier.maps_of_classes(refined, 1 + classes),
      images.shape[1:3],
      align_corners=True,
    )

  def normalize_evidence(
    self, evidence: Float[Array, 'B H W 1']
  ) -> Float[Array, 'B H W']:
    """Scales a sum over scales to 0…1; the least values are below 0."""
    evidence = jax.nn.relu(evidence)
    low, high = _range_of_maps(evidence)
    evidence = jnp.where(evidence < low + _EPSILON, 0.0, evidence)
    return ((evidence - low - _EPSILON) / (high - low + _EPSILON))[..., 0]

  def _maps(
    self, params, batch_stats, images, keys
  ) -> tuple[tuple[Array, Array], types.Params]:
    """Computes maps and refined maps at the size of the images."""
    maps, deepest, batch_stats = self.encode(params, batch_stats, images, keys)
    size = images.shape[1:3]
    resized = tuple(
      resize.resize_bilinear(each, size, align_corners=True)
      for each in self._refine(params, images, maps, deepest)
    )
    return resized, batch_stats

  def _refine(
    self,
    params: types.Params,
    images: Images,
    maps: features_lib.Features,
    deepest: Cells,
  ) -> tuple[Float[Array, 'B h w K'], Float[Array, 'B h w K']]:
    """Computes the maps of a deepest map, and refined ones."""
    cams = image_classifier.class_maps_of_head(params, 'classes', deepest)
    refined = pixel_correlation.refine_cams(
      params, images, maps, cams, self.options.module_maps
    )
    return cams, refined


def seam_terms(
  large: tuple[Float[Array, 'B H W K'], Float[Array, 'B H W K']],
  small: tuple[Float[Array, 'B h w K'], Float[Array, 'B h w K']],
  tags: Bool[Array, 'B C'],
  hardest: float,
) -> dict[str, Float[Array, 'B']]:
  """Computes the terms of the loss of each image, which `Seam.loss` defines.

  Args:
    large: maps of images and refined maps, of the background and C classes.
    small: the same of smaller images.
    tags: classes of each image.
    hardest: share of the values that `ecr` counts.
  """
  present = jnp.pad(tags, ((0, 0), (1, 0)), constant_values=True)
  present = present[:, None, None].astype(large[0].dtype)
  classes = sum(
    losses.tag_cross_entropy(
      image_classifier.mean_over_cells(cams)[:, 1:], tags, 'sigmoid'
    )
    + least_quarter_mean((refined * present)[..., 1:])
    for cams, refined in (large, small)
  )
  # a, b, and a', b' at the size of the small images.
  size = small[0].shape[1:3]
  maps, refined = (
    present
    * resize.resize_bilinear(normalize_range(x), size, align_corners=True)
    for x in large
  )
  small_maps, small_refined = (present * normalize_range(x) for x in small)
  equivariance = jnp.mean(
    losses.absolute_error(maps, small_maps)[..., 1:], axis=(1, 2, 3)
  )
  maps, small_maps = with_background(maps), with_background(small_maps)
  cross = sum(
    hardest_mean(
      losses.absolute_error(prediction, keep_strongest(target)), hardest
    )
    for target, prediction in ((small_maps, refined), (maps, small_refined))
  )
  return {
    'loss_classes': 0.5 * classes,
    'loss_er': equivariance,
    'loss_ecr': cross,
  }


def normalize_range(x: Float[Array, 'B H W C']) -> Float[Array, 'B H W C']:
  """Scales the positive part of each map of each image to 0…1."""
  positive = jax.nn.relu(x)
  low, high = _range_of_maps(positive)
  return jax.nn.relu(positive - low - _EPSILON) / (high - low + _EPSILON)


def with_background(maps: Float[Array, 'B H W C']) -> Float[Array, 'B H W C']:
  """Replaces channel 0 by 1 - the largest of the others."""
  strongest = jnp.max(maps[..., 1:], axis=-1, keepdims=True)
  return jnp.concatenate([1.0 - strongest, maps[..., 1:]], axis=-1)


def keep_strongest(maps: Float[Array, 'B H W C']) -> Float[Array, 'B H W C']:
  """Keeps channel 0 and, of the others, the largest at each pixel.

  Of equal ones all are kept; the result has no gradient.
  """
  maps = jax.lax.stop_gradient(maps)
  strongest = jnp.max(maps[..., 1:], axis=-1, keepdims=True)
  kept = jnp.where(maps[..., 1:] == strongest, maps[..., 1:], 0.0)
  return jnp.concatenate([maps[..., :1], kept], axis=-1)


def least_quarter_mean(maps: Float[Array, 'B H W C']) -> Float[Array, 'B']:
  """Computes the mean over the quarter of the pixels with the least maxima.

  Negative ones count as 0.
  """
  strongest = jnp.max(maps, axis=-1).reshape(len(maps), -1)
  count = strongest.shape[1] // 4
  least = jnp.sort(strongest, axis=-1)[:, :count]
  return jnp.sum(jax.nn.relu(least), axis=-1) / max(count, 1)


def hardest_mean(
  differences: Float[Array, 'B H W C'], share: float
) -> Float[Array, 'B']:
  """Computes the mean of the largest values of each image.

  Args:
    differences: values of pixels and channels.
    share: share of the values, whose number is rounded down.
  """
  flat = differences.reshape(len(differences), -1)
  count = max(int(flat.shape[1] * share), 1)
  # A sort and not top_k, which would gather the images of all devices.
  return jnp.mean(-jnp.sort(-flat, axis=-1)[:, :count], axis=-1)


def _range_of_maps(
  x: Float[Array, 'B H W C'],
) -> tuple[Float[Array, 'B 1 1 C'], Float[Array, 'B 1 1 C']]:
  """Returns least and largest value of each map."""
  return (
    jnp.min(x, axis=(1, 2), keepdims=True),
    jnp.max(x, axis=(1, 2), keepdims=True),
  )
