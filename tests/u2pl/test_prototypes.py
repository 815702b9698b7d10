"""Prototypes and denoising weights against the transcription."""

import jax
import numpy as np
import pytest

from tests.transcriptions import u2pl as reference
from tests.transcriptions import u2pl_contrast as contrast_reference
from tests.u2pl import inputs
from u2pl import prototypes, pseudo_labels


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


def test_prototypes_are_the_moving_average_of_classes_that_occur():
  actual = prototypes.empty_class_prototypes(inputs.CLASSES, 4)
  expected = contrast_reference.no_prototypes(inputs.CLASSES, 4)
  rng = np.random.default_rng(0)
  update = jax.jit(prototypes.update_class_prototypes, static_argnums=3)
  for _ in range(5):
    means = rng.normal(size=(inputs.CLASSES, 4))
    counts = rng.integers(0, 3, inputs.CLASSES)
    counts[5] = 0  # Never occurs.
    expected = contrast_reference.update_prototypes(
      expected, means, counts, 0.9
    )
    actual = update(actual, means, counts, 0.9)
  inputs.assert_close(actual.vectors, expected.values)
  np.testing.assert_array_equal(actual.updates, expected.updates)
  assert actual.updates[5] == 0


@pytest.mark.parametrize('kind', ['raw', 'l2'])
@pytest.mark.parametrize('num_known', [0, 2, inputs.CLASSES])
def test_denoising_weights(kind, num_known):
  features, vectors = (
    inputs.draw(2, 3, 4, 8),
    inputs.draw(inputs.CLASSES, 8, seed=1),
  )
  updates = (np.arange(inputs.CLASSES) < num_known).astype(int)
  weights = jax.jit(prototypes.class_prototype_weights, static_argnums=2)
  actual = weights(features, prototypes.Prototypes(vectors, updates), kind)
  known = contrast_reference.Prototypes(vectors, updates)
  inputs.assert_close(
    actual, contrast_reference.denoising_weights(features, known, kind)
  )
  probs = reference.softmax(inputs.draw(2, 5, 7, inputs.CLASSES, seed=3))
  upsample = jax.jit(pseudo_labels.upsample_teacher_scores, static_argnums=1)
  denoised = np.asarray(upsample(actual, (5, 7))) * probs
  labels, weighted = contrast_reference.denoised_labels(
    probs, features, known, kind
  )
  inputs.assert_close(denoised, weighted)
  np.testing.assert_array_equal(np.argmax(denoised, -1), labels)
