"""Jitter and blur by kornia's rules against the transcription, in float64."""

import functools
import itertools

import jax
import numpy as np
import pytest

from segcore.ops import color_augment, kornia_color
from segcore.train import update
from tests.transcriptions import daformer as reference

OPTIONS = kornia_color.KorniaOptions()
augment = jax.jit(kornia_color.augment_batch)


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


@functools.partial(jax.jit, static_argnums=(1, 2))
def sample(rng, count, options=OPTIONS):
  row_rng, batch_rng = jax.random.split(rng)
  keys = update.row_prng_keys(row_rng, count)
  return kornia_color.sample_batch_draws(batch_rng, keys, options)


def draw_images(count, size=(12, 23), seed=0):
  """Draws images in [0, 1], with black, gray, pure and saturated pixels."""
  images = np.random.default_rng(seed).random((count, *size, 3))
  images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = 0, 0.5, 1
  images[:, 0, 3], images[:, 0, 4] = (1, 0, 0), (0.2, 0.9, 0.9)
  return images


def make_draws(count, **fields):
  rng = np.random.default_rng(1)
  factors = rng.uniform(0.5, 1.5, (count, 4))
  factors[:, 3] = rng.uniform(-0.5, 0.5, count)
  defaults = {
    'jitter': np.zeros(count, bool),
    'order': np.tile(np.arange(4), (count, 1)),
    'factors': factors,
    'gray': np.zeros(count, bool),
    'blur': np.zeros(count, bool),
    'sigma': np.linspace(0.15, 1.15, count),
    'solarize': np.zeros(count, bool),
  }
  return color_augment.ColorDraws(**{**defaults, **fields})


def test_all_orders_of_the_jitter():
  orders = np.array(list(itertools.permutations(range(4))))
  images = draw_images(len(orders))
  draws = make_draws(
    len(orders), jitter=np.ones(len(orders), bool), order=orders
  )
  actual = (np.asarray(augment(2 * images - 1, draws)) + 1) / 2
  for image, order, factors, result in zip(
    images, orders, draws.factors, actual, strict=True
  ):
    expected = reference.jitter(image, order, *factors)
    np.testing.assert_allclose(result, expected, atol=1e-9)
  assert np.abs(actual - images).max() > 0.1


def test_blur_reflects_the_border():
  images = draw_images(2, size=(24, 41))
  draws = make_draws(2, blur=np.ones(2, bool), sigma=np.array([0.4, 1.15]))
  actual = (np.asarray(augment(2 * images - 1, draws)) + 1) / 2
  for image, sigma, result in zip(images, draws.sigma, actual, strict=True):
    np.testing.assert_allclose(result, reference.blur(image, sigma), atol=1e-9)


def test_jitter_is_before_blur():
  images = draw_images(1, size=(21, 21))
  on = np.ones(1, bool)
  draws = make_draws(1, jitter=on, blur=on, sigma=np.array([1.0]))
  actual = (np.asarray(augment(2 * images - 1, draws)) + 1) / 2
  expected = reference.jitter(images[0], range(4), *draws.factors[0])
  np.testing.assert_allclose(
    actual[0], reference.blur(expected, 1.0), atol=1e-9
  )


def test_sizes_of_the_kernel():
  sides = (8, 10, 11, 21, 64, 100, 101, 512, 1024)
  sizes = [kornia_color.blur_kernel_size(side) for side in sides]
  assert sizes == [reference.kernel_size(side) for side in sides]
  assert all(size % 2 for size in sizes)
  assert kornia_color.blur_kernel_size(512) == 51


def test_a_batch_is_changed_as_a_whole_and_images_by_their_own_draws():
  keys = jax.random.split(jax.random.PRNGKey(0), 500)
  draws = jax.device_get(jax.vmap(lambda key: sample(key, 3))(keys))
  for flags, share in ((draws.jitter, 0.8), (draws.blur, 0.5)):
    assert (flags == flags[:, :1]).all()
    # 500 draws: 4 standard deviations.
    assert (
      abs(flags[:, 0].mean() - share) < 4 * (share * (1 - share) / 500) ** 0.5
    )
  assert not draws.gray.any() and not draws.solarize.any()
  low, high = draws.factors.min((0, 1)), draws.factors.max((0, 1))
  np.testing.assert_allclose(low, [0.8, 0.8, 0.8, -0.2], atol=2e-3)
  np.testing.assert_allclose(high, [1.2, 1.2, 1.2, 0.2], atol=2e-3)
  assert 0.15 <= draws.sigma.min() < 0.16 and 1.14 < draws.sigma.max() <= 1.15
  assert len({tuple(order) for order in draws.order.reshape(-1, 4)}) == 24
  assert (draws.order[:, 0] != draws.order[:, 1]).any()


def test_options_out_of_range_are_refused():
  for fields, message in (
    ({'sigma': (0.0, 1.0)}, 'sigma: expected 0 < low <= high'),
    ({'jitter': 1.5}, 'jitter: expected'),
    ({'strength': 0.6}, 'strength: expected'),
  ):
    with pytest.raises(ValueError, match=message):
      kornia_color.KorniaOptions(**fields)
