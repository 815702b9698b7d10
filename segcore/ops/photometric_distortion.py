"""Photometric distortion by the rules of SSD, as mmsegmentation has it.

  keys = update.row_prng_keys(rng, len(images))
  images = distort_images(images, keys, DistortionOptions())

Brightness, contrast, saturation and hue change each with its own probability,
contrast before or after saturation and hue. Values are not rounded to 8 bits in
between. Source: Liu et al. 2016 (SSD), Sec. 2.2, in its public code.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from runtime.option_ranges import CheckedOptions, Range, UnitInterval
from segcore.ops import color_augment, kornia_color
from segcore.types import ExampleKeys

# Contrast before saturation and hue, or after them.
_ORDERS = (
  (
    color_augment.BRIGHTNESS,
    color_augment.CONTRAST,
    color_augment.SATURATION,
    color_augment.HUE,
  ),
  (
    color_augment.BRIGHTNESS,
    color_augment.SATURATION,
    color_augment.HUE,
    color_augment.CONTRAST,
  ),
)
# Factors that change nothing.
_IDENTITY = (1.0, 1.0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class DistortionOptions(CheckedOptions):
  """Probability and strengths of the changes.

  Attributes:
    probability: probability of each change.
    brightness: largest shift of all values, in [0, 1].
    contrast: c; the factor of all values is uniform in [1 - c, 1 + c].
    saturation: s; the factor of the saturation of HSV is uniform in
      [1 - s, 1 + s].
    hue: largest shift of the hue, as a part of the color circle.
  """

  probability: UnitInterval = 0.5
  brightness: UnitInterval = 32 / 255
  contrast: UnitInterval = 0.5
  saturation: UnitInterval = 0.5
  hue: Annotated[float, Range(0, 0.5)] = 18 / 180


def sample_distortion_draws(
  rng: PRNGKeyArray, options: DistortionOptions
) -> color_augment.ColorDraws:
  """Draws the order and the factors of one image.

  Args:
    rng: key of the image.
    options: probability and ranges.
  """
  factor_rng, change_rng, order_rng = jax.random.split(rng, 3)
  draws = color_augment.sample_color_draws(
    factor_rng,
    color_augment.ColorOptions(
      brightness=options.brightness,
      contrast=options.contrast,
      saturation=options.saturation,
      hue=options.hue,
    ),
  )
  changes = jax.random.bernoulli(change_rng, options.probability, (4,))
  contrast_last = jax.random.bernoulli(order_rng).astype(jnp.int32)
  return draws._replace(
    order=jnp.array(_ORDERS)[contrast_last],
    factors=jnp.where(changes, draws.factors, jnp.array(_IDENTITY)),
  )


def distort_images(
  images: Float[Array, 'B H W 3'],
  keys: ExampleKeys,
  options: DistortionOptions,
) -> Float[Array, 'B H W 3']:
  """Distorts each image of a batch in [-1, 1], with its own key."""

  def distort(
    image: Float[Array, 'H W 3'], key: PRNGKeyArray
  ) -> Float[Array, 'H W 3']:
    changed = color_augment.jitter_color(
      0.5 * (image + 1.0),
      sample_distortion_draws(key, options),
      kornia_color.change_color,
    )
    return 2.0 * changed - 1.0

  return jax.vmap(distort)(images, keys)
