"""Random inputs in float64, and comparisons with the transcription."""

import jax
import numpy as np

from tests.transcriptions import u2pl as reference
from u2pl import contrast

CLASSES = 6
# Few anchors and negatives, and a small bank.
CONTRAST = contrast.ContrastOptions(
  num_anchors=6,
  num_negatives=4,
  low_rank=2,
  high_rank=5,
  anchor_threshold=0.1,
  capacity=40,
  first_capacity=60,
  max_push=16,
)


def draw(*shape, seed=0, scale=2.0):
  return np.random.default_rng(seed).normal(scale=scale, size=shape)


def draw_labels(*shape, seed=1, classes=CLASSES):
  """Draws labels of which some are ignored."""
  return np.random.default_rng(seed).integers(-1, classes, shape)


def assert_close(actual, expected, rtol=1e-6):
  np.testing.assert_allclose(
    np.asarray(actual), expected, rtol=rtol, atol=1e-12
  )


def assert_gradient(loss, reference_loss, x, rtol=1e-5):
  """Compares automatic differentiation with central differences."""
  actual = jax.jit(jax.grad(loss))(x)
  expected = reference.numeric_gradient(reference_loss, x)
  np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-8)
