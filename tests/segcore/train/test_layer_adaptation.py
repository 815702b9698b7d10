"""LARC and LARS against their formulas in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segcore.cost import communication
from segcore.distributed import sharding
from segcore.train import optimizers
from tests.segcore.train import updates
from tests.transcriptions import luss_comparators


def adapted_options(kind, trust, **fields):
  return updates.sgd_with_l2(
    weight_decay=0.1, adaptation=kind, trust_coefficient=trust, **fields
  )


def adapted(kind, w, g, decay, trust):
  """Computes the adapted gradient, before momentum, in float64."""
  w_norm = np.sqrt(np.sum(w**2))
  if kind == 'larc':
    g_norm = np.sqrt(np.sum(g**2))
    if w_norm == 0 or g_norm == 0:
      return g
    return (g + decay * w) * trust * w_norm / (g_norm + decay * w_norm + 1e-8)
  if w.ndim <= 1:
    return g
  g = g + decay * w
  g_norm = np.sqrt(np.sum(g**2))
  if w_norm == 0 or g_norm == 0:
    return g
  return g * trust * w_norm / (g_norm + 1e-8)


@pytest.fixture
def layers():
  """Returns parameters of every rank, some of which are zero."""
  rng = np.random.default_rng(1)
  arrays = {
    'conv': {'kernel': rng.normal(size=(3, 3, 2, 4)), 'bias': np.zeros(4)},
    'norm': {'scale': np.ones(4), 'bias': np.zeros(4)},
    'zero': {'kernel': np.zeros((2, 3))},
    'still': {'kernel': np.array([[1.5, -2.0]]), 'bias': np.array([3.0])},
    'temperature': np.array(2.0),
  }
  return jax.device_put(jax.tree.map(np.float32, arrays))


@pytest.mark.parametrize('kind', ['larc', 'lars'])
@pytest.mark.parametrize('decay', [0.0, 0.05])
@pytest.mark.parametrize('nesterov', [False, True])
def test_adaptation_equals_reference(layers, kind, decay, nesterov):
  gradients = updates.gradients_of(layers)
  # One gradient is zero at first, others are from the second step on.
  gradients[0]['temperature'] = jnp.array(0.0)
  for gradient in gradients[1:]:
    gradient['still'] = jax.tree.map(jnp.zeros_like, layers['still'])
  options = updates.sgd_with_l2(
    learning_rate=5.0,
    schedule='linear',
    nesterov=nesterov,
    weight_decay=decay,
    adaptation=kind,
    trust_coefficient=0.02,
  )

  def leaf(p, g, memory, rate, step):
    g = adapted(kind, p, g, decay, 0.02)
    memory['m'] = 0.9 * memory['m'] + g
    return p - rate * (g + 0.9 * memory['m'] if nesterov else memory['m'])

  expected = updates.reference(
    leaf, layers, gradients, updates.linear_rates(5.0)
  )
  updates.assert_close(updates.run(options, layers, gradients), expected)


def norm(x):
  return np.sqrt(np.sum(np.square(np.float64(x))))


def test_adapted_step_has_the_trust_ratio(layers):
  # Without decay and momentum |Δw| = lr·trust·|w|, whatever the gradient.
  gradient = updates.gradients_of(layers, 1)[0]
  for kind in ('larc', 'lars'):
    options = optimizers.OptimizerOptions(
      name='sgd',
      learning_rate=0.5,
      schedule='constant',
      momentum=0.0,
      adaptation=kind,
    )
    for factor in (1.0, 1e-3, 1e3):
      scaled = jax.tree.map(
        lambda g, f=factor: np.float32(f) * np.asarray(g), gradient
      )
      after = updates.run(options, layers, [scaled])
      moved = jax.tree.map(
        lambda a, b: norm(np.asarray(a) - np.asarray(b)), after, layers
      )
      size = norm(layers['conv']['kernel'])
      np.testing.assert_allclose(
        moved['conv']['kernel'], 0.5 * 1e-3 * size, rtol=1e-3
      )
      # Zero parameters take the raw step; with lars, so do those of one axis.
      for path in (('conv', 'bias'), ('zero', 'kernel'), ('norm', 'bias')):
        raw = norm(scaled[path[0]][path[1]])
        np.testing.assert_allclose(
          moved[path[0]][path[1]], 0.5 * raw, rtol=1e-5
        )
      raw = norm(scaled['norm']['scale'])
      expected = 0.5 * raw if kind == 'lars' else 0.5 * 1e-3 * 2.0
      np.testing.assert_allclose(moved['norm']['scale'], expected, rtol=1e-3)


def test_larc_and_lars_divide_by_different_norms():
  params = {'kernel': jnp.array([[3.0, 4.0]])}
  gradient = {'kernel': jnp.array([[6.0, -8.0]])}
  options = updates.sgd_with_l2(
    learning_rate=1.0,
    schedule='constant',
    weight_decay=0.5,
    adaptation='larc',
    trust_coefficient=0.1,
  )
  # The decayed gradient is (7.5, -6); larc divides by 10 + 0.5·5, lars by its
  # norm √92.25.
  direction = np.array([[7.5, -6.0]])
  kernel = updates.run(options, params, [gradient])['kernel']
  expected = np.array([[3.0, 4.0]]) - 0.1 * 5 / 12.5 * direction
  np.testing.assert_allclose(kernel, expected, rtol=1e-6)
  options = dataclasses.replace(options, adaptation='lars')
  kernel = updates.run(options, params, [gradient])['kernel']
  expected = np.array([[3.0, 4.0]]) - 0.1 * 5 / np.sqrt(92.25) * direction
  np.testing.assert_allclose(kernel, expected, rtol=1e-6)


@pytest.mark.parametrize('kind', ['larc', 'lars'])
def test_groups_scale_rate_and_decay_of_adapted_parameters(layers, kind):
  options = adapted_options(
    kind,
    0.02,
    learning_rate=2.0,
    schedule='linear',
    groups=(
      ('^norm/', 0.0, 1.0),
      ('^conv/', 3.0, 0.5),
      ('^still/', 1.0, 0.0),
    ),
  )
  factors = {'norm': (0, 1), 'conv': (3, 0.5), 'still': (1, 0)}
  gradients = updates.gradients_of(layers)
  after = updates.run(options, layers, gradients)
  for name, tree in layers.items():
    rate_factor, decay_factor = factors.get(name, (1, 1))

    def leaf(p, g, memory, rate, step, x=rate_factor, decay=decay_factor):
      g = adapted(kind, p, g, 0.1 * decay, 0.02)
      memory['m'] = 0.9 * memory['m'] + g
      return p - x * rate * memory['m']

    trees = [gradient[name] for gradient in gradients]
    updates.assert_close(
      after[name],
      updates.reference(leaf, tree, trees, updates.linear_rates(2.0)),
    )


@pytest.mark.parametrize('kind', ['larc', 'lars'])
def test_norms_are_computed_over_all_shards(monkeypatch, kind):
  monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 16)
  rng = np.random.default_rng(0)
  params = {
    'kernel': jnp.array(rng.normal(size=(3, 3, 2, 8)), jnp.float32),
    'bias': jnp.array(rng.normal(size=8), jnp.float32),
  }
  options = adapted_options(kind, 0.1, learning_rate=1.0, schedule='constant')
  tx = optimizers.build_optimizer(options, updates.NUM_STEPS, params)
  shardings = sharding.state_shardings(sharding.make_mesh(4), params)
  assert 'fsdp' in shardings['kernel'].spec

  def update(params, gradient):
    changes, _ = tx.update(gradient, tx.init(params), params)
    return optax.apply_updates(params, changes)

  gradient = updates.gradients_of(params, 1)[0]
  sharded = [jax.device_put(tree, shardings) for tree in (params, gradient)]
  compiled = jax.jit(update, out_shardings=shardings).lower(*sharded).compile()
  updates.assert_close(compiled(*sharded), jax.jit(update)(params, gradient))
  # Only norms are exchanged, of 4 bytes each.
  exchanged = communication.list_collectives(compiled)
  assert exchanged
  for collective in exchanged:
    assert collective.kind == 'all-reduce' and collective.size <= 8


def test_lars_of_simclr(layers):
  """The momentum averages updates; no epsilon; biases and norms are plain."""
  gradients = updates.gradients_of(layers)
  options = updates.sgd_with_l2(
    learning_rate=5.0,
    schedule='linear',
    weight_decay=0.05,
    adaptation='lars',
    adaptation_eps=0.0,
    trust_coefficient=0.02,
    momentum_of='updates',
  )
  rates = updates.linear_rates(5.0)
  expected = jax.tree.map(
    lambda p, *gs: luss_comparators.simclr_lars_steps(p, gs, rates, 0.05, 0.02),
    updates.float64(layers),
    *map(updates.float64, gradients),
  )
  actual = updates.run(options, layers, gradients)
  updates.assert_close(actual, expected)
  # It differs from the momentum of gradients, as the rate changes.
  other = updates.run(
    dataclasses.replace(options, momentum_of='gradients'), layers, gradients
  )
  moved = np.abs(other['conv']['kernel'] - actual['conv']['kernel'])
  assert moved.max() > 1e-3


def test_a_learning_rate_that_does_not_follow_the_schedule(layers):
  """Of SimSiam's predictor; the other parameters decay."""
  gradients = updates.gradients_of(layers)
  options = updates.sgd_with_l2(
    learning_rate=0.5,
    schedule='linear',
    weight_decay=0.05,
    constant_rate='^still/',
  )

  def leaf(p, g, memory, rate, step):
    memory['m'] = 0.9 * memory['m'] + g + 0.05 * p
    return p - rate * memory['m']

  expected = {
    **updates.reference(leaf, layers, gradients, updates.linear_rates(0.5)),
    'still': updates.reference(
      leaf,
      layers['still'],
      [gradient['still'] for gradient in gradients],
      [0.5] * len(gradients),
    ),
  }
  updates.assert_close(updates.run(options, layers, gradients), expected)
  with pytest.raises(ValueError, match='constant_rate: expected a pattern'):
    optimizers.build_optimizer(
      dataclasses.replace(options, constant_rate='^head/'), 10, layers
    )
