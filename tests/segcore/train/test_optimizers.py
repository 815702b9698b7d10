import dataclasses
import doctest
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from segcore.cost import communication
from segcore.distributed import sharding
from segcore.train import optimizers

NUM_STEPS = 10


@pytest.fixture
def params():
  return {
    'encoder': {'kernel': jnp.array([1.0, -2.0]), 'bias': jnp.array([0.5])},
    'decoder': {'kernel': jnp.array([[3.0], [0.25]])},
  }


def gradients_of(params, num_steps=5):
  rng = np.random.default_rng(0)
  return [
    jax.tree.map(
      lambda p: jnp.array(rng.normal(size=p.shape), jnp.float32), params
    )
    for _ in range(num_steps)
  ]


def run(options, params, gradients):
  """Returns the parameters after one jitted update with each gradient."""
  tx = optimizers.build_optimizer(options, NUM_STEPS, params)
  state = jax.jit(tx.init)(params)

  @jax.jit
  def update(params, state, gradient):
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  for gradient in gradients:
    params, state = update(params, state, gradient)
  return params


def float64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def reference(update_leaf, params, gradients, rates):
  """Applies `update_leaf(p, g, memory, rate, step)` in float64 to each leaf."""

  def leaf(p, *gs):
    memory = {'m': 0.0, 'v': 0.0}
    for step, (g, rate) in enumerate(zip(gs, rates, strict=True)):
      p = update_leaf(p, g, memory, rate, step)
    return p

  return jax.tree.map(leaf, float64(params), *map(float64, gradients))


def assert_close(actual, expected):
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6),
    actual,
    expected,
  )


def linear_rates(peak, num=5):
  return [peak * (NUM_STEPS - step) / NUM_STEPS for step in range(num)]


# Schedules.


@pytest.mark.parametrize(
  'name, decay',
  [
    ('cosine', lambda done: (1 + math.cos(math.pi * done)) / 2),
    ('poly', lambda done: (1 - done) ** 0.7),
    ('linear', lambda done: 1 - done),
    ('constant', lambda done: 1.0),
  ],
)
@pytest.mark.parametrize('warmup', [0, 25])
def test_schedules_equal_their_formulas(name, decay, warmup):
  final = 0.0 if name == 'constant' else 6e-4
  options = optimizers.OptimizerOptions(
    learning_rate=0.6,
    schedule=name,
    poly_power=0.7,
    final_learning_rate=final,
    warmup_steps=warmup,
  )
  rate = optimizers.learning_rate_schedule(options, 125)
  for step in (0, 1, 7, 24, 25, 26, 60, 100, 124, 125):
    if step < warmup:
      expected = 0.6 * step / warmup
    else:
      share = decay((step - warmup) / (125 - warmup))
      expected = final + (0.6 - final) * share
    learning_rate = rate(jnp.int32(step))
    assert learning_rate.dtype == jnp.float32 and learning_rate.shape == ()
    np.testing.assert_allclose(learning_rate, expected, rtol=1e-5, atol=1e-9)


def test_warmup_starts_at_a_fraction_of_the_peak():
  options = optimizers.OptimizerOptions(
    learning_rate=0.5,
    schedule='linear',
    warmup_steps=100,
    warmup_start=0.01,
  )
  rate = optimizers.learning_rate_schedule(options, 200)
  # A line from 0.005 to 0.5, and one from there to 0.
  for step, expected in {
    0: 0.005,
    1: 0.00995,
    50: 0.2525,
    99: 0.49505,
    100: 0.5,
    150: 0.25,
    200: 0.0,
  }.items():
    np.testing.assert_allclose(rate(step), expected, rtol=1e-6)


@pytest.mark.parametrize('name', ['cosine', 'poly', 'linear'])
@pytest.mark.parametrize('warmup', [0, 10_000])
def test_schedules_are_exact_at_their_ends(name, warmup):
  options = optimizers.OptimizerOptions(
    learning_rate=6e-5,
    schedule=name,
    final_learning_rate=1e-7,
    warmup_steps=warmup,
  )
  rate = jax.jit(optimizers.learning_rate_schedule(options, 2_500_000))
  assert rate(0) == np.float32(0.0 if warmup else 6e-5)
  assert rate(warmup) == np.float32(6e-5)
  assert rate(2_500_000) == rate(2_500_001) == np.float32(1e-7)


def test_warmup_must_be_shorter_than_the_schedule():
  options = optimizers.OptimizerOptions(learning_rate=1.0, warmup_steps=10)
  with pytest.raises(ValueError) as error:
    optimizers.learning_rate_schedule(options, 10)
  assert str(error.value) == (
    'warmup_steps: expected fewer than num_steps = 10, got 10'
  )
  with pytest.raises(ValueError, match='num_steps: expected >= 1, got 0'):
    optimizers.learning_rate_schedule(options, 0)


# Updates.


@pytest.mark.parametrize('mode', ['decoupled', 'l2'])
def test_adam_equals_reference(params, mode):
  gradients = gradients_of(params)
  options = optimizers.OptimizerOptions(
    name='adam',
    learning_rate=0.1,
    schedule='linear',
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

  assert_close(
    run(options, params, gradients),
    reference(leaf, params, gradients, linear_rates(0.1)),
  )


@pytest.mark.parametrize(
  'momentum, nesterov', [(0.0, False), (0.9, False), (0.9, True)]
)
@pytest.mark.parametrize('mode', ['decoupled', 'l2'])
def test_sgd_equals_reference(params, momentum, nesterov, mode):
  gradients = gradients_of(params)
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

  assert_close(
    run(options, params, gradients),
    reference(leaf, params, gradients, linear_rates(0.1)),
  )


def test_sgd_with_l2_equals_torch(params):
  torch = pytest.importorskip('torch')
  gradients = gradients_of(params)
  options = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=0.1,
    schedule='constant',
    weight_decay=0.2,
    weight_decay_mode='l2',
    nesterov=True,
  )
  leaf = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
  sgd = torch.optim.SGD(
    [leaf], 0.1, momentum=0.9, weight_decay=0.2, nesterov=True
  )
  for gradient in gradients:
    leaf.grad = torch.tensor(np.array(gradient['encoder']['kernel']))
    sgd.step()
  kernel = run(options, params, gradients)['encoder']['kernel']
  np.testing.assert_allclose(kernel, leaf.detach().numpy(), rtol=1e-5)


def test_first_update_uses_the_rate_of_step_zero(params):
  options = optimizers.OptimizerOptions(
    name='sgd', learning_rate=1.0, schedule='linear', warmup_steps=2
  )
  gradients = [jax.tree.map(jnp.ones_like, params)] * 3
  # Momentum 1, 1.9, 2.71 at rates 0, 1/2, 1.
  for num_steps, moved in ((1, 0.0), (2, 0.95), (3, 0.95 + 2.71)):
    after = run(options, params, gradients[:num_steps])
    np.testing.assert_allclose(after['encoder']['bias'], [0.5 - moved], 1e-6)


def test_clipping_uses_the_global_norm(params):
  options = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=1.0,
    schedule='constant',
    momentum=0.0,
    clip_norm=2.0,
  )
  # Norm √(4 + 4 + 1 + 16 + 0) = 5.
  gradient = {
    'encoder': {'kernel': jnp.array([2.0, -2.0]), 'bias': jnp.array([1.0])},
    'decoder': {'kernel': jnp.array([[4.0], [0.0]])},
  }
  expected = jax.tree.map(lambda p, g: p - g * 2 / 5, params, gradient)
  assert_close(run(options, params, [gradient]), expected)
  # Below the bound nothing changes.
  small = jax.tree.map(lambda g: g / 10, gradient)
  expected = jax.tree.map(lambda p, g: p - g, params, small)
  assert_close(run(options, params, [small]), expected)


# Layer-wise adaptation.


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
  return {
    'conv': {
      'kernel': jnp.array(rng.normal(size=(3, 3, 2, 4)), jnp.float32),
      'bias': jnp.zeros(4),
    },
    'norm': {'scale': jnp.ones(4), 'bias': jnp.zeros(4)},
    'zero': {'kernel': jnp.zeros((2, 3))},
    'still': {'kernel': jnp.array([[1.5, -2.0]]), 'bias': jnp.array([3.0])},
    'temperature': jnp.array(2.0),
  }


@pytest.mark.parametrize('kind', ['larc', 'lars'])
@pytest.mark.parametrize('decay', [0.0, 0.05])
@pytest.mark.parametrize('nesterov', [False, True])
def test_adaptation_equals_reference(layers, kind, decay, nesterov):
  gradients = gradients_of(layers)
  # One gradient is zero at first, others are from the second step on.
  gradients[0]['temperature'] = jnp.array(0.0)
  for gradient in gradients[1:]:
    gradient['still'] = jax.tree.map(jnp.zeros_like, layers['still'])
  options = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=5.0,
    schedule='linear',
    nesterov=nesterov,
    weight_decay=decay,
    weight_decay_mode='l2',
    adaptation=kind,
    trust_coefficient=0.02,
  )

  def leaf(p, g, memory, rate, step):
    g = adapted(kind, p, g, decay, 0.02)
    memory['m'] = 0.9 * memory['m'] + g
    return p - rate * (g + 0.9 * memory['m'] if nesterov else memory['m'])

  expected = reference(leaf, layers, gradients, linear_rates(5.0))
  assert_close(run(options, layers, gradients), expected)


def test_adapted_step_has_the_trust_ratio(layers):
  # Without decay and momentum |Δw| = lr·trust·|w|, whatever the gradient.
  gradient = gradients_of(layers, 1)[0]
  for kind in ('larc', 'lars'):
    options = optimizers.OptimizerOptions(
      name='sgd',
      learning_rate=0.5,
      schedule='constant',
      momentum=0.0,
      adaptation=kind,
    )
    for factor in (1.0, 1e-3, 1e3):
      scaled = jax.tree.map(lambda g, f=factor: f * g, gradient)
      after = run(options, layers, [scaled])
      moved = jax.tree.map(
        lambda a, b: float(jnp.linalg.norm(a - b)), after, layers
      )
      size = float(jnp.linalg.norm(layers['conv']['kernel']))
      np.testing.assert_allclose(
        moved['conv']['kernel'], 0.5 * 1e-3 * size, rtol=1e-3
      )
      # Zero parameters take the raw step; with lars, so do those of one axis.
      for path in (('conv', 'bias'), ('zero', 'kernel'), ('norm', 'bias')):
        raw = float(jnp.linalg.norm(scaled[path[0]][path[1]]))
        np.testing.assert_allclose(
          moved[path[0]][path[1]], 0.5 * raw, rtol=1e-5
        )
      raw = float(jnp.linalg.norm(scaled['norm']['scale']))
      expected = 0.5 * raw if kind == 'lars' else 0.5 * 1e-3 * 2.0
      np.testing.assert_allclose(moved['norm']['scale'], expected, rtol=1e-3)


def test_larc_and_lars_divide_by_different_norms():
  params = {'kernel': jnp.array([[3.0, 4.0]])}
  gradient = {'kernel': jnp.array([[6.0, -8.0]])}
  options = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=1.0,
    schedule='constant',
    weight_decay=0.5,
    weight_decay_mode='l2',
    adaptation='larc',
    trust_coefficient=0.1,
  )
  # The decayed gradient is (7.5, -6); larc divides by 10 + 0.5·5, lars by its
  # norm √92.25.
  direction = np.array([[7.5, -6.0]])
  kernel = run(options, params, [gradient])['kernel']
  expected = np.array([[3.0, 4.0]]) - 0.1 * 5 / 12.5 * direction
  np.testing.assert_allclose(kernel, expected, rtol=1e-6)
  options = dataclasses.replace(options, adaptation='lars')
  kernel = run(options, params, [gradient])['kernel']
  expected = np.array([[3.0, 4.0]]) - 0.1 * 5 / np.sqrt(92.25) * direction
  np.testing.assert_allclose(kernel, expected, rtol=1e-6)


@pytest.mark.parametrize('kind', ['larc', 'lars'])
def test_groups_scale_rate_and_decay_of_adapted_parameters(layers, kind):
  options = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=2.0,
    schedule='linear',
    weight_decay=0.1,
    weight_decay_mode='l2',
    adaptation=kind,
    trust_coefficient=0.02,
    groups=(
      ('^norm/', 0.0, 1.0),
      ('^conv/', 3.0, 0.5),
      ('^still/', 1.0, 0.0),
    ),
  )
  factors = {'norm': (0, 1), 'conv': (3, 0.5), 'still': (1, 0)}
  gradients = gradients_of(layers)
  after = run(options, layers, gradients)
  for name, tree in layers.items():
    rate_factor, decay_factor = factors.get(name, (1, 1))

    def leaf(p, g, memory, rate, step, x=rate_factor, decay=decay_factor):
      g = adapted(kind, p, g, 0.1 * decay, 0.02)
      memory['m'] = 0.9 * memory['m'] + g
      return p - x * rate * memory['m']

    trees = [gradient[name] for gradient in gradients]
    assert_close(after[name], reference(leaf, tree, trees, linear_rates(2.0)))


@pytest.mark.parametrize('kind', ['larc', 'lars'])
def test_norms_are_computed_over_all_shards(monkeypatch, kind):
  monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 16)
  rng = np.random.default_rng(0)
  params = {
    'kernel': jnp.array(rng.normal(size=(3, 3, 2, 8)), jnp.float32),
    'bias': jnp.array(rng.normal(size=8), jnp.float32),
  }
  options = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=1.0,
    schedule='constant',
    weight_decay=0.1,
    weight_decay_mode='l2',
    adaptation=kind,
    trust_coefficient=0.1,
  )
  tx = optimizers.build_optimizer(options, NUM_STEPS, params)
  shardings = sharding.state_shardings(sharding.make_mesh(4), params)
  assert 'fsdp' in shardings['kernel'].spec

  def update(params, gradient):
    updates, _ = tx.update(gradient, tx.init(params), params)
    return optax.apply_updates(params, updates)

  gradient = gradients_of(params, 1)[0]
  sharded = [jax.device_put(tree, shardings) for tree in (params, gradient)]
  compiled = jax.jit(update, out_shardings=shardings).lower(*sharded).compile()
  assert_close(compiled(*sharded), update(params, gradient))
  # Only norms are exchanged, of 4 bytes each.
  exchanged = communication.list_collectives(compiled)
  assert exchanged
  for collective in exchanged:
    assert collective.kind == 'all-reduce' and collective.size <= 8


# Groups.

GROUPS = (('bias$', 2.0, 0.0), ('^decoder/', 10.0, 0.5), ('encoder', 1.0, 3.0))


@pytest.mark.parametrize('mode', ['decoupled', 'l2'])
def test_groups_equal_values_by_hand(params, mode):
  options = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=0.01,
    schedule='constant',
    momentum=0.0,
    weight_decay=0.1,
    weight_decay_mode=mode,
    groups=GROUPS,
  )
  after = run(options, params, [jax.tree.map(jnp.ones_like, params)])
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
  assert_close(after, expected)


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
  gradients = gradients_of(params)
  after = run(options, params, gradients)
  jax.tree.map(
    np.testing.assert_array_equal, after['encoder'], params['encoder']
  )
  # Frozen parameters have no share in the global norm.
  alone = {'decoder': params['decoder']}
  without = dataclasses.replace(options, groups=())
  expected = run(without, alone, [{'decoder': g['decoder']} for g in gradients])
  jax.tree.map(
    np.testing.assert_array_equal, after['decoder'], expected['decoder']
  )
  # Only trained parameters have moments.
  state = optimizers.build_optimizer(options, NUM_STEPS, params).init(params)
  sizes = [leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim]
  assert sizes == [2, 2]


def test_groups_without_effect_are_refused(params):
  def message(*groups):
    options = optimizers.OptimizerOptions(learning_rate=1.0, groups=groups)
    with pytest.raises(ValueError) as error:
      optimizers.build_optimizer(options, NUM_STEPS, params)
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
  tx = optimizers.build_optimizer(options, NUM_STEPS, shapes)
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
  updates, after = jax.eval_shape(tx.update, shapes, expected, shapes)
  assert after == expected and updates == shapes


# Options.


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'name': 'lars'}, "name: expected one of adam, sgd, got 'lars'"),
    (
      {'schedule': 'step'},
      "schedule: expected one of cosine, poly, linear, constant, got 'step'",
    ),
    (
      {'weight_decay_mode': 'L2'},
      "weight_decay_mode: expected one of decoupled, l2, got 'L2'",
    ),
    (
      {'learning_rate': 0.0},
      'learning_rate: expected a number > 0, got 0.0',
    ),
    (
      {'learning_rate': float('nan')},
      'learning_rate: expected a number > 0, got nan',
    ),
    (
      {'learning_rate': '1e-3'},
      "learning_rate: expected a number > 0, got '1e-3'",
    ),
    ({'poly_power': 0.0}, 'poly_power: expected a number > 0, got 0.0'),
    (
      {'final_learning_rate': 2.0},
      'final_learning_rate: expected a number >= 0 and <= 1, got 2.0',
    ),
    (
      {'final_learning_rate': 0.5, 'schedule': 'constant'},
      "final_learning_rate: expected 0 with schedule='constant', got 0.5",
    ),
    ({'b1': 1.0}, 'b1: expected a number >= 0 and < 1, got 1.0'),
    ({'b2': -0.1}, 'b2: expected a number >= 0 and < 1, got -0.1'),
    ({'eps': 0.0}, 'eps: expected a number > 0, got 0.0'),
    ({'momentum': 1.5}, 'momentum: expected a number >= 0 and < 1, got 1.5'),
    (
      {'nesterov': True},
      "nesterov: expected False unless name='sgd' and momentum > 0, got True",
    ),
    (
      {'nesterov': True, 'name': 'sgd', 'momentum': 0.0},
      "nesterov: expected False unless name='sgd' and momentum > 0, got True",
    ),
    (
      {'weight_decay': -1e-4},
      'weight_decay: expected a number >= 0, got -0.0001',
    ),
    ({'clip_norm': True}, 'clip_norm: expected a number >= 0, got True'),
    (
      {'warmup_steps': -1},
      'warmup_steps: expected an integer >= 0, got -1',
    ),
    (
      {'warmup_steps': 1.5},
      'warmup_steps: expected an integer >= 0, got 1.5',
    ),
    (
      {'warmup_start': 1.0, 'warmup_steps': 5},
      'warmup_start: expected a number >= 0 and < 1, got 1.0',
    ),
    (
      {'warmup_start': 0.01},
      'warmup_start: expected 0 without warmup_steps, got 0.01',
    ),
    (
      {'name': 'sgd', 'adaptation': 'lamb'},
      "adaptation: expected one of none, larc, lars, got 'lamb'",
    ),
    (
      {'adaptation': 'larc'},
      "adaptation: expected none with name='adam', got 'larc'",
    ),
    (
      {'name': 'sgd', 'adaptation': 'lars', 'weight_decay': 1e-5},
      "weight_decay_mode: expected l2 with adaptation='lars', which decays "
      "gradients, got 'decoupled'",
    ),
    (
      {'trust_coefficient': 0.0},
      'trust_coefficient: expected a number > 0, got 0.0',
    ),
    (
      {'groups': (('a', 1.0),)},
      'groups[0]: expected (pattern, learning-rate and weight-decay factor), '
      "got ('a', 1.0)",
    ),
    (
      {'groups': (('a', 1.0, 1.0), ('b', -1.0, 1.0))},
      'groups[1] learning-rate factor: expected a number >= 0, got -1.0',
    ),
    (
      {'groups': (('(', 1.0, 1.0),)},
      'groups[0] pattern: expected a regular expression (missing ), '
      "unterminated subpattern at position 0), got '('",
    ),
  ],
)
def test_impossible_options_are_refused(changes, message):
  # Without jaxtyping's checks, as in production, the options' own checks run.
  jaxtyping.config.update('jaxtyping_disable', True)
  try:
    with pytest.raises(ValueError) as error:
      optimizers.OptimizerOptions(**{'learning_rate': 1.0, **changes})
  finally:
    jaxtyping.config.update('jaxtyping_disable', False)
  assert str(error.value) == message


def test_describe():
  assert optimizers.describe_optimizer(
    optimizers.OptimizerOptions(
      name='sgd',
      learning_rate=0.01,
      schedule='poly',
      warmup_steps=1500,
      weight_decay=1e-4,
      weight_decay_mode='l2',
      groups=(('norm', 0.0, 1.0), ('^decoder/', 10.0, 1.0)),
    ),
    40_000,
  ) == (
    'sgd (momentum 0.9), learning rate 0.01, warm-up of 1,500 steps, poly 0.9 '
    "to 0 at step 40,000, l2 weight decay 0.0001, 'norm' frozen, "
    "'^decoder/' x10, decay x1"
  )
  larc = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=0.6,
    final_learning_rate=6e-4,
    weight_decay=1e-6,
    weight_decay_mode='l2',
    adaptation='larc',
  )
  assert optimizers.describe_optimizer(larc, 300_600) == (
    'sgd (momentum 0.9), larc (trust 0.001), learning rate 0.6, cosine to '
    '0.0006 at step 300,600, larc weight decay 1e-06'
  )
  lars = dataclasses.replace(
    larc, adaptation='lars', warmup_steps=5, warmup_start=0.01
  )
  assert optimizers.describe_optimizer(lars, 10) == (
    'sgd (momentum 0.9), lars (trust 0.001, two axes or more), learning rate '
    '0.6, warm-up of 5 steps from 0.006, cosine to 0.0006 at step 10, lars '
    'weight decay 1e-06'
  )
  assert optimizers.describe_optimizer(
    optimizers.OptimizerOptions(learning_rate=1e-3, schedule='constant'), 5000
  ) == (
    'adam (b1 0.9, b2 0.999, eps 1e-08), learning rate 0.001, constant for '
    '5,000 steps'
  )


def test_the_examples_are_true():
  assert doctest.testmod(optimizers).failed == 0
