"""Photometric distortion: its draws, and what they do to an image."""

import jax
import numpy as np
import pytest

from segcore.ops import photometric_distortion
from segcore.train import update
from tests.transcriptions import daformer as reference

OPTIONS = photometric_distortion.DistortionOptions()
COUNT = 2000


@pytest.fixture(scope='module')
def draws():
  """Returns the draws of many images."""
  keys = update.row_prng_keys(jax.random.PRNGKey(0), COUNT)
  sample = jax.vmap(
    lambda key: photometric_distortion.sample_distortion_draws(key, OPTIONS)
  )
  return jax.tree.map(np.asarray, jax.jit(sample)(keys))


def test_each_change_has_its_own_probability(draws):
  unchanged = draws.factors == np.float32([1, 1, 1, 0])
  # Five deviations of a mean of COUNT fair coins, and of pairs of them.
  np.testing.assert_allclose(unchanged.mean(0), 0.5, atol=2.5 / COUNT**0.5)
  np.testing.assert_allclose(
    np.corrcoef(unchanged.T), np.eye(4), atol=5 / COUNT**0.5
  )


def test_changes_are_uniform_in_the_published_ranges(draws):
  for i, (low, high) in enumerate(
    ((1 - 32 / 255, 1 + 32 / 255), (0.5, 1.5), (0.5, 1.5), (-0.1, 0.1))
  ):
    values = draws.factors[:, i]
    values = values[values != (0 if i == 3 else 1)]
    assert low <= values.min() and values.max() <= high
    span = high - low
    np.testing.assert_allclose(
      (np.quantile(values, (0.1, 0.5, 0.9)) - low) / span,
      (0.1, 0.5, 0.9),
      atol=0.08,
    )


def test_contrast_comes_before_saturation_and_hue_or_after_them(draws):
  orders, counts = np.unique(draws.order, axis=0, return_counts=True)
  assert orders.tolist() == [[0, 1, 2, 3], [0, 2, 3, 1]]
  np.testing.assert_allclose(counts / COUNT, 0.5, atol=2.5 / COUNT**0.5)


def test_images_change_as_drawn():
  with jax.enable_x64():
    images = np.random.default_rng(0).random((6, 5, 7, 3))
    keys = update.row_prng_keys(jax.random.PRNGKey(3), len(images))

    @jax.jit
    def distort(images, keys):
      draws = jax.vmap(
        lambda key: photometric_distortion.sample_distortion_draws(key, OPTIONS)
      )(keys)
      return draws, photometric_distortion.distort_images(images, keys, OPTIONS)

    draws, actual = distort(2 * images - 1, keys)
    for i, image in enumerate(images):
      expected = reference.jitter(
        image, np.asarray(draws.order[i]), *np.asarray(draws.factors[i])
      )
      np.testing.assert_allclose((actual[i] + 1) / 2, expected, atol=1e-9)


def test_a_probability_above_1_is_refused():
  with pytest.raises(ValueError, match='probability'):
    photometric_distortion.DistortionOptions(probability=1.5)
