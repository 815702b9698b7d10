"""Confidence of each class, and what follows from it (AEL).

The confidence of a class is a moving average of the probability that the
student gives it on labeled pixels of that class. Classes of low confidence are
pasted and mixed more often, and more of their pixels are learned.

  confidence = update_class_confidence(confidence, means, momentum)
  kept = equalized_pixels(predictions, uniforms, class_keep_rates(confidence))

Source: Hu et al. 2021, "Semi-Supervised Semantic Segmentation via Adaptive
Equalization Learning" (spec of the baselines, §1).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from segcore import types
from segcore.ops import losses
from segcore.types import PixelLabels, PixelMask
from u2pl import pseudo_labels

_EPSILON = 1e-12


def mean_class_probabilities(
  logits: Float[Array, 'B H W C'], labels: PixelLabels, group: int
) -> Float[Array, 'C']:
  """Computes the mean probability of each class on the pixels with its label.

  A class that no pixel of a group shows has 0 there, as on a GPU of the
  authors: rare classes get a low confidence because they are rare, too. The
  result is the mean over the groups.

  Args:
    logits: logits of labeled images.
    labels: ground truth; negative where ignored.
    group: number of consecutive images of a group; divides B.
  """
  classes = jnp.arange(logits.shape[-1])
  probs = losses.label_probability(logits, labels)[..., None]
  of_class = labels[..., None] == classes
  sums = jnp.sum(jnp.where(of_class, probs, 0.0), axis=(1, 2))
  counts = jnp.sum(of_class, axis=(1, 2), dtype=jnp.int32)
  sums, counts = (
    jnp.sum(x.reshape(-1, group, len(classes)), axis=1) for x in (sums, counts)
  )
  return jnp.mean(sums / jnp.maximum(counts, 1), axis=0)


def update_class_confidence(
  confidence: Float[Array, 'C'], means: Float[Array, 'C'], momentum: float
) -> Float[Array, 'C']:
  """Computes momentum · confidence + (1 - momentum) · means."""
  return momentum * confidence + (1 - momentum) * means


def mixing_probabilities(confidence: Float[Array, 'C']) -> Float[Array, 'C']:
  """Computes the probabilities of classes in adaptive CutMix."""
  return jax.nn.softmax(1 - confidence)


def pasting_probabilities(
  confidence: Float[Array, 'C'], excluded: Sequence[int]
) -> Float[Array, 'C']:
  """Computes the probabilities of classes in adaptive Copy-Paste.

  Args:
    confidence: confidence of each class, 0 to 1.
    excluded: classes that are never drawn.
  """
  scores = jnp.sqrt(jnp.maximum(1 - confidence, 0.0))
  drawn = jnp.ones(len(scores), bool)
  if excluded:
    # Absent ids are dropped, as a network is built before its classes are
    # known.
    drawn = drawn.at[jnp.asarray(excluded)].set(False, mode='drop')
  return jax.nn.softmax(scores, where=drawn)


def classes_from_uniforms(
  probabilities: Float[Array, 'C'], uniforms: Float[Array, '*shape']
) -> Int[Array, '*shape']:
  """Converts uniform numbers in [0, 1) to classes.

  >>> classes_from_uniforms(jnp.array([0.5, 0.0, 0.5]), jnp.array([0.4, 0.6]))
  Array([0, 2], dtype=int32)
  """
  running = jnp.cumsum(probabilities)
  # Divided by the sum, which rounding leaves beside 1.
  classes = jnp.searchsorted(running / running[-1], uniforms, side='right')
  return jnp.minimum(classes, len(running) - 1).astype(jnp.int32)


def class_keep_rates(
  confidence: Float[Array, 'C'], gamma: float
) -> Float[Array, 'C']:
  """Computes the share of each class's pixels that are learned, 1 at most.

  s_c = ((1 - confidence_c) / max over classes of it) ** gamma
  """
  missing = 1 - confidence
  return (missing / (jnp.max(missing) + _EPSILON)) ** gamma


def equalized_pixels(
  predictions: PixelLabels,
  uniforms: Float[Array, 'G H W C'],
  rates: Float[Array, 'C'],
) -> PixelMask:
  """Samples pixels by the class that the student predicts for them.

  Args:
    predictions: classes by the student.
    uniforms: uniform numbers in [0, 1), which the images of a group share: one
      for each place and class.
    rates: share of each class's pixels that are kept.
  """
  kept = uniforms > 1 - rates
  classes = jnp.arange(len(rates))
  grouped = predictions.reshape(len(kept), -1, *predictions.shape[1:])
  of_class = grouped[..., None] == classes
  chosen = jnp.any(of_class & kept[:, None], axis=-1)
  return chosen.reshape(predictions.shape)


def reweighted_consistency_loss(
  logits: Float[Array, 'B H W C'],
  labels: PixelLabels,
  weights: Float[Array, 'B H W'],
  reverse: float = 0.0,
) -> types.Scalar:
  """Computes sum(w · loss) / sum(w) over all pixels.

  Pixels with a negative label have the loss 0, and their weights count.

  Args:
    logits: logits of the student.
    labels: pseudo-labels.
    weights: weight w of each pixel.
    reverse: weight of the reverse cross entropy beside the cross entropy.
  """
  loss = pseudo_labels.symmetric_cross_entropy(
    logits, labels, forward=1.0, reverse=reverse
  )
  return jnp.sum(weights * loss) / (jnp.sum(weights) + _EPSILON)
