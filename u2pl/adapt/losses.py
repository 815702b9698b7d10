"""Losses of domain adaptation, and scalars about pseudo-labels."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.models.layers import resize
from segcore.ops import losses
from segcore.types import Metrics, Scalar
from u2pl import pseudo_labels
from u2pl.adapt import feature_distance, self_training


def mean_loss(
  logits: Float[Array, 'B h w C'],
  labels: Int[Array, 'B H W'],
  weights: Float[Array, 'B H W'] | None = None,
  options: self_training.SelfTrainingOptions | None = None,
) -> Scalar:
  """Computes the weighted loss, divided by the number of all pixels.

  Σ w · (ξ₁·CE + ξ₂·RCE) / (B·H·W): pixels that are ignored or have no weight
  count in the denominator, as in DAFormer.

  Args:
    logits: logits of the student, which are upsampled bilinearly.
    labels: ground truth and pseudo-labels; negative where ignored.
    weights: weight of each pixel; None for 1.
    options: weights ξ₁ and ξ₂; None for the cross entropy alone.
  """
  loss = pseudo_labels.symmetric_cross_entropy(
    resize.resize_bilinear(logits, labels.shape[1:]),
    labels,
    options.forward if options else 1.0,
    options.reverse if options else 0.0,
  )
  return jnp.mean(loss if weights is None else weights * loss)


def feature_distance_loss(
  features: Float[Array, 'B h w D'],
  frozen: Float[Array, 'B h w D'],
  labels: Int[Array, 'B H W'],
  num_classes: int,
  options: feature_distance.FeatureDistanceOptions,
) -> Scalar:
  """Computes the weighted mean feature distance on the cells of some classes.

  The mean is over the cells of the whole batch, and 0 if it has none.

  Args:
    features: deepest map of the student's encoder for source images.
    frozen: that of the frozen encoder.
    labels: ground truth of the source images.
    num_classes: number of classes.
    options: weight, classes and the share of a cell that they need.
  """
  cells = feature_distance.downscale_labels(
    labels, features.shape[1:3], num_classes, options.min_share
  )
  return options.weight * losses.masked_mean(
    feature_distance.feature_distances(features, frozen),
    feature_distance.is_of_classes(cells, options.classes),
  )


def pseudo_label_accuracy(
  pseudo: Int[Array, 'B H W'], truth: Int[Array, 'B H W'] | None
) -> Metrics:
  """Computes the accuracy of pseudo-labels by name; nothing without labels."""
  if truth is None:
    return {}
  correct = (pseudo == truth).astype(jnp.float32)
  return {'pseudo_label_accuracy': losses.masked_mean(correct, truth >= 0)}


def reliability_scalars(
  entropy: Float[Array, 'B H W'],
  reliability: pseudo_labels.Reliability,
  trusted: Bool[Array, 'B H W'],
) -> Metrics:
  """Computes share of reliable pixels and mean entropy of target pixels."""
  reliable = reliability.reliable.astype(jnp.float32)
  return {
    'reliable_share': losses.masked_mean(reliable, trusted),
    'entropy': losses.masked_mean(entropy, trusted),
  }
