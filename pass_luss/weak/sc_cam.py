"""SC-CAM: class activation maps of a classifier of sub-categories as well.

Source: Chang et al. 2020 (Weakly-supervised semantic segmentation via
sub-category exploration); spec comparators §4.2. `subcategories` has the
clustering that assigns an image to sub-categories of its classes.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int

from pass_luss.weak import classifier_options, image_classifier
from segcore import types
from segcore.models import features as features_lib
from segcore.ops import losses
from segcore.train import update as update_lib


@dataclasses.dataclass(frozen=True)
class ScCam(image_classifier.ImageClassifier):
  """Classifies classes and their sub-categories, on the same features.

  The tags of an image are 'other', the C classes and their C·K sub-categories,
  those of one class after the other.

  Attributes:
    options: number and weight of sub-categories.
  """

  options: classifier_options.ScCamOptions

  @classmethod
  def heads(
    cls, options: classifier_options.ScCamOptions, num_classes: int
  ) -> Mapping[str, nn.Module]:
    """Builds the heads: scores of classes, and of their sub-categories."""
    return {
      'classes': image_classifier.class_head(num_classes),
      'subcategories': image_classifier.class_head(
        options.num_subcategories * num_classes
      ),
    }

  @classmethod
  def num_tags(
    cls, options: classifier_options.ScCamOptions, num_classes: int
  ) -> int:
    """Returns the number of tags: 'other', classes and sub-categories."""
    return 1 + num_classes * (1 + options.num_subcategories)

  def loss(self, params, batch_stats, batch, keys) -> update_lib.LossOutput:
    """Computes soft-margin(classes) + weight · soft-margin(sub-categories)."""
    images = self.augmented_images(batch, keys)
    # Both classifiers read the same features, of which channels are dropped.
    _, deepest, batch_stats = self.encode(params, batch_stats, images, keys)
    scores, sub_scores = (
      image_classifier.mean_over_cells(
        image_classifier.class_maps_of_head(params, name, deepest)
      )
      for name in ('classes', 'subcategories')
    )
    num_classes = scores.shape[-1]
    tags = batch['tags'][:, 1 : 1 + num_classes]
    sub_tags = batch['tags'][:, 1 + num_classes :]
    terms = {
      'loss_classes': losses.tag_cross_entropy(scores, tags, 'sigmoid'),
      'loss_subcategories': self.options.sub_weight
      * losses.tag_cross_entropy(sub_scores, sub_tags, 'sigmoid'),
    }
    return image_classifier.summed_terms(
      terms, scores, tags, batch, batch_stats
    )

  def class_evidence(
    self,
    params: types.Params,
    images: Float[Array, 'B H W 3'],
    maps: features_lib.Features,
    classes: Int[Array, 'B'],
  ) -> Float[Array, 'B _ _ K']:
    """Computes the map of the class, or those of its sub-categories."""
    if self.options.evidence == 'classes':
      return super().class_evidence(params, images, maps, classes)
    scores = image_classifier.class_maps_of_head(
      params, 'subcategories', maps.deepest.array
    )
    return jax.nn.relu(
      image_classifier.maps_of_classes(
        scores, classes, self.options.num_subcategories
      )
    )
