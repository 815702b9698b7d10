"""Losses that semi-supervised methods share (spec U2PL §3.1-3.3)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import batch as batch_lib
from segcore import types
from segcore.models.layers import resize
from segcore.ops import losses
from u2pl import pseudo_labels
from u2pl.semi import options as options_lib


def ramp_up(step: Int[Array, ''], num_steps: int) -> types.Scalar:
  """Computes the share exp(-5 (1 - min(t/T, 1))²) of a weight, up to 1.

  Source: Laine & Aila 2017 (temporal ensembling).

  Args:
    step: number t of finished steps.
    num_steps: number T of steps of the ramp; 0 for the full weight at once.
  """
  if not num_steps:
    return jnp.float32(1.0)
  left = 1 - jnp.minimum(step.astype(jnp.float32) / num_steps, 1)
  return jnp.exp(-5 * jnp.square(left))


def known_pixels(batch: batch_lib.Batch) -> Bool[Array, 'B H W']:
  """Returns the pixels of unlabeled images without ignored padding."""
  shape = batch['unlabeled']['image'].shape[:3]
  return batch['unlabeled'].get('valid', jnp.ones(shape, bool))


def mean_squared_error(
  predicted: Float[Array, 'B H W C'],
  target: Float[Array, 'B H W C'],
  counted: Bool[Array, 'B H W'],
) -> types.Scalar:
  """Computes the mean squared error of all channels of counted pixels."""
  error = jnp.mean(losses.squared_error(predicted, target), axis=-1)
  return losses.masked_mean(error, counted)


def split_student_outputs(
  outputs: dict[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
  """Splits a network's outputs on the rows of `batch.join_batch_rows`.

  Args:
    outputs: arrays [2B, …] by head.

  Returns:
    Arrays [B, …] by head of the labeled and of the unlabeled images.
  """
  pairs = {
    name: batch_lib.split_batch_rows(x, 2) for name, x in outputs.items()
  }
  labeled = {name: pair[0] for name, pair in pairs.items()}
  return labeled, {name: pair[1] for name, pair in pairs.items()}


def supervised_loss(
  outputs: dict[str, Array],
  labels: Int[Array, 'B H W'],
  options: options_lib.SupervisedOptions,
  class_weights: tuple[float, ...] | None = None,
) -> types.Scalar:
  """Computes the supervised loss of the main and the auxiliary head.

  loss(logits) = mean of cross_entropy(upsample(logits), labels) over
    pixels with label >= 0           kind 'ce' (Eq. 3)
    the hardest of these pixels      kind 'ohem' (Cityscapes)
  loss(logits) + options.auxiliary · loss(aux)

  Args:
    outputs: `logits` and, with an auxiliary weight, `aux`, each [B, h, w, C].
    labels: ground truth; negative where ignored.
    options: kind and weights.
    class_weights: weight of each class; the mean is then sum(w · loss) / sum(w)
      over the same pixels. None for equal weights.
  """
  weights = losses.label_weights(labels, class_weights)

  def mean(logits: Float[Array, 'B h w C']) -> types.Scalar:
    logits = resize.resize_bilinear(
      logits, labels.shape[1:], options.align_corners
    )
    counted = labels >= 0
    if options.kind == 'ohem':
      # The authors keep 100,000 pixels of each GPU's two images. Per image of
      # the global batch the number does not depend on the devices.
      least = options.kept_per_image * len(labels)
      counted = losses.hard_example_mask(
        logits, labels, options.threshold, least
      )
    return losses.masked_mean(
      losses.cross_entropy(logits, labels), counted, weights
    )

  total = mean(outputs['logits'])
  if options.auxiliary:
    total += options.auxiliary * mean(outputs['aux'])
  return total


def pseudo_label_loss(
  logits: Float[Array, 'B h w C'],
  labels: Int[Array, 'B H W'],
  counted: Bool[Array, 'B H W'],
) -> types.Scalar:
  """Computes the mean cross entropy of pixels with a pseudo-label.

  Args:
    logits: logits of the student.
    labels: pseudo-labels; where negative, the loss is 0.
    counted: pixels that count in the mean.
  """
  logits = pseudo_labels.upsample_teacher_scores(logits, labels.shape[1:])
  return losses.masked_mean(losses.cross_entropy(logits, labels), counted)


def unsupervised_loss(
  logits: Float[Array, 'B h w C'],
  labels: Int[Array, 'B H W'],
  kept: Bool[Array, 'B H W'],
  num_pixels: Int[Array, ''] | int,
  options: options_lib.ConsistencyOptions,
) -> types.Scalar:
  """Computes the loss of the student on the strong view of unlabeled images.

  λ_u · mean of (ξ₁·CE + ξ₂·RCE) over the pixels kept (Eqs. 12-14, 16).

  Args:
    logits: logits of the student.
    labels: pseudo-labels of the strong view; where negative, the loss is 0.
    kept: pixels that count in the mean.
    num_pixels: number of pixels of the images, without ignored padding.
    options: weights; without `filtered` λ_u is 1.
  """
  loss = pseudo_labels.symmetric_cross_entropy(
    pseudo_labels.upsample_teacher_scores(logits, labels.shape[1:]),
    labels,
    options.forward,
    options.reverse,
  )
  weight = 1.0
  if options.filtered:
    weight = pseudo_labels.reliable_pixel_weight(kept, num_pixels)
  return options.weight * weight * losses.masked_mean(loss, kept)
