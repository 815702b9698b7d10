"""SwAV against slow numpy transcriptions (spec §2.5)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import embedding_ops, objective_options
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import swav
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.arrays import BATCH, PROTOTYPES, SIZE
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')

SIZES = objective_options.HeadSizes(8, SIZE, PROTOTYPES)
LENGTH = 8


def full_queue(rows):
  return queue_lib.Queue(jnp.asarray(rows), jnp.asarray(rows.shape[1]))


@pytest.mark.parametrize('full', [True, False])
def test_targets_use_a_queue_once_it_is_full(full):
  scores = arrays.normal(BATCH, PROTOTYPES, scale=0.3)
  queue_scores = arrays.normal(9, PROTOTYPES, seed=1, scale=0.3)
  actual = jax.jit(swav.swav_targets, static_argnums=3)(
    scores, queue_scores, full, objective_options.SwavOptions()
  )
  joint = np.concatenate([queue_scores, scores]) if full else scores
  arrays.assert_close(
    actual, pass_pretraining.sinkhorn(joint, 0.05, 3)[-BATCH:]
  )


def test_no_gradient_flows_through_targets():
  scores = arrays.normal(BATCH, PROTOTYPES, scale=0.3)
  queue_scores = arrays.normal(3, PROTOTYPES, scale=0.3)

  def total(s, r):
    targets = swav.swav_targets(
      s, r, jnp.asarray(True), objective_options.SwavOptions()
    )
    return jnp.sum(targets * jnp.arange(PROTOTYPES))

  for gradient in jax.jit(jax.grad(total, (0, 1)))(scores, queue_scores):
    assert not np.asarray(gradient).any()


def loss_of_targets(targets, x, p):
  """Computes the loss of embeddings and prototypes for constant targets."""
  num_views = x.shape[1]
  weights = pass_pretraining.crop_weights(num_views)
  total = 0.0
  for i in (0, 1):
    for v in range(num_views):
      logits = x[:, v] @ p / 0.1
      logits = logits - logits.max(axis=1, keepdims=True)
      log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
      total -= weights[i][v] * np.mean((targets[i] * log_probs).sum(axis=1))
  return total


@pytest.mark.parametrize('num_views', [2, 5])
@pytest.mark.parametrize('queued', [False, True])
def test_objective_and_its_gradient(num_views, queued):
  prototypes = arrays.normalized(PROTOTYPES, SIZE, seed=1).T
  embeddings = arrays.normalized(BATCH, num_views, SIZE)
  queue = arrays.normalized(2, LENGTH, SIZE, seed=3) if queued else None
  expected, targets = pass_pretraining.swav_loss(
    [embeddings[:, v] @ prototypes for v in range(num_views)],
    pass_pretraining.scores_of_queue(queue, prototypes) if queued else None,
    0.1,
    0.05,
    3,
  )
  objective = swav.Swav(
    objective_options.SwavOptions(queue=LENGTH * queued), SIZES
  )

  def step(x, p):
    return support.step(
      {
        'swav': {
          'embeddings': x,
          'scores': embedding_ops.prototype_similarities(x, p),
        }
      },
      prototypes=p,
      queue=full_queue(queue) if queued else None,
    )

  @jax.jit
  def loss(x, p):
    inputs = step(x, p)
    computed = {'swav': objective.targets(inputs)}
    result = objective.loss(
      support.step(inputs.outputs, queue=inputs.state.queue, targets=computed)
    )
    return result, computed['swav']['assignments']

  (terms, scalars), actual = loss(embeddings, prototypes)
  arrays.assert_close(np.moveaxis(actual, 1, 0), targets)
  arrays.assert_close(terms['loss_swav'], expected)
  np.testing.assert_allclose(
    scalars['embedding_spread'],
    1 - np.linalg.norm(embeddings[:, :2].reshape(-1, SIZE).mean(0)),
  )
  assert ('queue_fill' in scalars) == queued

  # With respect to embeddings and prototypes, while targets are constant.
  reference_loss = functools.partial(loss_of_targets, targets)
  arrays.assert_close(reference_loss(embeddings, prototypes), expected)
  arrays.assert_gradient(
    lambda x: loss(x, prototypes)[0].terms['loss_swav'],
    lambda x: reference_loss(x, prototypes),
    embeddings,
  )
  arrays.assert_gradient(
    lambda p: loss(embeddings, p)[0].terms['loss_swav'],
    lambda p: reference_loss(embeddings, p),
    prototypes,
  )


def test_queue_fills_from_its_step_on():
  options = objective_options.SwavOptions(queue=4, queue_from_step=3)
  new = jnp.asarray(arrays.normal(2, 3, SIZE))
  empty = queue_lib.empty_embedding_queue(swav.Swav(options, SIZES).needs_queue)
  assert empty.rows.shape == (2, 4, SIZE)
  before = swav.update_embedding_queue(empty, new, jnp.asarray(2), options)
  assert before.count == 0 and not np.asarray(before.rows).any()
  after = swav.update_embedding_queue(empty, new, jnp.asarray(3), options)
  assert after.count == 2
  # Of three views, the large ones are stored.
  arrays.assert_close(after.rows[:, :2], np.moveaxis(new[:, :2], 1, 0))
  assert swav.Swav(objective_options.SwavOptions(), SIZES).needs_queue is None


@pytest.mark.parametrize('step', [1, 2])
def test_prototypes_are_frozen_before_their_step(step):
  def state(value):
    params = {
      'encoder': jnp.full(2, value),
      'heads': {'clusters': {'prototypes': jnp.full(2, value)}},
    }
    state = support.state(step, params)
    return state.replace(opt_state={'slot': params})

  objective = swav.Swav(objective_options.SwavOptions(frozen_steps=2), SIZES)
  inputs = dataclasses.replace(support.step({}), state=state(1.0))
  new = objective.after_update(inputs, state(3.0))
  expected = 1.0 if step < 2 else 3.0
  for tree in (new.params, new.opt_state['slot']):
    assert (tree['heads']['clusters']['prototypes'] == expected).all()
    assert (tree['encoder'] == 3.0).all()


def test_embedding_deviation():
  apart = jnp.asarray([[1.0, 0.0], [-1.0, 0.0]])
  np.testing.assert_allclose(swav.embedding_deviation(apart), 1.0)
  np.testing.assert_allclose(
    swav.embedding_deviation(jnp.ones((3, 1))), 0.0, atol=1e-9
  )
