"""SimCLR's and BYOL's jitter and blur against numpy, in float64."""

import colorsys
import itertools

import jax
import numpy as np
import pytest

from segcore.ops import color_augment, tensorflow_color

OPTIONS = color_augment.ColorOptions(jitter=1.0, gray=1.0, blur=1.0)
RULES = {'simclr': tensorflow_color.SIMCLR, 'byol': tensorflow_color.BYOL}


def saturate(pixel, factor):
  hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
  return colorsys.hsv_to_rgb(hue, min(saturation * factor, 1.0), value)


def turn(pixel, shift):
  hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
  return colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)


def change(image, kind, factor, name):
  """Changes an image in [0, 1], and clips it."""
  if kind == 0:
    image = image * factor if name == 'simclr' else image + (factor - 1)
  elif kind == 1:
    mean = image.mean(axis=(0, 1))
    image = (image - mean) * factor + mean
  else:
    each = saturate if kind == 2 else turn
    image = np.apply_along_axis(each, -1, image, factor)
  return np.clip(image, 0, 1)


def blur(image, sigma):
  """Filters both axes by kernels of 2 r + 1 taps, with zeros outside."""
  radius = int(int(len(image) / 10) / 2)
  taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
  taps = taps / taps.sum()
  for axis in (0, 1):
    image = np.apply_along_axis(np.convolve, axis, image, taps, 'same')
  return image


@pytest.mark.parametrize('name', ['simclr', 'byol'])
def test_jitter_gray_and_blur(name):
  """In all orders of the jitter; one image in three is gray."""
  orders = np.array(list(itertools.permutations(range(4))))
  rng = np.random.default_rng(0)
  count = len(orders)
  images = rng.random((count, 42, 9, 3))
  factors = rng.uniform(0.5, 1.5, (count, 4))
  factors[:, 3] = rng.uniform(-0.2, 0.2, count)
  draws = color_augment.ColorDraws(
    jitter=np.arange(count) != 5,
    order=orders,
    factors=factors,
    gray=np.arange(count) % 3 == 0,
    blur=np.arange(count) % 2 == 0,
    sigma=np.linspace(0.1, 2.0, count),
    solarize=np.zeros(count, bool),
  )
  with jax.enable_x64():
    apply = jax.jit(
      jax.vmap(
        lambda image, each: color_augment.apply_color_draws(
          image, each, OPTIONS, rules=RULES[name]
        )
      )
    )
    actual = (np.asarray(apply(2 * images - 1, draws)) + 1) / 2
  for i, image in enumerate(images):
    for kind in orders[i] if i != 5 else ():
      image = change(image, kind, factors[i, kind], name)
    if draws.gray[i]:
      gray = image @ np.array([0.2989, 0.5870, 0.1140])
      image = np.repeat(gray[..., None], 3, axis=-1)
    image = blur(image, draws.sigma[i]) if draws.blur[i] else image
    np.testing.assert_allclose(actual[i], image, atol=1e-6, err_msg=str(i))
