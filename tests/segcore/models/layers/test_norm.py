"""Norms against their formulas, written out for one group at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models.layers import norm


def _normalized(group, epsilon):
  return (group - group.mean()) / np.sqrt(group.var() + epsilon)


@pytest.mark.parametrize('shape', [(2, 4, 6, 12), (3, 12)])
def test_group_norm_is_its_formula(shape):
  rng = np.random.default_rng(0)
  x = rng.normal(3.0, 2.0, shape)
  scale, bias = rng.normal(size=(2, 12))
  expected = np.empty(shape)
  for b in range(shape[0]):
    for g in range(4):
      group = (b, ..., slice(3 * g, 3 * g + 3))
      expected[group] = _normalized(x[group], 1e-3)
  expected = expected * scale + bias

  params = {'scale': jnp.float32(scale), 'bias': jnp.float32(bias)}
  found = norm.GroupNorm(4, 1e-3).apply({'params': params}, jnp.float32(x))

  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_group_norm_keeps_statistics_in_float32():
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(8.0, 1.0, (2, 64, 64, 4)), jnp.bfloat16)
  layer = norm.GroupNorm(2, dtype=jnp.bfloat16)

  found, variables = layer.init_with_output(jax.random.key(0), x)

  exact = np.asarray(x, np.float64)
  expected = np.stack(
    [
      np.concatenate(
        [_normalized(e[..., :2], 1e-6), _normalized(e[..., 2:], 1e-6)], -1
      )
      for e in exact
    ]
  )
  assert found.dtype == jnp.bfloat16
  # Half a unit in the last place of bfloat16 from 4 to 8.
  np.testing.assert_allclose(np.float64(found), expected, atol=2**-6)
  assert {p.dtype for p in jax.tree.leaves(variables)} == {np.dtype('float32')}


def test_a_constant_map_becomes_the_bias():
  x = jnp.full((1, 4, 4, 8), 7.0)
  params = {'scale': jnp.full(8, 2.0), 'bias': jnp.arange(8.0)}
  found = norm.GroupNorm(2).apply({'params': params}, x)
  np.testing.assert_allclose(
    found, np.broadcast_to(np.arange(8.0), x.shape), atol=1e-2
  )


def test_a_zero_scale_starts_the_norm_at_zero():
  x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
  layer = norm.GroupNorm(2, zero_scale=True)
  found, _ = layer.init_with_output(jax.random.key(0), x)
  np.testing.assert_array_equal(found, jnp.zeros_like(x))


def test_groups_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match='24 channels do not form 32 groups'):
    norm.GroupNorm().init(jax.random.key(0), jnp.zeros((1, 4, 4, 24)))


def test_an_unknown_norm_is_refused():
  with pytest.raises(ValueError, match="norm='layer' is none of group, batch"):
    norm.make_norm(
      'layer',
      train=True,
      num_groups=1,
      epsilon=1e-6,
      dtype=jnp.float32,
      name='norm',
    )


def test_batch_norm_collects_and_then_uses_running_statistics():
  x = jnp.asarray(np.random.default_rng(2).normal(3.0, 2.0, (4, 4, 4, 2)))

  def layer(train):
    return norm.make_norm(
      'batch',
      train=train,
      num_groups=1,
      epsilon=1e-6,
      dtype=jnp.float32,
      name='norm',
    )

  variables = layer(True).init(jax.random.key(0), x)
  found, updated = layer(True).apply(variables, x, mutable=['batch_stats'])
  mean, var = np.mean(x, (0, 1, 2)), np.var(x, (0, 1, 2))
  np.testing.assert_allclose(found, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
  stats = updated['batch_stats']
  np.testing.assert_allclose(stats['mean'], 0.01 * mean, rtol=1e-5)
  np.testing.assert_allclose(stats['var'], 0.99 + 0.01 * var, rtol=1e-5)
  found = layer(False).apply({**variables, **updated}, x)
  expected = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_modulation_starts_as_the_identity_and_is_its_formula():
  rng = np.random.default_rng(3)
  x = jnp.float32(rng.normal(size=(2, 4, 4, 3)))
  embedding = jnp.float32(rng.normal(size=(2, 5)))
  layer = norm.Modulation()
  found, _ = layer.init_with_output(jax.random.key(0), x, embedding)
  np.testing.assert_array_equal(found, x)

  kernel, bias = rng.normal(size=(5, 6)), rng.normal(size=6)
  params = {'dense': {'kernel': jnp.float32(kernel), 'bias': jnp.float32(bias)}}
  found = layer.apply({'params': params}, x, embedding)
  both = (np.asarray(embedding) @ kernel + bias)[:, None, None]
  expected = (1 + both[..., :3]) * np.asarray(x) + both[..., 3:]
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_noise_embedding_is_its_formula():
  layer = norm.NoiseEmbedding(size=4)
  level = jnp.array([0.25, 1.0])
  params = layer.init(jax.random.key(0), level)['params']
  found = layer.apply({'params': params}, level)

  def silu(x):
    return x / (1 + np.exp(-x))

  for row, gamma in zip(found, (0.25, 1.0), strict=True):
    t = 1000 * gamma
    x = np.array([np.sin(t), np.sin(t / 100), np.cos(t), np.cos(t / 100)])
    for name in ('dense1', 'dense2'):
      x = silu(x @ np.asarray(params[name]['kernel']) + params[name]['bias'])
    # The sine of 1000 in float32 is good to 1000·2^-24.
    np.testing.assert_allclose(row, x, atol=1e-4)
