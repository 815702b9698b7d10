"""Random arrays and comparisons, for the tests of formulas."""

import jax
import numpy as np

from tests.transcriptions import pass_pretraining

BATCH, SIZE, PROTOTYPES = 6, 5, 7


def normal(*shape, seed=0, scale=1.0):
  """Draws from a normal distribution."""
  return np.random.default_rng(seed).normal(scale=scale, size=shape)


def normalized(*shape, seed=0):
  """Draws vectors and L2-normalizes them."""
  return pass_pretraining.normalize(normal(*shape, seed=seed))


def assert_close(actual, expected, rtol=1e-6):
  """Asserts that float64 values agree."""
  np.testing.assert_allclose(
    np.asarray(actual), expected, rtol=rtol, atol=1e-12
  )


def numeric_gradient(loss, x, step=1e-6):
  """Computes the gradient by central differences."""
  gradient = np.zeros_like(x)
  for index in np.ndindex(*x.shape):
    moved = [x.copy(), x.copy()]
    moved[0][index] += step
    moved[1][index] -= step
    gradient[index] = (loss(moved[0]) - loss(moved[1])) / (2 * step)
  return gradient


def assert_gradient(loss, reference_loss, x):
  """Asserts that the gradient of a loss is that of its transcription."""
  actual = jax.jit(jax.grad(loss))(x)
  expected = numeric_gradient(reference_loss, x)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-8)
  assert np.abs(expected).max() > 1e-4


def random_boxes(count, seed=0):
  """Draws boxes of two views and flips; the first pair does not overlap.

  Returns:
    (top, left, height, width) [count, 2, 4] and bool [count, 2].
  """
  rng = np.random.default_rng(seed)
  boxes = np.concatenate(
    [rng.uniform(0, 30, (count, 2, 2)), rng.uniform(25, 60, (count, 2, 2))],
    axis=-1,
  )
  boxes[0] = [[0, 0, 10, 10], [5, 30, 10, 10]]
  return boxes, rng.random((count, 2)) < 0.5


def reference_box(box):
  """Reorders to (left, top, width, height), as in the official code."""
  top, left, height, width = box
  return left, top, width, height
