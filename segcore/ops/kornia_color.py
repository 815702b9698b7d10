"""Color jitter and blur by the rules of kornia, in which DAFormer was trained.

  draws = sample_batch_draws(rng, keys, options)
  images = augment_batch(images, draws)

They differ from torchvision's (`color_augment`): brightness is a shift,
contrast a factor, and saturation that of HSV; the kernel of the blur is a tenth
of the side, and reads the image reflected at its border. Whether images are
jittered and blurred is drawn once for a batch, how is drawn for each image.
Source: kornia 0.5.8, as DAFormer (Hoyer et al. 2022) calls it.
"""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from runtime.option_ranges import CheckedOptions, Range, UnitInterval
from segcore.ops import color_augment
from segcore.types import ExampleKeys


@dataclasses.dataclass(frozen=True)
class KorniaOptions(CheckedOptions):
  """Probabilities and strengths of the augmentation.

  Attributes:
    jitter: probability of changing the colors of a batch.
    strength: s; brightness, contrast and saturation have factors uniform in
      [1 - s, 1 + s], and the hue a shift uniform in [-s, s] of the color
      circle. Brightness b is a shift by b - 1.
    blur: probability of blurring a batch.
    sigma: range of the standard deviation of the blur, in pixels.
  """

  jitter: UnitInterval = 0.8
  strength: Annotated[float, Range(0, 0.5)] = 0.2
  blur: UnitInterval = 0.5
  sigma: tuple[float, float] = (0.15, 1.15)

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.sigma[0] <= self.sigma[1]:
      raise ValueError(f'sigma: expected 0 < low <= high, got {self.sigma}')

  @property
  def ranges(self) -> color_augment.ColorOptions:
    """Returns the ranges of the draws of each image."""
    return color_augment.ColorOptions(
      brightness=self.strength,
      contrast=self.strength,
      saturation=self.strength,
      hue=self.strength,
      sigma=self.sigma,
    )


def sample_batch_draws(
  rng: PRNGKeyArray | UInt32[Array, '2'],
  keys: ExampleKeys,
  options: KorniaOptions,
) -> color_augment.ColorDraws:
  """Draws the random values of a batch, each with a leading axis of images.

  Args:
    rng: key of what all images share: whether they are jittered and blurred.
    keys: key of each image.
    options: probabilities and ranges.
  """
  draws = color_augment.sample_batch_color_draws(keys, options.ranges)
  jittered, blurred = jax.random.uniform(rng, (2,)) > jnp.array(
    [1 - options.jitter, 1 - options.blur]
  )
  return draws._replace(
    jitter=jnp.broadcast_to(jittered, draws.jitter.shape),
    blur=jnp.broadcast_to(blurred, draws.blur.shape),
  )


def augment_batch(
  images: Float[Array, 'B H W 3'], draws: color_augment.ColorDraws
) -> Float[Array, 'B H W 3']:
  """Jitters, then blurs images in [-1, 1] as drawn."""

  def augment_one(
    image: Float[Array, 'H W 3'], draws: color_augment.ColorDraws
  ) -> Float[Array, 'H W 3']:
    x = 0.5 * (image + 1.0)  # In [0, 1], where the operations are defined.
    jittered = color_augment.jitter_color(x, draws, change_color)
    x = jnp.where(draws.jitter, jittered, x)
    x = jnp.where(draws.blur, gaussian_blur(x, draws.sigma), x)
    return 2.0 * x - 1.0

  return jax.vmap(augment_one)(images, draws)


def change_color(
  image: Float[Array, 'H W 3'],
  kind: Int[Array, ''],
  factor: Float[Array, ''],
  center: Float[Array, '3'] | None = None,
) -> Float[Array, 'H W 3']:
  """Changes brightness, contrast or saturation of an image in [0, 1].

  Args:
    image: image in [0, 1].
    kind: `BRIGHTNESS`, `CONTRAST` or `SATURATION` of `color_augment`.
    factor: factor; that of brightness is a shift by factor - 1.
    center: color that contrast leaves as it is; None for black.
  """
  shifted = image + (factor - 1.0)
  if center is None:
    scaled = image * factor
  else:
    scaled = center + factor * (image - center)
  changed = jnp.where(kind == color_augment.BRIGHTNESS, shifted, scaled)
  return jnp.where(
    kind == color_augment.SATURATION,
    scale_saturation(image, factor),
    jnp.clip(changed, 0.0, 1.0),
  )


def scale_saturation(
  image: Float[Array, 'H W 3'], factor: Float[Array, '']
) -> Float[Array, 'H W 3']:
  """Multiplies the saturation S of HSV, clipped to [0, 1].

  At constant hue and value V, the distance of each channel to V is proportional
  to S: no conversion to HSV and back is needed.
  """
  value = jnp.max(image, axis=-1, keepdims=True)
  spread = value - jnp.min(image, axis=-1, keepdims=True)
  saturation = spread / jnp.where(value > 0, value, 1.0)
  ratio = jnp.clip(factor * saturation, 0.0, 1.0) / jnp.where(
    saturation > 0, saturation, 1.0
  )
  return value - ratio * (value - image)


def gaussian_blur(
  image: Float[Array, 'H W 3'], sigma: Float[Array, '']
) -> Float[Array, 'H W 3']:
  """Blurs an image by a kernel of about a tenth of its sides.

  Args:
    image: image with values of any range.
    sigma: standard deviation in pixels.
  """

  def matrix(side: int) -> Float[Array, 'side side']:
    radius = blur_kernel_size(side) // 2
    offsets = jnp.arange(-radius, radius + 1)
    weights = jnp.exp(-0.5 * jnp.square(offsets / sigma))
    return color_augment.blur_matrix(weights, side, 'reflect')

  rows, columns = (matrix(side) for side in image.shape[:2])
  return color_augment.blur_axes(image, rows, columns)


def blur_kernel_size(side: int) -> int:
  """Computes the taps of the blur along an axis of `side` pixels.

  >>> blur_kernel_size(512)
  51
  """
  tenth = math.ceil(0.1 * side)
  return math.floor(tenth - 0.5 + tenth % 2)
