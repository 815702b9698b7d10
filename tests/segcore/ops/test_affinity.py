"""Affinity loss and random walk against the transcription, in float64."""

import jax
import numpy as np

from segcore.ops import affinity as affinity_lib
from tests.transcriptions import afa as reference

GRID, RADIUS = (4, 5), 2


def test_loss_and_its_gradient():
  rng = np.random.default_rng(0)
  affinities = rng.random((2, 20, 20))
  labels = rng.integers(-1, 3, (2, *GRID))
  compute = jax.jit(
    jax.value_and_grad(affinity_lib.affinity_loss), static_argnums=2
  )
  with jax.enable_x64():
    loss, gradient = compute(affinities, labels, RADIUS)
    nothing, _ = compute(affinities, np.full_like(labels, -1), RADIUS)
  expected, expected_gradient = reference.affinity_loss(
    affinities, labels, RADIUS
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-12)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-15)
  assert nothing == 0


def test_a_step_of_the_random_walk():
  rng = np.random.default_rng(1)
  affinities, scores = rng.random((2, 20, 20)), rng.random((2, *GRID, 3))
  scores[..., 2] = 0  # An absent class.
  walk = jax.jit(
    affinity_lib.propagate_by_affinity,
    static_argnums=2,
    static_argnames='num_doublings',
  )
  with jax.enable_x64():
    walked = walk(scores, affinities, RADIUS)
    four = walk(scores, affinities, RADIUS, num_doublings=2)
  for b in range(2):
    expected = scores[b]
    for step in range(4):
      expected = reference.random_walk(expected, affinities[b], RADIUS)
      if step == 0:
        np.testing.assert_allclose(walked[b], expected, atol=1e-12)
    np.testing.assert_allclose(four[b], expected, atol=1e-12)
  assert not np.any(four[..., 2])
