"""Updates of parameters by an optimizer, and by a formula."""

import jax
import numpy as np
import optax

from segcore.train import optimizers

NUM_STEPS = 10


def sgd_with_l2(**fields):
  """Returns options of SGD whose decay is part of the gradient."""
  return optimizers.OptimizerOptions(
    name='sgd', weight_decay_mode='l2', **fields
  )


def plain_sgd(**fields):
  """Returns options of SGD without momentum, at a constant learning rate."""
  return optimizers.OptimizerOptions(
    name='sgd', schedule='constant', momentum=0.0, **fields
  )


def gradients_of(params, num_steps=5):
  """Draws a gradient for each step."""
  rng = np.random.default_rng(0)
  return [
    jax.tree.map(
      lambda p: jax.device_put(rng.normal(size=p.shape).astype(np.float32)),
      params,
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
  """Returns the first learning rates of a line from the peak to 0."""
  return [peak * (NUM_STEPS - step) / NUM_STEPS for step in range(num)]
