import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from runtime import errors
from segcore.distributed import sharding
from segcore.train import optimizers
from segcore.train import update as update_lib
from tests.support import fake_methods as fakes
from tests.support import tiny_networks
from tests.support.meshes import mesh_of


class Linear(nn.Module):
  """A network of two parts, a matrix and a vector."""

  @nn.compact
  def __call__(self, images):
    self.param('a', nn.initializers.constant(1.0), (3, 2))
    self.param('b', nn.initializers.constant(2.0), (2,))


def loss(params, batch_stats, batch, keys):
  """Sums |x a + b - noise|² over the rows in the batch's mask."""
  noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys.rows)
  residual = batch['x'] @ params['a'] + params['b'] - noise
  error = jnp.sum(residual**2, axis=-1)
  count = jnp.sum(batch['mask']).astype(jnp.float32)
  total = jnp.sum(jnp.where(batch['mask'], error, 0.0))
  return update_lib.LossOutput(total, count, {'mean_x': batch['x'].mean()}, {})


def batch(rows=32):
  rng = np.random.default_rng(1)
  arrays = {
    'x': rng.standard_normal((rows, 3)).astype(np.float32),
    'mask': rng.random(rows) < 0.7,
  }
  return jax.device_put(arrays)


def initial_state(rule):
  init = jax.jit(lambda rng: rule.init(Linear(), rng, (1, 4, 4, 3), None))
  return init(jax.random.PRNGKey(0))


def step(rule, loss, state, batch):
  return jax.jit(functools.partial(rule, loss))(state, batch)


def update(**fields):
  options = optimizers.OptimizerOptions(
    name='sgd', learning_rate=0.1, momentum=0.0, schedule='constant'
  )
  return update_lib.Update(
    **{'trained': ('a', 'b'), 'optimizer': options, 'num_steps': 10, **fields}
  )


def test_step_equals_gradient_descent_by_hand():
  rule = update()
  state = initial_state(rule)
  data = batch()
  after, metrics = step(rule, loss, state, data)

  row_rng, _ = jax.random.split(jax.random.fold_in(state.rng, 0))
  draw = jax.jit(
    lambda i: jax.random.normal(jax.random.fold_in(row_rng, i), (2,))
  )
  noise = np.stack([draw(i) for i in range(32)]).astype(np.float64)
  x, mask = np.asarray(data['x'], np.float64), np.asarray(data['mask'])
  residual = x @ np.ones((3, 2)) + 2.0 - noise
  n = mask.sum()
  expected = 1 - 0.1 * 2 * (x[mask].T @ residual[mask]) / n
  np.testing.assert_allclose(after.params['a'], expected, atol=1e-5)
  assert float(metrics['loss']) == pytest.approx(
    (residual[mask] ** 2).sum() / n, rel=1e-5
  )
  assert float(metrics['mean_x']) == pytest.approx(x.mean(), abs=1e-6)
  assert int(after.step) == 1


@pytest.mark.parametrize('accumulate', [2, 4])
def test_accumulated_step_equals_whole_batch(accumulate):
  whole, parts = update(), update(accumulate=accumulate)
  state = initial_state(whole)
  data = batch()
  after_whole, metrics_whole = step(whole, loss, state, data)
  after_parts, metrics_parts = step(parts, loss, state, data)
  for a, b in zip(
    jax.tree.leaves((after_whole, metrics_whole)),
    jax.tree.leaves((after_parts, metrics_parts)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_untrained_parts_have_neither_gradient_nor_optimizer_state():
  rule = update(trained=('b',), optimizer=tiny_networks.adam())
  state = initial_state(rule)
  slots = optax.tree_utils.tree_get(state.opt_state, 'mu')
  assert [leaf.shape for leaf in jax.tree.leaves(slots)] == [(2,)]
  after, _ = step(rule, loss, state, batch())
  np.testing.assert_array_equal(after.params['a'], state.params['a'])
  assert not np.array_equal(after.params['b'], state.params['b'])


def test_draws_depend_on_the_step_alone():
  rule = update(optimizer=tiny_networks.adam(1e-9))
  state = initial_state(rule)
  take = jax.jit(functools.partial(rule, loss))
  first, metrics = take(state, batch())
  _, again = take(state, batch())
  _, second = take(first, batch())
  assert float(metrics['loss']) == float(again['loss'])
  assert float(metrics['loss']) != float(second['loss'])


def test_loaded_parts_replace_fresh_ones():
  loaded = {'params': {'a': jnp.full((3, 2), 7.0)}, 'batch_stats': {}}
  state = update().init(Linear(), jax.random.PRNGKey(0), (1, 4, 4, 3), loaded)
  np.testing.assert_array_equal(state.params['a'], np.full((3, 2), 7.0))
  np.testing.assert_array_equal(state.params['b'], np.full((2,), 2.0))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'batch_size': 0}, 'batch_size: expected 1 or more, got 0'),
    ({'evaluate_every': -1}, 'evaluate_every: expected >= 0, got -1'),
  ],
)
def test_invalid_recipes_are_refused(fields, message):
  recipe = {'batch_size': 8, 'num_steps': 10, 'optimizer': tiny_networks.adam()}
  with pytest.raises(ValueError, match=message):
    update_lib.RecipeOptions(**{**recipe, **fields})


def test_recipes_that_do_not_fit_the_devices_are_refused():
  mesh = sharding.make_mesh(devices=jax.devices()[:4])
  recipe = update_lib.RecipeOptions(32, 10, tiny_networks.adam(), accumulate=4)
  recipe.check(mesh, 'config.x')
  with pytest.raises(errors.UserError) as caught:
    dataclasses.replace(recipe, batch_size=30).check(mesh, 'config.x')
  assert str(caught.value) == (
    'config.x.batch_size: expected a multiple of the 4 devices, got 30: '
    'change it or use fewer devices'
  )
  with pytest.raises(
    errors.UserError, match='accumulate: expected a .*, got 3'
  ):
    dataclasses.replace(recipe, accumulate=3).check(mesh, 'config.x')


def test_batch_statistics_of_microbatches_are_averaged():
  def with_statistics(params, batch_stats, batch, keys):
    output = loss(params, batch_stats, batch, keys)
    mean = 0.9 * batch_stats['mean'] + 0.1 * batch['x'].mean(0)
    return output._replace(batch_stats={'mean': mean})

  means = []
  for accumulate in (1, 4):
    rule = update(accumulate=accumulate)
    state = initial_state(rule)
    state = state.replace(batch_stats={'mean': jnp.ones(3)})
    after, _ = step(rule, with_statistics, state, batch())
    means.append(after.batch_stats['mean'])
  expected = 0.9 + 0.1 * np.asarray(batch()['x']).mean(0)
  for mean in means:
    np.testing.assert_allclose(mean, expected, atol=1e-6)


def test_a_method_that_needs_whole_batches_says_so():
  recipe = update_lib.RecipeOptions(
    16, 6, fakes.two_stream().optimizer, accumulate=2
  )
  recipe.check(mesh_of(), 'config.semi')
  with pytest.raises(errors.UserError) as caught:
    recipe.check(mesh_of(), 'config.semi', accumulates=False)
  assert str(caught.value).startswith(
    'config.semi.accumulate: expected 1, since this method needs the whole'
  )
