"""Norms against their formulas, for one group at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models.layers import norm


def _apply(layer, params, *inputs):
  """Applies a layer with these parameters."""
  return jax.jit(layer.apply)({'params': params}, *inputs)


def _initialize(layer, *inputs):
  """Returns the output with the initial parameters, and these."""
  return jax.jit(layer.init_with_output)(jax.random.key(0), *inputs)


def _normalized(group, epsilon):
  return (group - group.mean()) / np.sqrt(group.var() + epsilon)


@pytest.mark.parametrize('shape', [(2, 4, 6, 12), (3, 12)])
def test_group_norm_equals_its_formula(shape):
  rng = np.random.default_rng(0)
  x = rng.normal(3.0, 2.0, shape)
  scale, bias = rng.normal(size=(2, 12))
  expected = np.empty(shape)
  for b in range(shape[0]):
    for g in range(4):
      group = (b, ..., slice(3 * g, 3 * g + 3))
      expected[group] = _normalized(x[group], 1e-3)
  expected = expected * scale + bias

  params = {'scale': np.float32(scale), 'bias': np.float32(bias)}
  # Not compiled: fused operations round otherwise.
  output = norm.GroupNorm(4, 1e-3).apply({'params': params}, jnp.float32(x))

  np.testing.assert_allclose(output, expected, atol=2e-5)


def test_group_norm_keeps_statistics_in_float32():
  rng = np.random.default_rng(1)
  x = rng.normal(8.0, 1.0, (2, 64, 64, 4)).astype(jnp.bfloat16)
  layer = norm.GroupNorm(2, dtype=jnp.bfloat16)

  output, variables = _initialize(layer, x)

  exact = np.asarray(x, np.float64)
  expected = np.stack(
    [
      np.concatenate(
        [_normalized(e[..., :2], 1e-6), _normalized(e[..., 2:], 1e-6)], -1
      )
      for e in exact
    ]
  )
  assert output.dtype == jnp.bfloat16
  # Half a unit in the last place of bfloat16 from 4 to 8.
  np.testing.assert_allclose(np.float64(output), expected, atol=2**-6)
  assert {p.dtype for p in jax.tree.leaves(variables)} == {np.dtype('float32')}


def test_group_norm_of_a_constant_map_is_the_bias():
  x = np.full((1, 4, 4, 8), 7.0, np.float32)
  params = {'scale': np.full(8, 2.0), 'bias': np.arange(8.0)}
  output = _apply(norm.GroupNorm(2), jax.tree.map(np.float32, params), x)
  np.testing.assert_allclose(
    output, np.broadcast_to(np.arange(8.0), x.shape), atol=1e-2
  )


def test_zero_scale_makes_the_initial_output_0():
  x = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
  output, _ = _initialize(norm.GroupNorm(2, zero_scale=True), x)
  np.testing.assert_array_equal(output, np.zeros_like(x))


def test_groups_that_do_not_divide_the_channels_are_refused():
  with pytest.raises(ValueError, match='a multiple of num_groups=32, got 24'):
    norm.GroupNorm().init(jax.random.key(0), jnp.zeros((1, 4, 4, 24)))


def make_norm(kind, train):
  return norm.make_norm(
    kind,
    train=train,
    num_groups=1,
    epsilon=1e-6,
    dtype=jnp.float32,
    name='norm',
  )


def test_unknown_norm_is_refused():
  with pytest.raises(
    ValueError, match="norm: expected group or batch, got 'layer'"
  ):
    make_norm('layer', train=True)


def test_batch_norm_collects_and_then_uses_running_statistics():
  x = np.float32(np.random.default_rng(2).normal(3.0, 2.0, (4, 4, 4, 2)))
  layer = make_norm('batch', train=True)

  @jax.jit
  def train(x):
    variables = layer.init(jax.random.key(0), x)
    return variables, *layer.apply(variables, x, mutable=['batch_stats'])

  variables, output, updated = jax.device_get(train(x))
  mean, var = np.mean(x, (0, 1, 2)), np.var(x, (0, 1, 2))
  np.testing.assert_allclose(
    output, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5
  )
  stats = updated['batch_stats']
  np.testing.assert_allclose(stats['mean'], 0.01 * mean, rtol=1e-5)
  np.testing.assert_allclose(stats['var'], 0.99 + 0.01 * var, rtol=1e-5)
  evaluate = jax.jit(make_norm('batch', train=False).apply)
  output = evaluate({**variables, **updated}, x)
  expected = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  np.testing.assert_allclose(output, expected, atol=1e-5)


def test_modulation_starts_as_the_identity_and_equals_its_formula():
  rng = np.random.default_rng(3)
  x = np.float32(rng.normal(size=(2, 4, 4, 3)))
  embedding = np.float32(rng.normal(size=(2, 5)))
  layer = norm.Modulation()
  output, _ = _initialize(layer, x, embedding)
  np.testing.assert_array_equal(output, x)

  kernel, bias = rng.normal(size=(5, 6)), rng.normal(size=6)
  params = {'dense': {'kernel': np.float32(kernel), 'bias': np.float32(bias)}}
  output = _apply(layer, params, x, embedding)
  parameters = (embedding @ kernel + bias)[:, None, None]
  expected = (1 + parameters[..., :3]) * x + parameters[..., 3:]
  np.testing.assert_allclose(output, expected, atol=1e-5)


def test_noise_embedding_equals_its_formula():
  layer = norm.NoiseEmbedding(size=4)
  output, variables = _initialize(layer, np.float32([0.25, 1.0]))
  params = jax.device_get(variables['params'])

  def silu(x):
    return x / (1 + np.exp(-x))

  for row, gamma in zip(output, (0.25, 1.0), strict=True):
    t = 1000 * gamma
    x = np.array([np.sin(t), np.sin(t / 100), np.cos(t), np.cos(t / 100)])
    for name in ('dense1', 'dense2'):
      x = silu(x @ np.asarray(params[name]['kernel']) + params[name]['bias'])
    # The sine of 1000 in float32 is good to 1000·2^-24.
    np.testing.assert_allclose(row, x, atol=1e-4)
