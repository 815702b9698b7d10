"""Parts of segcore in the form in which U2PL uses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models.layers import resize
from segcore.ops import losses
from segcore.train import optimizers
from tests.transcriptions import u2pl as reference
from tests.u2pl import inputs


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


@jax.jit
def mean_cross_entropy(logits, labels):
  return losses.masked_mean(losses.cross_entropy(logits, labels), labels >= 0)


def test_cross_entropy():
  logits, labels = (
    inputs.draw(2, 3, 4, inputs.CLASSES),
    inputs.draw_labels(2, 3, 4),
  )
  inputs.assert_close(
    mean_cross_entropy(logits, labels),
    reference.cross_entropy(logits, labels),
  )
  inputs.assert_gradient(
    lambda x: mean_cross_entropy(x, jnp.asarray(labels)),
    lambda x: reference.cross_entropy(x, labels),
    logits,
  )


@pytest.mark.parametrize(
  ('least', 'threshold'),
  [
    (0, 0.7),  # All pixels.
    (10_000, 0.7),  # Fewer with a label than that.
    (5, 0.9),  # The threshold keeps more.
    (20, 0.01),  # The number keeps more.
    (1, 0.3),
  ],
)
def test_hardest_pixels(least, threshold):
  logits, labels = (
    inputs.draw(2, 4, 5, inputs.CLASSES),
    inputs.draw_labels(2, 4, 5),
  )
  hardest = jax.jit(losses.hard_example_mask, static_argnums=(2, 3))
  actual = hardest(logits, labels, threshold, least)
  expected = reference.ohem_kept(logits, labels, least, threshold)
  np.testing.assert_array_equal(actual, expected)
  assert expected.any()

  @jax.jit
  def loss(x):
    kept = losses.hard_example_mask(x, jnp.asarray(labels), threshold, least)
    return losses.masked_mean(
      losses.cross_entropy(x, jnp.asarray(labels)), kept
    )

  def reference_loss(x):
    return reference.ohem(x, labels, least, threshold)

  inputs.assert_close(loss(logits), reference_loss(logits))
  inputs.assert_gradient(loss, reference_loss, logits)


def test_labels_are_resized_by_the_floor_rule():
  labels = inputs.draw_labels(1, 513, 9)
  shrink = jax.jit(resize.resize_nearest_floor, static_argnums=1)
  actual = shrink(labels, (129, 4))
  np.testing.assert_array_equal(actual, reference.nearest(labels, (129, 4)))


def test_poly_schedule():
  options = optimizers.OptimizerOptions(
    name='sgd', learning_rate=0.01, schedule='poly', poly_power=0.9
  )
  rate = optimizers.learning_rate_schedule(options, 50)
  for step in (0, 1, 25, 49):
    inputs.assert_close(
      rate(step), reference.poly_learning_rate(0.01, step, 50), rtol=1e-5
    )
