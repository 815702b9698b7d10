"""DenseCL against slow numpy transcriptions (spec §2.8)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import comparator_options
from pass_luss.pretrain import queue as queue_lib
from pass_luss.pretrain.objectives import densecl
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.objectives import support
from tests.transcriptions import luss_comparators, pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')


def test_first_of_equally_similar_cells_is_matched():
  features = arrays.normalized(2, 4, 3)
  keys = arrays.normalized(2, 5, 3, seed=1)
  keys[:, 3] = keys[:, 1]
  keys[1, 4] = keys[1, 0]
  actual = jax.jit(densecl.match_cells)(features, keys)
  expected = luss_comparators.densecl_match(features, keys)
  assert not (expected == 3).any()
  np.testing.assert_array_equal(actual, expected)


def evaluator(maps):
  """Returns a function from maps and memory to results, and the weights."""
  objective = densecl.Densecl(
    comparator_options.DenseclOptions(queue=6, size=4, hidden=7)
  )
  net, params = support.bind_head(objective, maps)
  weights = {
    f'{name}_{key}': value
    for name in ('image', 'cell')
    for key, value in params[f'{name}_projector'].items()
  }

  def evaluate(maps, memory):
    return support.evaluate(objective, net, maps, memory=memory)

  return evaluate, weights


def rings(cells_seed=1):
  return {
    'images': queue_lib.Ring(arrays.normalized(6, 4), np.int32(2)),
    'cells': queue_lib.Ring(
      arrays.normalized(6, 4, seed=cells_seed), np.int32(2)
    ),
  }


def test_objective():
  maps = arrays.normal(2, 2, 2, 3, 5)
  evaluate, weights = evaluator(maps)
  memory = rings()
  _, terms, _, new = evaluate(maps, memory)
  query, key = (
    luss_comparators.densecl_heads(maps[:, v], weights) for v in (0, 1)
  )
  flat = maps.reshape(2, 2, 6, 5)
  matches = luss_comparators.densecl_match(flat[:, 0], flat[:, 1])
  assert (matches != np.arange(6)).any()
  expected = luss_comparators.densecl_loss(
    query,
    key,
    memory['images'].rows.T,
    memory['cells'].rows.T,
    matches,
  )
  arrays.assert_close(sum(terms.values()), expected)
  for name, keys in (
    ('images', pass_pretraining.normalize(key[0])),
    # One pooled key an image, not one a cell.
    ('cells', luss_comparators.densecl_pooled_key(key[1])),
  ):
    rows, position = luss_comparators.ring_push(memory[name].rows.T, 2, keys)
    arrays.assert_close(new[name].rows, rows.T)
    assert new[name].position == position


def test_a_map_of_one_cell_is_moco_twice():
  maps = arrays.normal(2, 2, 1, 1, 5)
  evaluate, weights = evaluator(maps)
  memory = rings()
  terms = evaluate(maps, memory).terms
  for name, prefix in (('images', 'image'), ('cells', 'cell')):
    own = {k: weights[f'{prefix}_{k}'] for k in ('w1', 'b1', 'w2', 'b2')}
    q, k = (
      pass_pretraining.normalize(
        luss_comparators.moco_head(maps[:, v, 0, 0], own)
      )
      for v in (0, 1)
    )
    negatives = memory[name].rows.T
    expected = luss_comparators.info_nce(q, k, negatives, 0.2)
    arrays.assert_close(terms[f'loss_densecl_{name}'], 0.5 * expected)


def test_gradient_with_respect_to_the_maps():
  """None flows through the matching."""
  maps = arrays.normal(2, 2, 1, 2, 3)
  evaluate, weights = evaluator(maps)
  memory = rings()
  flat = maps.reshape(2, 2, 2, 3)
  matches = luss_comparators.densecl_match(flat[:, 0], flat[:, 1])
  key = luss_comparators.densecl_heads(maps[:, 1], weights)

  def loss(first):
    views = jnp.stack([first, maps[:, 1]], axis=1)
    return sum(evaluate(views, memory).terms.values())

  def reference(first):
    query = luss_comparators.densecl_heads(first, weights)
    return luss_comparators.densecl_loss(
      query, key, memory['images'].rows.T, memory['cells'].rows.T, matches
    )

  arrays.assert_gradient(loss, reference, maps[:, 0])


def test_refusals():
  options = comparator_options.DenseclOptions(queue=6)
  with pytest.raises(ValueError, match='densecl.queue: expected a multiple'):
    options.check_batch_size(4, 'densecl')
  with pytest.raises(ValueError, match='dense_weight: expected 0 to 1'):
    comparator_options.DenseclOptions(dense_weight=1.5)
