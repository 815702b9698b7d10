"""AdCo against slow numpy transcriptions (spec §2.4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import objective_options
from pass_luss.pretrain.objectives import adco
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import luss_comparators

pytestmark = pytest.mark.usefixtures('float64')

Q, K = arrays.normalized(3, 4), arrays.normalized(3, 4, seed=1)
TABLE = arrays.normal(6, 4, seed=2, scale=2)


def test_loss():
  def loss(q):
    return adco.adco_loss(q, jnp.asarray(K), jnp.asarray(TABLE), 0.12)

  def reference(q):
    return luss_comparators.adco_loss(q, K, TABLE.T)

  arrays.assert_close(jax.jit(loss)(Q), reference(Q))
  arrays.assert_gradient(loss, reference, Q)


def test_initial_loss_is_info_nce():
  def loss(q):
    return adco.adco_loss(
      q, jnp.asarray(K), jnp.asarray(TABLE), 0.12, jnp.array(False)
    )

  def reference(q):
    return luss_comparators.adco_initial_loss(q, K, TABLE.T)

  arrays.assert_close(jax.jit(loss)(Q), reference(Q))
  arrays.assert_gradient(loss, reference, Q)


def test_closed_form_is_minus_the_gradient_of_the_loss():
  both = jax.jit(
    lambda q, k, table: (
      adco.negative_gradient(q, k, table, 0.02),
      jax.grad(lambda w: adco.adco_loss(q, k, w, 0.02))(table),
    )
  )
  actual, gradient = both(Q, K, TABLE)
  np.testing.assert_allclose(actual, -gradient, rtol=1e-9, atol=1e-12)
  expected = luss_comparators.adco_gradient(Q, K, TABLE.T).T
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-12)
  numeric = arrays.numeric_gradient(
    lambda w: luss_comparators.adco_loss(Q, K, w.T, 0.02), TABLE
  )
  np.testing.assert_allclose(actual, -numeric, rtol=1e-4, atol=1e-7)


def after_step(objective, number, queries, keys):
  """Returns the loss, and the state after a step of this number.

  The parameters of the state are 1 before, those of the momentum encoder 0.
  """

  @jax.jit
  def evaluate(queries, keys, table):
    step = support.step(
      {'adco': {'queries': queries}},
      momentum_outputs={'adco': {'keys': keys}},
      memory={'adco': adco.Negatives(table, 0.1 * table)},
      number=number,
    )
    tree = {'encoder': {'w': jnp.ones(2)}, 'heads': {}}
    own = {'encoder': {'w': jnp.zeros(2)}, 'heads': {'adco': {'projector': {}}}}
    new = step.state.replace(params=tree, momentum_params=own)
    loss = objective.loss(step).terms['loss_adco']
    return loss, objective.after_update(step, new)

  return evaluate(queries, keys, TABLE)


def make_objective(symmetric=False):
  return adco.Adco(
    objective_options.AdcoOptions(negatives=6, size=4, symmetric=symmetric)
  )


@pytest.mark.parametrize('symmetric', [False, True])
def test_first_steps_fill_the_negatives(symmetric):
  """Queries are of view 1 and keys of view 2 alone."""
  objective = make_objective(symmetric)
  q, k = Q[:, None], K[:, None]
  if symmetric:
    q = np.stack([Q, arrays.normalized(3, 4, seed=4)], axis=1)
    k = np.stack([arrays.normalized(3, 4, seed=5), K], axis=1)
  for number in (0, 1):
    loss, new = after_step(objective, number, q, k)
    expected = TABLE.copy()
    expected[3 * number : 3 * number + 3] = K
    arrays.assert_close(new.memory['adco'].rows, expected)
    arrays.assert_close(new.memory['adco'].velocity, 0.1 * TABLE)
    arrays.assert_close(loss, luss_comparators.adco_initial_loss(Q, K, TABLE.T))
    # After the last of them the momentum encoder is the encoder.
    is_last = number == 1
    assert (np.asarray(new.momentum_params['encoder']['w']) == is_last).all()


def test_later_steps_train_the_negatives():
  loss, new = after_step(make_objective(), 2, Q[:, None], K[:, None])
  arrays.assert_close(loss, luss_comparators.adco_loss(Q, K, TABLE.T))
  g = luss_comparators.adco_gradient(Q, K, TABLE.T)
  rows, v = luss_comparators.adco_update(TABLE.T, 0.1 * TABLE.T, g)
  np.testing.assert_allclose(new.memory['adco'].rows, rows.T, rtol=1e-6)
  np.testing.assert_allclose(new.memory['adco'].velocity, v.T, rtol=1e-6)
  assert not np.asarray(new.momentum_params['encoder']['w']).any()


def test_symmetric():
  """Queries of view 1 have keys of view 2, and the other way round."""
  q = np.stack([Q, arrays.normalized(3, 4, seed=4)], axis=1)
  k = np.stack([arrays.normalized(3, 4, seed=5), K], axis=1)
  loss, new = after_step(make_objective(True), 2, q, k)
  pairs = ((q[:, 0], k[:, 1]), (q[:, 1], k[:, 0]))
  losses = [luss_comparators.adco_loss(*pair, TABLE.T) for pair in pairs]
  arrays.assert_close(loss, np.mean(losses))
  g = np.mean(
    [luss_comparators.adco_gradient(*pair, TABLE.T) for pair in pairs], axis=0
  )
  rows, _ = luss_comparators.adco_update(TABLE.T, 0.1 * TABLE.T, g)
  np.testing.assert_allclose(new.memory['adco'].rows, rows.T, rtol=1e-6)
  # Equal views: the plain form.
  twice = np.stack([Q, Q], axis=1), np.stack([K, K], axis=1)
  loss, new = after_step(make_objective(True), 2, *twice)
  plain_loss, plain = after_step(make_objective(), 2, Q[:, None], K[:, None])
  arrays.assert_close(loss, plain_loss)
  arrays.assert_close(new.memory['adco'].rows, plain.memory['adco'].rows)


def test_views_and_refusals():
  for symmetric, views in ((False, ((0,), (1,))), (True, ((0, 1), (0, 1)))):
    objective = make_objective(symmetric)
    assert (objective.views, objective.momentum_views) == views
  with pytest.raises(ValueError, match='adco.negatives: expected a multiple'):
    make_objective().options.check_batch_size(4, 'adco')
  with pytest.raises(ValueError, match='negative_temperature: expected more'):
    dataclasses.replace(
      objective_options.AdcoOptions(), negative_temperature=0.0
    )
