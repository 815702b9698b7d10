import colorsys
import functools

import jax
import numpy as np
import pytest
import scipy.ndimage

from segcore.ops import color_augment
from segcore.train import update

GRAY = np.array([0.299, 0.587, 0.114])
STRENGTHS = {'brightness': 0.8, 'contrast': 0.8, 'saturation': 0.8, 'hue': 0.2}
ALL = color_augment.ColorOptions(
  jitter=0.8, gray=0.2, blur=0.5, solarize=0.2, **STRENGTHS
)


apply_draws = jax.jit(color_augment.apply_color_draws, static_argnums=2)
augment = jax.jit(color_augment.augment_colors, static_argnums=2)


@functools.partial(jax.jit, static_argnums=(1, 2))
def sample(rng, count, options):
  keys = update.row_prng_keys(rng, count)
  return jax.vmap(lambda key: color_augment.sample_color_draws(key, options))(
    keys
  )


def row_keys(seed, count):
  return jax.jit(update.row_prng_keys, static_argnums=1)(
    jax.random.key(seed), count
  )


def images(count=4, size=(6, 9), seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (count, *size, 3)).astype(np.float32)


def to_unit_range(image):
  return 0.5 * (np.asarray(image, np.float64) + 1)


def mix(image, other, factor):
  return np.clip(factor * image + (1 - factor) * other, 0, 1)


def shift_hue(image, shift):
  out = np.empty_like(image)
  for at in np.ndindex(image.shape[:2]):
    hue, saturation, value = colorsys.rgb_to_hsv(*image[at])
    out[at] = colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
  return out


def jitter(image, order, factors):
  """Applies the four operations one after the other, by their definitions."""
  for kind in order:
    factor = factors[kind]
    if kind == 0:
      image = mix(image, 0.0, factor)
    elif kind == 1:
      image = mix(image, (image @ GRAY).mean(), factor)
    elif kind == 2:
      image = mix(image, (image @ GRAY)[..., None], factor)
    else:
      image = shift_hue(image, factor)
  return image


def draws(**fields):
  unchanged = color_augment.ColorDraws(
    jitter=np.bool_(False),
    order=np.arange(4, dtype=np.int32),
    factors=np.float32([1.0, 1.0, 1.0, 0.0]),
    gray=np.bool_(False),
    blur=np.bool_(False),
    sigma=np.float32(1.0),
    solarize=np.bool_(False),
  )
  return unchanged._replace(
    **{k: np.asarray(v, getattr(unchanged, k).dtype) for k, v in fields.items()}
  )


@pytest.mark.parametrize('seed', range(6))
def test_jitter_equals_its_definition(seed):
  rng = np.random.default_rng(seed)
  order = rng.permutation(4)
  factors = np.array([*rng.uniform(0.2, 1.8, 3), rng.uniform(-0.2, 0.2)])
  (image,) = images(1, seed=seed)
  augmented = apply_draws(
    image, draws(jitter=True, order=order, factors=factors), ALL
  )
  expected = jitter(to_unit_range(image), order, factors)
  np.testing.assert_allclose(to_unit_range(augmented), expected, atol=3e-4)


def test_padding_has_no_share_in_the_mean_gray_of_the_contrast():
  """The image in its padding becomes what it would without it."""
  (image,) = images(1)
  padded = np.full((8, 12, 3), 0.9, np.float32)
  padded[1:7, 2:11] = image
  valid = np.zeros((8, 12), bool)
  valid[1:7, 2:11] = True
  order, factors = [0, 1, 2, 3], [0.8, 0.4, 1.2, 0.1]
  augmented = apply_draws(
    padded,
    draws(jitter=True, order=order, factors=factors),
    color_augment.ColorOptions(jitter=1.0),
    valid,
  )
  np.testing.assert_allclose(
    to_unit_range(augmented)[1:7, 2:11],
    jitter(to_unit_range(image), order, factors),
    atol=3e-4,
  )


def test_image_is_unchanged_where_nothing_is_drawn():
  (image,) = images(1)
  augmented = apply_draws(image, draws(), ALL)
  np.testing.assert_allclose(augmented, image, atol=1e-6)


def test_gray_and_solarized_by_hand():
  image = np.float32([[[1.0, -1.0, 0.0]], [[-0.6, -0.6, -0.6]]])
  gray = apply_draws(image, draws(gray=True), ALL)
  # 0.299 · 1 + 0.114 · 0.5 = 0.356 of 1, and 0.2.
  np.testing.assert_allclose(gray[0, 0], [2 * 0.356 - 1] * 3, atol=3e-4)
  np.testing.assert_allclose(gray[1, 0], [-0.6] * 3, atol=3e-4)
  inverted = apply_draws(image, draws(solarize=True), ALL)
  # In [0, 1]: 1, 0, 0.5 become 0, 0, 0.5; 0.2 stays.
  np.testing.assert_allclose(
    inverted, [[[-1, -1, 0]], [[-0.6, -0.6, -0.6]]], atol=1e-6
  )


@pytest.mark.parametrize('sigma', [0.1, 0.5, 1.3, 2.0])
def test_blur_equals_scipys(sigma):
  (image,) = images(1, (20, 15))
  augmented = apply_draws(image, draws(blur=True, sigma=sigma), ALL)
  expected = scipy.ndimage.gaussian_filter(
    image.astype(np.float64), (sigma, sigma, 0), mode='nearest', truncate=4.0
  )
  np.testing.assert_allclose(augmented, expected, atol=1e-5)


def test_ranges_and_probabilities_of_draws():
  drawn = jax.device_get(sample(jax.random.key(0), 4000, ALL))
  for name, probability in (
    ('jitter', 0.8),
    ('gray', 0.2),
    ('blur', 0.5),
    ('solarize', 0.2),
  ):
    # A standard deviation is 0.008 at most.
    assert abs(np.mean(getattr(drawn, name)) - probability) < 0.03, name
  factors = np.asarray(drawn.factors)
  for i, (low, high) in enumerate([(0.2, 1.8)] * 3 + [(-0.2, 0.2)]):
    assert low <= factors[:, i].min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < factors[:, i].max() <= high
  assert drawn.sigma.min() >= 0.1 and drawn.sigma.max() <= 2.0
  orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
  assert len(orders) == 24  # 167 each; a standard deviation is 13.
  assert counts.min() > 100


def test_factors_are_never_negative():
  options = color_augment.ColorOptions(jitter=1.0, brightness=1.5)
  drawn = jax.device_get(sample(jax.random.key(0), 1000, options))
  assert drawn.factors[:, 0].min() >= 0.0
  assert drawn.factors[:, 0].max() > 2.4


def test_example_depends_on_its_own_key_only():
  batch, keys = images(64), row_keys(3, 64)
  whole = np.asarray(augment(batch, keys, ALL))
  for i in range(4):
    alone = np.asarray(augment(batch[i : i + 1], keys[i : i + 1], ALL))
    np.testing.assert_allclose(whole[i], alone[0], atol=1e-5)
  copies = augment(
    np.stack([batch[0]] * 4),
    keys[:4],
    color_augment.ColorOptions(jitter=1.0, hue=0.5),
  )
  assert len({image.tobytes() for image in np.asarray(copies)}) == 4


def test_images_stay_in_range():
  augmented = np.asarray(augment(images(64), row_keys(1, 64), ALL))
  assert augmented.min() >= -1.0 - 1e-5
  assert augmented.max() <= 1.0 + 1e-5


@pytest.mark.slow
def test_8_devices_equal_one_without_gathering():
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  batch = images(8)

  def step(batch, rng):
    keys = update.row_prng_keys(rng, len(batch))
    return color_augment.augment_colors(batch, keys, ALL)

  # By the code generator of users: that of the tests computes a channel twice,
  # rounded in two ways, and hues depend on which channel equals the maximum.
  options = {'xla_cpu_use_fusion_emitters': True}
  alone = jax.jit(step, compiler_options=options)(batch, jax.random.key(0))
  sharded = jax.jit(step, out_shardings=rows, compiler_options=options)
  compiled = sharded.lower(
    jax.device_put(batch, rows), jax.random.key(0)
  ).compile()
  assert 'all-gather' not in compiled.as_text()
  augmented = sharded(jax.device_put(batch, rows), jax.random.key(0))
  np.testing.assert_allclose(augmented, alone, atol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'jitter': 1.2}, 'jitter: expected 0 to 1, got 1.2'),
    ({'contrast': -0.1}, 'contrast: expected 0 or more, got -0.1'),
    ({'hue': 0.6}, 'hue: expected 0 to 0.5, got 0.6'),
    ({'sigma': (0.0, 1.0)}, 'sigma: expected 0 < low <= high, got '),
  ],
)
def test_options_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    color_augment.ColorOptions(**fields)
