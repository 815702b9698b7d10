"""Noise, targets and schedules of DDeP by hand."""

import numpy as np
import pytest

from tests.transcriptions import (
  ddep_noise,
)


def test_noise_levels_of_the_paper():
  assert ddep_noise.sigma_of(0.95) == pytest.approx(0.2294, abs=5e-5)
  assert np.sqrt(1 - 0.95) == pytest.approx(0.2236, abs=5e-5)
  assert ddep_noise.gamma_of(0.22) == pytest.approx(0.9538, abs=5e-5)
  assert ddep_noise.sigma_of(0.90) == pytest.approx(0.3333, abs=5e-5)
  assert ddep_noise.gamma_of(0.8) == pytest.approx(0.61, abs=5e-3)


def test_simple_noise_by_hand():
  clean = np.full((2, 1, 1, 1), 0.5)
  eps = np.ones_like(clean)
  unit = ddep_noise.simple_noise(clean, eps, 0.25)
  np.testing.assert_allclose(unit.ravel(), [1.0, 1.0])
  each = ddep_noise.simple_noise(clean, eps, np.array([0.25, 1.0]), 'symmetric')
  np.testing.assert_allclose(each.ravel(), [0.75, 1.5])


def test_scaled_noise_by_hand():
  clean = np.full((2, 1, 1, 1), 0.5)
  eps = np.ones_like(clean)
  result = ddep_noise.scaled_noise(clean, eps, np.array([0.64, 1.0]))
  np.testing.assert_allclose(result.ravel(), [0.8 * 0.5 + 0.6, 0.5])
  # x = 0.75 becomes 0.6 + 0.6 = 1.2, which is 1.4 on [-1, 1].
  unit = ddep_noise.scaled_noise(clean, eps, 0.64, 'unit')
  np.testing.assert_allclose(unit.ravel(), [1.4, 1.4])


def test_the_public_lines_are_equation_5(rng):
  clean = rng.uniform(-1, 1, (3, 4, 5, 3))
  eps = rng.normal(size=clean.shape)
  gamma = np.array([0.9, 0.95, 1.0])
  unit = ddep_noise.scaled_noise_of_unit_image((clean + 1) / 2, eps, gamma)
  expected = ddep_noise.scaled_noise(clean, eps, gamma)
  np.testing.assert_allclose(2 * unit - 1, expected, atol=1e-12)
  # And Eq. 5 with sigma: (1 + sigma²)^(-1/2) (y + sigma e).
  sigma = ddep_noise.sigma_of(0.95)
  by_sigma = (clean + sigma * eps) / np.sqrt(1 + sigma**2)
  np.testing.assert_allclose(
    ddep_noise.scaled_noise(clean, eps, 0.95), by_sigma, atol=1e-12
  )


def test_targets_by_hand():
  clean = np.full((2, 1, 1, 1), 0.5)
  eps = np.full_like(clean, 2.0)

  def values(kind, **level):
    return ddep_noise.noise_target(kind, clean, eps, **level).ravel().tolist()

  gamma = np.array([0.64, 1.0])
  assert values('eps', gamma=gamma) == [2.0, 0.0]
  assert values('eps_scaled', gamma=gamma) == pytest.approx([1.2, 0.0])
  assert values('x', gamma=gamma) == [0.5, 0.5]
  assert values('eps', sigma=0.3) == [2.0, 2.0]
  assert values('eps_scaled', sigma=0.3) == [0.6, 0.6]
  for level in ({}, {'gamma': 0.9, 'sigma': 0.1}):
    with pytest.raises(ValueError, match='gamma'):
      values('eps', **level)


def test_loss_is_a_mean():
  target = np.array([1.0, -1.0, 3.0, 1.0])
  assert ddep_noise.denoising_loss(np.zeros(4), target) == 3.0


def test_random_gamma_stops_at_one():
  result = ddep_noise.clipped_uniform(np.array([0.0, 0.5, 1.0]), 0.9, 1.2)
  np.testing.assert_allclose(result, [0.9, 1.0, 1.0])


def test_schedules_by_hand():
  linear = ddep_noise.gamma_schedule('linear', 0.5, 0.9, 3)
  np.testing.assert_allclose(linear, [0.9, 0.7, 0.5])
  product = ddep_noise.gamma_schedule('multiplicative', 0.5, 0.9, 3)
  np.testing.assert_allclose(product, [1.0, 0.9, 0.63])
