import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddep import noise


def gammas(options, count=2):
  return noise.sample_noise_gamma(
    jax.random.split(jax.random.PRNGKey(0), count), options
  )


def corrupt(images, eps, options):
  return noise.corrupt_with_noise(
    images, eps, gammas(options, len(images)), options
  )


def images_and_eps():
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, 3, 4, 3)).astype(np.float32)
  eps = rng.standard_normal((2, 3, 4, 3)).astype(np.float32)
  return jnp.asarray(images), jnp.asarray(eps)


def test_scaled_noise_is_equation_5_by_hand():
  image = jnp.full((1, 1, 1, 3), 0.5)
  eps = jnp.array([[[[1.0, -2.0, 0.0]]]])
  result = corrupt(image, eps, noise.NoiseOptions(gamma=0.64))
  # sqrt(0.64) = 0.8 and sqrt(1 - 0.64) = 0.6.
  np.testing.assert_allclose(result[0, 0, 0], [1.0, -0.8, 0.4], atol=1e-6)


def test_scaled_noise_equals_the_unit_range_form():
  # The published form takes x in [0, 1]:
  # sqrt(g) x + (sqrt(1-g) e - sqrt(g) + 1) / 2.
  images, eps = images_and_eps()
  x, g = (images + 1) / 2, 0.95
  unit = math.sqrt(g) * x + (math.sqrt(1 - g) * eps - math.sqrt(g) + 1) / 2
  result = corrupt(images, eps, noise.NoiseOptions(gamma=g))
  np.testing.assert_allclose(result, 2 * unit - 1, atol=1e-6)


def test_simple_noise_adds_sigma_in_the_unit_range():
  images, eps = images_and_eps()
  result = corrupt(images, eps, noise.NoiseOptions(kind='simple', sigma=0.8))
  np.testing.assert_allclose(
    (result + 1) / 2, (images + 1) / 2 + 0.8 * eps, atol=1e-6
  )


@pytest.mark.parametrize(
  ('kind', 'space', 'expected'),
  [
    # The image is 0.5, or 0.75 in [0, 1]; sqrt(γ) is 0.8, its rest 0.6, and σ
    # = 0.6 / 0.8 = 0.75; e is 1, -2 and 0.
    ('scaled', 'symmetric', [0.4 + 0.6, 0.4 - 1.2, 0.4]),
    # 0.8 · 0.75 = 0.6 in [0, 1], and 1.2, -0.6, 0.6 with the noise.
    ('scaled', 'unit', [1.4, -2.2, 0.2]),
    ('simple', 'symmetric', [0.5 + 0.75, 0.5 - 1.5, 0.5]),
    # 0.75 + 0.75 e: 1.5, -0.75, 0.75 in [0, 1].
    ('simple', 'unit', [2.0, -2.5, 0.5]),
  ],
)
def test_noise_spaces_by_hand(kind, space, expected):
  image = jnp.full((1, 1, 1, 3), 0.5)
  eps = jnp.array([[[[1.0, -2.0, 0.0]]]])
  options = noise.NoiseOptions(kind=kind, noise_space=space, gamma=0.64)
  result = corrupt(image, eps, options)
  np.testing.assert_allclose(result[0, 0, 0], expected, atol=1e-6)
  factor = {'scaled': 0.6, 'simple': 0.75}[kind]
  scaled = dataclasses.replace(options, target='eps_scaled')
  aim = noise.denoising_target(image, eps, gammas(options, 1), scaled)
  np.testing.assert_allclose(aim, factor * eps, atol=1e-6)


def test_0_22_of_the_unit_space_is_0_44_of_the_symmetric_one():
  images, eps = images_and_eps()
  unit, symmetric = (
    noise.NoiseOptions(kind='simple', noise_space=space, sigma=sigma)
    for space, sigma in (('unit', 0.22), ('symmetric', 0.44))
  )
  np.testing.assert_allclose(
    corrupt(images, eps, unit), corrupt(images, eps, symmetric), atol=1e-6
  )


@pytest.mark.parametrize(
  ('kind', 'space'), [('scaled', 'symmetric'), ('simple', 'unit')]
)
def test_the_noise_space_is_that_of_the_public_code_by_default(kind, space):
  images, eps = images_and_eps()
  default = noise.NoiseOptions(kind=kind, gamma=0.64)
  stated = dataclasses.replace(default, noise_space=space)
  other = dataclasses.replace(
    default, noise_space={'unit': 'symmetric', 'symmetric': 'unit'}[space]
  )
  result = corrupt(images, eps, default)
  np.testing.assert_array_equal(result, corrupt(images, eps, stated))
  assert float(jnp.abs(result - corrupt(images, eps, other)).max()) > 0.1


@pytest.mark.parametrize('sigma', [0.1, 0.2294157, 0.8])
def test_sigma_and_gamma_name_the_same_noise(sigma):
  images, eps = images_and_eps()
  gamma = 1 / (1 + sigma**2)
  by_sigma = corrupt(images, eps, noise.NoiseOptions(sigma=sigma))
  by_gamma = corrupt(images, eps, noise.NoiseOptions(gamma=gamma))
  np.testing.assert_allclose(by_sigma, by_gamma, atol=1e-6)
  simple = noise.NoiseOptions(kind='simple', gamma=gamma)
  result = noise.noise_magnitude(gammas(simple), simple)
  np.testing.assert_allclose(result, [sigma, sigma], rtol=1e-5)


def test_gamma_of_the_paper_has_the_magnitude_of_its_text():
  # Spec §4.1: 'gamma = 0.95' and 'noise magnitude 0.22'.
  options = noise.NoiseOptions(gamma=0.95)
  result = noise.noise_magnitude(gammas(options), options)
  np.testing.assert_allclose(result, [0.2236, 0.2236], atol=1e-4)


def test_scaled_noise_keeps_unit_variance():
  keys = jax.random.split(jax.random.PRNGKey(0), 2)
  images = noise.sample_noise(keys, (2, 64, 64, 3))  # Unit variance itself.
  eps = noise.sample_noise(
    jax.random.split(jax.random.PRNGKey(1), 2), images.shape
  )
  noisy = corrupt(images, eps, noise.NoiseOptions(gamma=0.6))
  assert float(jnp.var(noisy)) == pytest.approx(1.0, abs=0.03)


def test_targets():
  images, eps = images_and_eps()
  options = noise.NoiseOptions(gamma=0.64)
  for target, expected in (
    ('eps', eps),
    ('x', images),
    ('eps_scaled', 0.6 * eps),
  ):
    options = dataclasses.replace(options, target=target)
    actual = noise.denoising_target(images, eps, gammas(options), options)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_row_draws_the_same_noise_in_any_batch():
  keys = jax.random.split(jax.random.PRNGKey(3), 8)
  whole = noise.sample_noise(keys, (8, 4, 4, 3))
  part = noise.sample_noise(keys[2:5], (3, 4, 4, 3))
  np.testing.assert_array_equal(whole[2:5], part)
  assert not np.array_equal(whole[0], whole[1])


def test_noise_is_standard_normal():
  keys = jax.random.split(jax.random.PRNGKey(3), 4)
  draws = np.asarray(noise.sample_noise(keys, (4, 64, 64, 3))).ravel()
  assert draws.dtype == np.float32
  assert abs(draws.mean()) < 0.02
  assert abs(draws.std() - 1) < 0.02
  assert abs((draws**4).mean() - 3) < 0.15


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {},
      'expected exactly one of gamma, sigma and gamma_range, got gamma=0.0',
    ),
    ({'gamma': 0.9, 'sigma': 0.2}, 'expected exactly one'),
    ({'gamma': 0.9, 'gamma_range': (0.8, 0.9)}, 'expected exactly one'),
    ({'sigma': 0.2, 'gamma_range': (0.8, 0.9)}, 'expected exactly one'),
    ({'gamma': 1.0}, 'gamma: expected 0 < gamma < 1'),
    ({'sigma': -0.2}, 'sigma: expected above 0'),
    ({'gamma_range': (0.9, 0.8)}, 'expected 0 < least < largest'),
    ({'gamma_range': (0.0, 0.8)}, 'expected 0 < least < largest'),
    ({'gamma_range': (1.0, 1.1)}, 'and least < 1'),
    (
      {'gamma': 0.9, 'draw': 'linear', 'num_steps': 9},
      'expected a gamma_range',
    ),
    ({'gamma': 0.9, 'num_steps': 9}, 'num_steps: expected 0'),
    (
      {'gamma_range': (0.8, 0.9), 'draw': 'linear'},
      "num_steps: expected at least 2 for draw='linear'",
    ),
    (
      {'gamma_range': (0.8, 1.1), 'draw': 'linear', 'num_steps': 9},
      "expected at most 1 for draw='linear'",
    ),
    (
      {'gamma_range': (0.1, 0.9), 'draw': 'multiplicative', 'num_steps': 99},
      'expected the last step to keep at least 0.0001',
    ),
  ],
)
def test_impossible_noise_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    noise.NoiseOptions(**fields)


@pytest.mark.parametrize('target', ['eps', 'x', 'eps_scaled'])
@pytest.mark.parametrize('space', ['symmetric', 'unit'])
@pytest.mark.parametrize('kind', ['scaled', 'simple'])
def test_a_perfect_prediction_gives_the_clean_image_back(kind, space, target):
  rng = np.random.default_rng(0)
  images, eps = jnp.asarray(rng.normal(size=(2, 1, 4, 5, 3)), jnp.float32)
  options = noise.NoiseOptions(
    kind=kind, noise_space=space, gamma=0.7, target=target
  )
  # A noise of its own for each image, and one image without.
  images, eps = jnp.tile(images, (3, 1, 1, 1)), jnp.tile(eps, (3, 1, 1, 1))
  gamma = jnp.array([0.3, 0.7, 1.0])
  noisy = noise.corrupt_with_noise(images, eps, gamma, options)
  np.testing.assert_array_equal(noisy[2], images[2])
  aim = noise.denoising_target(images, eps, gamma, options)
  result = noise.denoised_images(noisy, aim, gamma, options)
  np.testing.assert_allclose(result, images, atol=1e-5)


def test_a_strength_is_the_same_for_each_image():
  np.testing.assert_allclose(gammas(noise.NoiseOptions(gamma=0.9)), [0.9, 0.9])
  # 1 / (1 + 0.5²) = 0.8.
  np.testing.assert_allclose(gammas(noise.NoiseOptions(sigma=0.5)), [0.8, 0.8])


def test_a_range_is_drawn_from_uniformly_and_stops_at_1():
  within = noise.NoiseOptions(gamma_range=(0.9, 0.95))
  result = np.asarray(gammas(within, 2000))
  assert result.dtype == np.float32
  assert 0.9 <= result.min() < 0.901 and 0.949 < result.max() <= 0.95
  shares, _ = np.histogram(result, bins=5, range=(0.9, 0.95))
  np.testing.assert_allclose(shares / 2000, 0.2, atol=0.03)
  # A quarter of the range lies above 1.
  beyond = np.asarray(gammas(noise.NoiseOptions(gamma_range=(0.7, 1.1)), 2000))
  assert beyond.max() == 1.0
  assert np.mean(beyond == 1.0) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
  ('draw', 'levels'),
  [
    ('linear', [0.9, 0.8, 0.7, 0.6]),
    # Step t keeps what the t steps before it have left.
    ('multiplicative', [1.0, 0.9, 0.72, 0.504]),
  ],
)
def test_time_steps_are_drawn_evenly(draw, levels):
  options = noise.NoiseOptions(gamma_range=(0.6, 0.9), draw=draw, num_steps=4)
  np.testing.assert_allclose(options.levels, levels)
  result = np.asarray(gammas(options, 2000))
  shares = [np.mean(np.isclose(result, level)) for level in levels]
  np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_a_row_draws_the_same_strength_in_any_batch():
  keys = jax.random.split(jax.random.PRNGKey(3), 8)
  for options in (
    noise.NoiseOptions(gamma_range=(0.5, 0.9)),
    noise.NoiseOptions(gamma_range=(0.5, 0.9), draw='linear', num_steps=50),
  ):
    whole = noise.sample_noise_gamma(keys, options)
    part = noise.sample_noise_gamma(keys[2:5], options)
    np.testing.assert_array_equal(whole[2:5], part)
    assert len(np.unique(whole)) > 4


def test_a_strength_tells_nothing_of_the_noise():
  # Both are drawn from the key of the row, by keys of their own.
  keys = jax.random.split(jax.random.PRNGKey(0), 2000)
  gamma = noise.sample_noise_gamma(
    keys, noise.NoiseOptions(gamma_range=(0.1, 0.9))
  )
  eps = noise.sample_noise(keys, (2000, 1, 1, 3))[:, 0, 0]
  for channel in range(3):
    assert abs(np.corrcoef(gamma, eps[:, channel])[0, 1]) < 0.08


def test_noise_of_one_strength_can_be_read_off_one_image_at_a_time():
  images, eps = images_and_eps()
  options = noise.NoiseOptions(gamma_range=(0.1, 0.9))
  gamma = jnp.array([0.36, 0.64])
  result = noise.corrupt_with_noise(images, eps, gamma, options)
  for i, (kept, added) in enumerate(((0.6, 0.8), (0.8, 0.6))):
    np.testing.assert_allclose(
      result[i], kept * images[i] + added * eps[i], atol=1e-6
    )


def test_an_image_without_noise_has_none_to_be_found():
  images, eps = images_and_eps()
  gamma = jnp.array([1.0, 0.64])
  options = noise.NoiseOptions(gamma_range=(0.5, 1.1))
  for target, factor in (('eps', 1.0), ('eps_scaled', 0.6)):
    result = noise.denoising_target(
      images, eps, gamma, dataclasses.replace(options, target=target)
    )
    np.testing.assert_array_equal(result[0], np.zeros_like(result[0]))
    np.testing.assert_allclose(result[1], factor * eps[1], atol=1e-6)
