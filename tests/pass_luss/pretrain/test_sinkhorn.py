"""Sinkhorn's algorithm against a slow numpy transcription (spec §2.5)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import sinkhorn
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.arrays import BATCH, PROTOTYPES, SIZE
from tests.transcriptions import pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')
assign = jax.jit(sinkhorn.sinkhorn_assign, static_argnums=(1, 2))


@pytest.mark.parametrize('iterations', [1, 3, 10])
def test_equals_the_transcription(iterations):
  scores = (
    arrays.normalized(BATCH, SIZE)
    @ arrays.normalized(PROTOTYPES, SIZE, seed=1).T
  )
  actual = assign(scores, 0.05, iterations)
  arrays.assert_close(
    actual, pass_pretraining.sinkhorn(scores, 0.05, iterations)
  )


def test_float32_at_the_published_size():
  rng = np.random.default_rng(0)
  rows = pass_pretraining.normalize(rng.normal(size=(400, 128)))
  prototypes = pass_pretraining.normalize(rng.normal(size=(300, 128)))
  scores = (rows @ prototypes.T).astype(np.float32)
  actual = assign(scores, 0.05, 3)
  assert actual.dtype == jnp.float32
  expected = pass_pretraining.sinkhorn(scores.astype(np.float64), 0.05, 3)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_extreme_scores_stay_finite():
  scores = np.full((4, 3), -1.0, np.float32)
  scores[0, 0] = 1.0
  actual = np.asarray(assign(scores, 0.05, 3))
  assert np.isfinite(actual).all()
  np.testing.assert_allclose(actual.sum(1), 1.0, rtol=1e-5)


def test_unused_samples_change_nothing():
  scores = arrays.normal(BATCH, PROTOTYPES, scale=0.3)
  used = np.array([True, False, True, True, False, True])
  actual = np.asarray(assign(scores, 0.05, 3, used))
  arrays.assert_close(
    actual[used], pass_pretraining.sinkhorn(scores[used], 0.05, 3)
  )
  assert not actual[~used].any()


def test_blocks_equal_their_concatenation():
  scores = arrays.normal(BATCH, PROTOTYPES, scale=0.3)
  blocks = [
    (part, np.ones(len(part), bool)) for part in (scores[:2], scores[2:])
  ]
  assign_blocks = jax.jit(
    sinkhorn.sinkhorn_assign_blocks, static_argnums=(1, 2)
  )
  actual = np.concatenate(assign_blocks(blocks, 0.05, 3))
  arrays.assert_close(actual, pass_pretraining.sinkhorn(scores, 0.05, 3))
