"""Confidence of classes, sampling and the consistency, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.transcriptions import ael as reference
from tests.transcriptions import u2pl as u2pl_reference
from tests.u2pl import inputs
from u2pl import class_confidence

C = 5
CONFIDENCE = np.array([0.9, 0.2, 0.5, 0.05, 0.7])
UNIFORMS = np.array([0.0, 0.13, 0.37, 0.52, 0.78, 0.999], np.float32)


@jax.jit
def compute_confidences(
  confidence, logits, labels, predictions, uniforms, draws
):
  paste = class_confidence.pasting_probabilities(confidence, (0, 2, 10))
  mix = class_confidence.mixing_probabilities(confidence)
  rates = class_confidence.class_keep_rates(confidence, 1.0)
  means = class_confidence.mean_class_probabilities(logits, labels, 2)
  return {
    'paste': paste,
    'mix': mix,
    'classes': class_confidence.classes_from_uniforms(paste, draws),
    'rates': rates,
    'cubed': class_confidence.class_keep_rates(confidence, 3.0),
    'means': means,
    'after': class_confidence.update_class_confidence(confidence, means, 0.999),
    'kept': class_confidence.equalized_pixels(predictions, uniforms, rates),
  }


def test_confidence_rates_and_sampling_equal_the_reference():
  rng = np.random.default_rng(0)
  logits = rng.normal(scale=2.0, size=(4, 5, 6, C)).astype(np.float32)
  labels = rng.integers(-1, C, (4, 5, 6))
  labels[2:][labels[2:] == 3] = 1  # The second group lacks a class.
  predictions = rng.integers(0, C, (4, 5, 6))
  uniforms = rng.random((2, 5, 6, C)).astype(np.float32)
  actual = jax.device_get(
    compute_confidences(
      CONFIDENCE.astype(np.float32),
      logits,
      labels,
      predictions,
      uniforms,
      UNIFORMS,
    )
  )
  paste = reference.pasting_probabilities(CONFIDENCE, {0, 2, 10})
  means = reference.mean_probabilities(
    u2pl_reference.softmax(logits), labels, 2
  )
  rates = reference.keep_rates(CONFIDENCE)
  assert actual['classes'].tolist() == [
    reference.class_of(paste, u) for u in UNIFORMS
  ]
  expected = {
    'paste': paste,
    'mix': reference.mixing_probabilities(CONFIDENCE),
    'rates': rates,
    'cubed': reference.keep_rates(CONFIDENCE, 3.0),
    'means': means,
    'after': reference.confidence_after(CONFIDENCE, means),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)
  kept = reference.kept(predictions, uniforms, rates)
  np.testing.assert_array_equal(actual['kept'], kept)
  # The images of a group share the draws, and none of the class of lowest
  # confidence is left out.
  assert kept[predictions == 3].all() and 0.2 < kept.mean() < 0.9
  same = predictions[0] == predictions[1]
  np.testing.assert_array_equal(kept[0][same], kept[1][same])


def test_the_consistency_loss_equals_the_reference():
  rng = np.random.default_rng(3)
  labels = rng.integers(-1, C, (2, 3, 4))
  weights = rng.random(labels.shape) * (rng.random(labels.shape) < 0.7)
  logits = rng.normal(size=(*labels.shape, C))
  with jax.enable_x64():
    for reverse in (0.0, 0.1):
      inputs.assert_gradient(
        lambda x, reverse=reverse: class_confidence.reweighted_consistency_loss(
          x, jnp.asarray(labels), jnp.asarray(weights), reverse
        ),
        lambda x, reverse=reverse: reference.consistency(
          x, labels, weights, reverse
        ),
        logits,
      )
  # No pixel is kept.
  none = jax.jit(class_confidence.reweighted_consistency_loss)(
    logits.astype(np.float32), labels, np.zeros(labels.shape, np.float32)
  )
  assert none == 0
