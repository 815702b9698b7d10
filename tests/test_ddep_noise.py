import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddep import noise


def images_and_eps():
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, 3, 4, 3)).astype(np.float32)
  eps = rng.standard_normal((2, 3, 4, 3)).astype(np.float32)
  return jnp.asarray(images), jnp.asarray(eps)


def test_scaled_noise_is_equation_5_by_hand():
  image = jnp.full((1, 1, 1, 3), 0.5)
  eps = jnp.array([[[[1.0, -2.0, 0.0]]]])
  found = noise.corrupt(image, eps, noise.Options(gamma=0.64))
  # sqrt(0.64) = 0.8 and sqrt(1 - 0.64) = 0.6.
  np.testing.assert_allclose(found[0, 0, 0], [1.0, -0.8, 0.4], atol=1e-6)


def test_scaled_noise_equals_the_unit_range_form():
  # The published form takes x in [0, 1]:
  # sqrt(g) x + (sqrt(1-g) e - sqrt(g) + 1) / 2.
  images, eps = images_and_eps()
  x, g = (images + 1) / 2, 0.95
  unit = math.sqrt(g) * x + (math.sqrt(1 - g) * eps - math.sqrt(g) + 1) / 2
  found = noise.corrupt(images, eps, noise.Options(gamma=g))
  np.testing.assert_allclose(found, 2 * unit - 1, atol=1e-6)


def test_simple_noise_adds_sigma_in_the_unit_range():
  images, eps = images_and_eps()
  found = noise.corrupt(images, eps, noise.Options(kind='simple', sigma=0.8))
  np.testing.assert_allclose(
    (found + 1) / 2, (images + 1) / 2 + 0.8 * eps, atol=1e-6
  )


@pytest.mark.parametrize('sigma', [0.1, 0.2294157, 0.8])
def test_sigma_and_gamma_name_the_same_noise(sigma):
  images, eps = images_and_eps()
  gamma = 1 / (1 + sigma**2)
  by_sigma = noise.corrupt(images, eps, noise.Options(sigma=sigma))
  by_gamma = noise.corrupt(images, eps, noise.Options(gamma=gamma))
  np.testing.assert_allclose(by_sigma, by_gamma, atol=1e-6)
  simple = noise.Options(kind='simple', gamma=gamma)
  assert simple.magnitude == pytest.approx(sigma)


def test_gamma_of_the_paper_has_the_magnitude_of_its_text():
  # Spec §4.1: 'gamma = 0.95' and 'noise magnitude 0.22'.
  assert noise.Options(gamma=0.95).magnitude == pytest.approx(0.2236, abs=1e-4)


def test_scaled_noise_keeps_unit_variance():
  keys = jax.random.split(jax.random.PRNGKey(0), 2)
  images = noise.sample(keys, (2, 64, 64, 3))  # Unit variance itself.
  eps = noise.sample(jax.random.split(jax.random.PRNGKey(1), 2), images.shape)
  noisy = noise.corrupt(images, eps, noise.Options(gamma=0.6))
  assert float(jnp.var(noisy)) == pytest.approx(1.0, abs=0.03)


def test_targets():
  images, eps = images_and_eps()
  options = noise.Options(gamma=0.64)
  for target, expected in (
    ('eps', eps),
    ('x', images),
    ('eps_scaled', 0.6 * eps),
  ):
    found = noise.target(
      images, eps, dataclasses.replace(options, target=target)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_row_draws_the_same_noise_in_any_batch():
  keys = jax.random.split(jax.random.PRNGKey(3), 8)
  whole = noise.sample(keys, (8, 4, 4, 3))
  part = noise.sample(keys[2:5], (3, 4, 4, 3))
  np.testing.assert_array_equal(whole[2:5], part)
  assert not np.array_equal(whole[0], whole[1])


def test_noise_is_standard_normal():
  keys = jax.random.split(jax.random.PRNGKey(3), 4)
  draws = np.asarray(noise.sample(keys, (4, 64, 64, 3))).ravel()
  assert draws.dtype == np.float32
  assert abs(draws.mean()) < 0.02
  assert abs(draws.std() - 1) < 0.02
  assert abs((draws**4).mean() - 3) < 0.15


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({}, 'gamma=0.0 and sigma=0.0: expected exactly one'),
    ({'gamma': 0.9, 'sigma': 0.2}, 'expected exactly one'),
    ({'gamma': 1.0}, 'gamma: found 1.0, expected 0 < gamma < 1'),
    ({'sigma': -0.2}, 'sigma: found -0.2, expected above 0'),
  ],
)
def test_impossible_noise_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    noise.Options(**fields)


@pytest.mark.parametrize('target', ['eps', 'x', 'eps_scaled'])
@pytest.mark.parametrize('kind', ['scaled', 'simple'])
def test_a_perfect_prediction_gives_the_clean_image_back(kind, target):
  rng = np.random.default_rng(0)
  images, eps = jnp.asarray(rng.normal(size=(2, 1, 4, 5, 3)), jnp.float32)
  options = noise.Options(kind=kind, gamma=0.7, target=target)
  noisy = noise.corrupt(images, eps, options)
  found = noise.clean(noisy, noise.target(images, eps, options), options)
  np.testing.assert_allclose(found, images, atol=1e-5)
