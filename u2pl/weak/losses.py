"""Losses of weak supervision, and scalars about labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.models.layers import resize
from segcore.ops import dense_energy, losses
from segcore.types import Metrics, Scalar
from u2pl.weak import cam_labels


def balanced_cross_entropy(
  logits: Float[Array, 'B h w K'], labels: Int[Array, 'B H W']
) -> Scalar:
  """Computes half the mean over the background plus half that over classes.

  A mean without pixels is 0.

  Args:
    logits: logits of background and classes, which are upsampled bilinearly.
    labels: class of each pixel; 0 is the background, negative is ignored.
  """
  loss = losses.cross_entropy(
    resize.resize_bilinear(logits, labels.shape[1:]), labels
  )
  return 0.5 * (
    losses.masked_mean(loss, labels == 0) + losses.masked_mean(loss, labels > 0)
  )


def mean_cross_entropy(
  logits: Float[Array, 'B h w K'], labels: Int[Array, 'B H W']
) -> Scalar:
  """Computes the mean over all labeled pixels; logits are upsampled."""
  loss = losses.cross_entropy(
    resize.resize_bilinear(logits, labels.shape[1:]), labels
  )
  return losses.masked_mean(loss, labels >= 0)


def half_size_energy(
  logits: Float[Array, 'B h w K'],
  labels: Int[Array, 'B H W'],
  images: cam_labels.TaggedImages,
  options: dense_energy.DenseEnergyOptions,
) -> Scalar:
  """Computes the dense energy at half the size of the images, unweighted.

  Args:
    logits: logits of background and classes.
    labels: targets of the segmentation loss.
    images: the images.
    options: kernel of the energy.
  """
  size = labels.shape[1:]
  half = tuple(max(side // 2, 1) for side in size)
  probs = jax.nn.softmax(resize.resize_bilinear(logits, size))
  pixels, inside, cells = (
    resize.resize_nearest_floor(each, half)
    for each in (images.pixels, images.inside, labels)
  )
  return dense_energy.dense_energy(
    resize.resize_bilinear(probs, half), pixels, inside, cells, options
  )


def label_scalars(
  plain: Int[Array, 'B H W'],
  labels: Int[Array, 'B H W'],
  inside: Bool[Array, 'B H W'],
  truth: Int[Array, 'B H W'] | None,
) -> Metrics:
  """Computes the share of labeled pixels; with masks, accuracies as well.

  Args:
    plain: labels of thresholded CAMs.
    labels: targets of the segmentation loss.
    inside: pixels that are no padding.
    truth: masks, which are not trained on; None without.
  """
  known = (labels >= 0).astype(jnp.float32)
  scalars = {'labeled_share': losses.masked_mean(known, inside)}
  if truth is not None:
    for name, each in (('cam', plain), ('pseudo_label', labels)):
      correct = (each == truth).astype(jnp.float32)
      scalars[f'{name}_accuracy'] = losses.masked_mean(
        correct, (truth >= 0) & (each >= 0)
      )
  return scalars
