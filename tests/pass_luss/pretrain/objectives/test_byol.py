"""BYOL against slow numpy transcriptions (spec §2.5)."""

import jax
import jax.numpy as jnp
import pytest

from pass_luss.pretrain import comparator_options
from pass_luss.pretrain.objectives import byol, simsiam
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import (
  luss_comparators,
  pass_pretraining,
  pass_updates,
)

pytestmark = pytest.mark.usefixtures('float64')


def test_loss():
  p, z = arrays.normal(3, 2, 4), arrays.normal(3, 2, 4, seed=1)

  def loss(p):
    return byol.byol_loss(p, jnp.asarray(z))

  def reference(p):
    return luss_comparators.byol_loss(p[:, 0], p[:, 1], z[:, 0], z[:, 1])

  arrays.assert_close(jax.jit(loss)(p), reference(p))
  arrays.assert_gradient(loss, reference, p)


def test_loss_is_that_of_simsiam_times_four_plus_four():
  """Where the target is the online projector."""
  p, z = arrays.normal(3, 2, 4), arrays.normal(3, 2, 4, seed=1)
  losses = jax.jit(
    lambda p, z: (byol.byol_loss(p, z), simsiam.simsiam_loss(p, z))
  )
  of_byol, of_simsiam = losses(p, z)
  arrays.assert_close(of_byol, 4 * of_simsiam + 4)


def test_objective_has_statistics_of_each_view():
  maps = arrays.normal(4, 2, 2, 3, 5)
  maps[:, 1] = 2 * maps[:, 1] + 1
  objective = byol.Byol(comparator_options.ByolOptions(hidden=6, size=3))
  net, params = support.bind_head(objective, maps)
  projector, predictor = params['projector'], params['predictor']
  for weights in (projector, predictor):
    assert set(weights) == {'w1', 'b1', 'gamma1', 'beta1', 'w2'}

  z = [
    luss_comparators.byol_head(pass_pretraining.gap(maps[:, v]), projector)
    for v in (0, 1)
  ]
  p = [luss_comparators.byol_head(each, predictor) for each in z]
  expected = luss_comparators.byol_loss(*p, *z)
  terms = support.evaluate(objective, net, maps, by_view=True).terms
  arrays.assert_close(terms['loss_byol'], expected, rtol=1e-5)


def test_momentum_encoder_is_updated_after_the_encoder():
  spec = byol.Byol(comparator_options.ByolOptions()).needs_momentum
  assert spec.after_update and spec.head_modules == {'byol': ('projector',)}
  arrays.assert_close(
    spec.decay(jnp.asarray(37), 100), pass_updates.momentum(37, 100, 0.99)
  )
  with pytest.raises(ValueError, match='decay: expected 0 to 1, got 2.0'):
    comparator_options.ByolOptions(decay=2.0)
