"""Schedules of the learning rate against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.train import optimizers
from tests.transcriptions import afa, luss_comparators


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


@pytest.mark.parametrize('power', [1.0, 0.9])
def test_a_warmed_poly_starts_at_step_0(power):
  """The learning rate of mmcv: the warm-up multiplies the decay."""
  options = optimizers.OptimizerOptions(
    learning_rate=6e-5,
    schedule='warmed_poly',
    poly_power=power,
    warmup_steps=1500,
    warmup_start=1e-6,
  )
  rate = optimizers.learning_rate_schedule(options, 40_000)
  for step in (0, 1, 700, 1499, 1500, 1501, 20_000, 39_999, 40_000):
    expected = 6e-5 * (1 - step / 40_000) ** power
    if step < 1500:
      expected *= 1 - (1 - step / 1500) * (1 - 1e-6)
    np.testing.assert_allclose(rate(jnp.int32(step)), expected, rtol=1e-4)


def test_a_schedule_by_epochs_has_one_rate_an_epoch():
  options = optimizers.OptimizerOptions(
    learning_rate=0.03, final_learning_rate=6e-4, schedule_interval=7
  )
  rate = optimizers.learning_rate_schedule(options, 70)
  actual = rate(jnp.arange(70))
  expected = [
    luss_comparators.epoch_cosine(step, 7, 10, 0.03, 6e-4) for step in range(70)
  ]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_epochs_are_counted_after_the_first_steps():
  """Of AdCo, whose rate is constant while the negatives are filled."""
  options = optimizers.OptimizerOptions(
    learning_rate=0.03,
    final_learning_rate=6e-4,
    schedule_interval=7,
    warmup_steps=5,
    warmup_start=1.0,
  )
  actual = optimizers.learning_rate_schedule(options, 75)(jnp.arange(75))
  np.testing.assert_allclose(actual[:5], 0.03, rtol=1e-6)
  expected = [
    luss_comparators.epoch_cosine(step, 7, 10, 0.03, 6e-4) for step in range(70)
  ]
  np.testing.assert_allclose(actual[5:], expected, rtol=1e-5)


def test_milestones():
  options = optimizers.OptimizerOptions(
    learning_rate=0.1, schedule='steps', milestones=(3, 6, 9)
  )
  actual = optimizers.learning_rate_schedule(options, 10)(jnp.arange(10))
  expected = [0.1] * 3 + [0.01] * 3 + [1e-3] * 3 + [1e-4]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_switched_poly_drops_at_the_end_of_the_warm_up():
  """Of AFA: from 6e-5 to 0.925 of it at iteration 1500."""
  options = optimizers.OptimizerOptions(
    learning_rate=6e-5,
    schedule='switched_poly',
    poly_power=1.0,
    warmup_steps=1500,
    warmup_start=1e-6,
  )
  rate = optimizers.learning_rate_schedule(options, 20_000)
  for step in (0, 1, 700, 1499, 1500, 1501, 19_999):
    expected = 6e-5 * afa.rate_factor(step)
    np.testing.assert_allclose(rate(step), expected, rtol=1e-5, atol=1e-12)
  np.testing.assert_allclose(rate(1500), 0.925 * 6e-5, rtol=1e-6)


def test_a_schedule_may_be_longer_than_the_training():
  options = optimizers.OptimizerOptions(
    learning_rate=0.5, schedule='poly', schedule_steps=100
  )
  rate = optimizers.learning_rate_schedule(options, 40)
  np.testing.assert_allclose(rate(39), 0.5 * 0.61**0.9, rtol=1e-6)
  assert 'at step 100' in optimizers.describe_optimizer(options, 40)
