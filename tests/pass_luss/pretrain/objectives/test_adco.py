"""AdCo against slow numpy transcriptions (spec §2.4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import comparator_options
from pass_luss.pretrain.objectives import adco
from tests.pass_luss.pretrain import arrays, training
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import (
  luss_comparators,
  pass_pretraining,
  pass_updates,
)

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
    (loss,) = objective.loss(step).terms.values()
    return loss, objective.after_update(step, new)

  return evaluate(queries, keys, TABLE)


def make_objective(variant='plain'):
  return adco.Adco(
    comparator_options.AdcoOptions(negatives=6, size=4, variant=variant)
  )


@pytest.mark.parametrize('variant', ['plain', 'symmetric', 'multi_crop'])
def test_first_steps_fill_the_negatives(variant):
  """The query is the first one, and the key that of another view."""
  objective = make_objective(variant)
  q, k = Q[:, None], K[:, None]
  if variant != 'plain':
    q = np.stack([Q, arrays.normalized(3, 4, seed=4)], axis=1)
  if variant == 'symmetric':
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
  loss, new = after_step(make_objective('symmetric'), 2, q, k)
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
  loss, new = after_step(make_objective('symmetric'), 2, *twice)
  plain_loss, plain = after_step(make_objective(), 2, Q[:, None], K[:, None])
  arrays.assert_close(loss, plain_loss)
  arrays.assert_close(new.memory['adco'].rows, plain.memory['adco'].rows)


def embed(params, images):
  """Computes the embeddings of one view [B, h, w, 3] by the tiny network."""
  encoder, head = params['encoder'], params['heads']['adco']['projector']
  kernel = np.asarray(encoder['conv']['kernel'])
  size, side = len(kernel), images.shape[1]
  cells = -(-side // size)
  before = (cells * size - side) // 2
  padded = np.zeros((len(images), cells * size, cells * size, 3))
  inside = slice(before, before + side)
  padded[:, inside, inside] = images / 127.5 - 1
  patches = padded.reshape(len(images), cells, size, cells, size, 3)
  maps = np.einsum('bhiwjc,ijcd->bhwd', patches, kernel)
  bn = encoder['bn']
  maps = np.maximum(
    pass_pretraining.batch_norm(maps, bn['scale'], bn['bias']), 0
  )
  weights = support.layer_weights(head)
  pooled = pass_pretraining.gap(maps)
  return pass_pretraining.normalize(luss_comparators.moco_head(pooled, weights))


def test_whole_step_of_multi_crop():
  """From pixels to the new negatives, and the gradient of the head's bias."""
  sizes = (16, 12, 8)
  method = training.make_tiny_method('adco', adco=training.MULTI_CROP)
  batch = training.make_batch(small=False, large=16, smaller=sizes)
  state = jax.tree.map(
    lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
    jax.device_get(training.init_state(method, batch)),
  )
  # After the 16 / 8 steps that fill the negatives.
  state = state.replace(
    step=np.int32(5),
    momentum_params=jax.tree.map(lambda x: 1.2 * x, state.momentum_params),
  )
  new, scalars = jax.device_get(jax.jit(method.train_step)(state, batch))

  key_params = jax.tree.map(
    lambda average, online: pass_updates.ema(average, online, 0.9),
    state.momentum_params,
    {'encoder': state.params['encoder'], 'heads': state.params['heads']},
  )
  keys = embed(key_params, np.asarray(batch['views_large'])[:, 0])
  views = [np.asarray(batch['views_large'])[:, 1]]
  views += [np.asarray(batch[f'views_smaller{i}'])[:, 0] for i in (1, 2, 3)]
  negatives = state.memory['adco']

  def reference(bias):
    layer = {**state.params['heads']['adco']['projector']['dense2']}
    layer['bias'] = bias
    projector = {**state.params['heads']['adco']['projector'], 'dense2': layer}
    params = {**state.params, 'heads': {'adco': {'projector': projector}}}
    queries = [embed(params, view) for view in views]
    losses = [
      luss_comparators.adco_loss(q, keys, negatives.rows.T) for q in queries
    ]
    return queries, losses

  bias = state.params['heads']['adco']['projector']['dense2']['bias']
  queries, losses = reference(bias)
  loss, g = luss_comparators.adco_multi_crop(queries, keys, negatives.rows.T)
  assert loss == pytest.approx(sum(losses))
  for name, value in (
    ('loss', loss),
    ('loss_adco_crops', loss),
    ('loss_adco', losses[0]),
  ):
    arrays.assert_close(scalars[name], value)
  rows, velocity = luss_comparators.adco_update(
    negatives.rows.T, negatives.velocity.T, g
  )
  arrays.assert_close(new.memory['adco'].rows, rows.T)
  arrays.assert_close(new.memory['adco'].velocity, velocity.T)
  gradient = arrays.numeric_gradient(lambda b: sum(reference(b)[1]), bias)
  actual = new.params['heads']['adco']['projector']['dense2']['bias'] - bias
  np.testing.assert_allclose(actual, -0.1 * gradient, rtol=1e-5, atol=1e-9)
  assert np.abs(gradient).max() > 1e-3


def test_views_and_refusals():
  for variant, views in (
    ('plain', ((0,), (1,))),
    ('symmetric', ((0, 1), (0, 1))),
    ('multi_crop', ((1,), (0,))),
  ):
    objective = make_objective(variant)
    assert (objective.views, objective.momentum_views) == views
    assert objective.options.reads_smaller_views == (variant == 'multi_crop')
  with pytest.raises(ValueError, match='adco.negatives: expected a multiple'):
    make_objective().options.check_batch_size(4, 'adco')
  with pytest.raises(ValueError, match='negative_temperature: expected more'):
    dataclasses.replace(
      comparator_options.AdcoOptions(), negative_temperature=0.0
    )
