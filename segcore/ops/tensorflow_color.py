"""Color jitter and blur by TensorFlow's rules, as in SimCLR's and BYOL's codes.

  images = color_augment.augment_colors(images, keys, options, rules=BYOL)

They differ from torchvision's (`color_augment`): contrast keeps the mean of
each channel, saturation is that of HSV, and the kernel of the blur is a tenth
of the side and reads zeros outside of the image. Brightness is a factor in
SimCLR's code and a shift in BYOL's. Sources: Chen et al. 2020 and Grill et al.
2020, released codes (spec comparators §2.2, §2.5).
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from segcore.ops import color_augment, kornia_color
from segcore.types import Scalar

Image = Float[Array, 'H W 3']

# Number of pixels of a side for each of the taps on both sides of a kernel's
# center: the kernel has about a tenth of the side.
_PIXELS_PER_TAP = 20


def change_color(
  image: Image, kind: Int[Array, ''], factor: Scalar, shifts: bool
) -> Image:
  """Changes brightness, contrast or saturation of an image in [0, 1].

  Args:
    image: image in [0, 1].
    kind: `BRIGHTNESS`, `CONTRAST` or `SATURATION` of `color_augment`.
    factor: factor of the change.
    shifts: whether brightness is a shift by factor - 1, not a factor.
  """
  center = jnp.mean(image, axis=(0, 1))
  changed = kornia_color.change_color(image, kind, factor, center)
  if shifts:
    return changed
  scaled = jnp.clip(factor * image, 0.0, 1.0)
  return jnp.where(kind == color_augment.BRIGHTNESS, scaled, changed)


def gaussian_blur(image: Image, sigma: Scalar, max_sigma: float) -> Image:
  """Blurs an image by 23 taps at 224 pixels, with zeros outside of it.

  Args:
    image: image with values of any range.
    sigma: standard deviation in pixels.
    max_sigma: largest value of sigma; the kernel does not depend on it.
  """
  del max_sigma
  # As in the released codes, the height sets the kernel of both axes.
  radius = len(image) // _PIXELS_PER_TAP
  offsets = jnp.arange(-radius, radius + 1)
  weights = jnp.exp(-0.5 * jnp.square(offsets / sigma))
  rows, columns = (
    color_augment.blur_matrix(weights, side, 'zero') for side in image.shape[:2]
  )
  return color_augment.blur_axes(image, rows, columns)


SIMCLR, BYOL = (
  color_augment.Rules(
    functools.partial(change_color, shifts=shifts), gaussian_blur
  )
  for shifts in (False, True)
)
