import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.train import optimizers
from tests.segcore.train import updates


@pytest.fixture
def params():
  return {
    'encoder': {'kernel': jnp.array([1.0, -2.0]), 'bias': jnp.array([0.5])},
    'decoder': {'kernel': jnp.array([[3.0], [0.25]])},
  }


# Updates.


@pytest.mark.parametrize('mode', ['decoupled', 'l2'])
def test_adam_equals_reference(params, mode):
  gradients = updates.gradients_of(params)
  options = optimizers.OptimizerOptions(
    name='adam',
    schedule='linear',
    learning_rate=0.1,
    b1=0.8,
    b2=0.95,
    eps=1e-3,
    weight_decay=0.3,
    weight_decay_mode=mode,
  )

  def leaf(p, g, memory, rate, step):
    g = g + 0.3 * p if mode == 'l2' else g
    memory['m'] = 0.8 * memory['m'] + 0.2 * g
    memory['v'] = 0.95 * memory['v'] + 0.05 * g**2
    m = memory['m'] / (1 - 0.8 ** (step + 1))
    v = memory['v'] / (1 - 0.95 ** (step + 1))
    decayed = p - rate * 0.3 * p if mode == 'decoupled' else p
    return decayed - rate * m / (np.sqrt(v) + 1e-3)

  updates.assert_close(
    updates.run(options, params, gradients),
    updates.reference(leaf, params, gradients, updates.linear_rates(0.1)),
  )


@pytest.mark.parametrize(
  'momentum, nesterov', [(0.0, False), (0.9, False), (0.9, True)]
)
@pytest.mark.parametrize('mode', ['decoupled', 'l2'])
def test_sgd_equals_reference(params, momentum, nesterov, mode):
  gradients = updates.gradients_of(params)
  options = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=0.1,
    schedule='linear',
    momentum=momentum,
    nesterov=nesterov,
    weight_decay=0.2,
    weight_decay_mode=mode,
  )

  def leaf(p, g, memory, rate, step):
    g = g + 0.2 * p if mode == 'l2' else g
    memory['m'] = momentum * memory['m'] + g
    direction = g + momentum * memory['m'] if nesterov else memory['m']
    if mode == 'decoupled':
      direction = direction + 0.2 * p
    return p - rate * direction

  updates.assert_close(
    updates.run(options, params, gradients),
    updates.reference(leaf, params, gradients, updates.linear_rates(0.1)),
  )


def test_sgd_with_l2_equals_torch(params):
  torch = pytest.importorskip('torch')
  gradients = updates.gradients_of(params)
  options = updates.sgd_with_l2(
    learning_rate=0.1,
    schedule='constant',
    weight_decay=0.2,
    nesterov=True,
  )
  leaf = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
  sgd = torch.optim.SGD(
    [leaf], 0.1, momentum=0.9, weight_decay=0.2, nesterov=True
  )
  for gradient in gradients:
    leaf.grad = torch.tensor(np.array(gradient['encoder']['kernel']))
    sgd.step()
  kernel = updates.run(options, params, gradients)['encoder']['kernel']
  np.testing.assert_allclose(kernel, leaf.detach().numpy(), rtol=1e-5)


def test_first_update_uses_the_rate_of_step_zero(params):
  options = optimizers.OptimizerOptions(
    name='sgd', learning_rate=1.0, schedule='linear', warmup_steps=2
  )
  gradients = [jax.tree.map(jnp.ones_like, params)] * 3
  # Momentum 1, 1.9, 2.71 at rates 0, 1/2, 1.
  for num_steps, moved in ((1, 0.0), (2, 0.95), (3, 0.95 + 2.71)):
    after = updates.run(options, params, gradients[:num_steps])
    np.testing.assert_allclose(after['encoder']['bias'], [0.5 - moved], 1e-6)


def test_clipping_uses_the_global_norm(params):
  options = updates.plain_sgd(learning_rate=1.0, clip_norm=2.0)
  # Norm √(4 + 4 + 1 + 16 + 0) = 5.
  gradient = {
    'encoder': {'kernel': jnp.array([2.0, -2.0]), 'bias': jnp.array([1.0])},
    'decoder': {'kernel': jnp.array([[4.0], [0.0]])},
  }
  expected = jax.tree.map(lambda p, g: p - g * 2 / 5, params, gradient)
  updates.assert_close(updates.run(options, params, [gradient]), expected)
  # Below the bound nothing changes.
  small = jax.tree.map(lambda g: g / 10, gradient)
  expected = jax.tree.map(lambda p, g: p - g, params, small)
  updates.assert_close(updates.run(options, params, [small]), expected)


# Groups.

GROUPS = (('bias$', 2.0, 0.0), ('^decoder/', 10.0, 0.5), ('encoder', 1.0, 3.0))


@pytest.mark.parametrize('mode', ['decoupled', 'l2'])
def test_groups_equal_values_by_hand(params, mode):
  options = updates.plain_sgd(
    learning_rate=0.01,
    weight_decay=0.1,
    weight_decay_mode=mode,
    groups=GROUPS,
  )
  after = updates.run(options, params, [jax.tree.map(jnp.ones_like, params)])
  # p - 0.01·factor·(1 + 0.1·factor·p); without momentum the modes are equal.
  expected = {
    'encoder': {
      'kernel': np.array([1 - 0.01 * 1.3, -2 - 0.01 * (1 - 0.6)]),
      'bias': np.array([0.5 - 0.02]),
    },
    'decoder': {
      'kernel': np.array([[3 - 0.1 * 1.15], [0.25 - 0.1 * 1.0125]]),
    },
  }
  updates.assert_close(after, expected)


def test_first_matching_group_decides():
  assert optimizers.find_parameter_group('encoder/bias', GROUPS) == 0
  assert optimizers.find_parameter_group('decoder/bias', GROUPS) == 0
  assert optimizers.find_parameter_group('decoder/bias/x', GROUPS) == 1
  assert optimizers.find_parameter_group('a/decoder/x', GROUPS) is None
  assert optimizers.find_parameter_group('a/encoder/x', GROUPS) == 2
  options = optimizers.OptimizerOptions(learning_rate=1.0, groups=GROUPS)
  assert options.factors('decoder/x') == (10.0, 0.5)
  assert options.factors('heads/x') == (1.0, 1.0)


def test_learning_rate_factor_of_zero_freezes(params):
  options = optimizers.OptimizerOptions(
    learning_rate=0.1,
    schedule='constant',
    weight_decay=0.1,
    clip_norm=1.0,
    groups=(('^encoder/', 0.0, 1.0),),
  )
  gradients = updates.gradients_of(params)
  after = updates.run(options, params, gradients)
  jax.tree.map(
    np.testing.assert_array_equal, after['encoder'], params['encoder']
  )
  # Frozen parameters have no share in the global norm.
  alone = {'decoder': params['decoder']}
  without = dataclasses.replace(options, groups=())
  expected = updates.run(
    without, alone, [{'decoder': g['decoder']} for g in gradients]
  )
  jax.tree.map(
    np.testing.assert_array_equal, after['decoder'], expected['decoder']
  )
  # Only trained parameters have moments.
  state = optimizers.build_optimizer(options, updates.NUM_STEPS, params).init(
    params
  )
  sizes = [leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim]
  assert sizes == [2, 2]


def test_groups_without_effect_are_refused(params):
  def message(*groups):
    options = optimizers.OptimizerOptions(learning_rate=1.0, groups=groups)
    with pytest.raises(ValueError) as error:
      optimizers.build_optimizer(options, updates.NUM_STEPS, params)
    return str(error.value)

  assert message(('bias', 1.0, 0.0), ('head', 10.0, 1.0)) == (
    "groups[1]: expected a pattern of parameters, got 'head', which matches "
    'none of the 3 parameters, such as decoder/kernel, encoder/bias, '
    'encoder/kernel'
  )
  assert message(('encoder', 1.0, 0.0), ('encoder/bias', 10.0, 1.0)) == (
    'groups[1]: expected a parameter that no earlier group matches, got '
    "'encoder/bias', whose encoder/bias is matched by 'encoder' before: put "
    'it first'
  )


# State.


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize(
  'fields',
  [
    {'name': 'adam'},
    {'name': 'sgd'},
    {'name': 'sgd', 'adaptation': 'larc', 'weight_decay_mode': 'l2'},
    {'name': 'sgd', 'adaptation': 'lars', 'weight_decay_mode': 'l2'},
  ],
)
def test_state_has_the_structure_of_its_shapes(params, fields, frozen):
  options = optimizers.OptimizerOptions(
    **fields,
    learning_rate=0.1,
    weight_decay=0.1,
    clip_norm=1.0,
    groups=(('bias', 0.0 if frozen else 3.0, 0.0),),
  )
  shapes = jax.eval_shape(lambda: params)
  tx = optimizers.build_optimizer(options, updates.NUM_STEPS, shapes)
  expected = jax.eval_shape(tx.init, shapes)
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  shardings = jax.tree.map(lambda _: everywhere, expected)
  state = jax.jit(tx.init, out_shardings=shardings)(params)
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  for leaf in jax.tree.leaves(state):
    assert isinstance(leaf, jax.Array) and leaf.sharding == everywhere
  # An update keeps structure, shapes and types, so the state can be donated.
  changes, after = jax.eval_shape(tx.update, shapes, expected, shapes)
  assert after == expected and changes == shapes
