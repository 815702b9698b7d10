"""Random changes of color and sharpness, on the device, a key per example.

  keys = method.row_keys(rng, len(images))
  images = augment(images, keys, ColorOptions(jitter=0.8, gray=0.2, blur=0.5))

What is random is drawn by `sample`; `apply` is a function of what was drawn.
The key of an example is that of its place in the global batch, so the same
images come out on any number of devices.
"""

import dataclasses
from typing import NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Places of the operations in `Draws.factors`; brightness is the first.
_CONTRAST, _SATURATION, _HUE = 1, 2, 3

# A Gaussian is cut off at this many standard deviations.
_TRUNCATED = 4.0


@dataclasses.dataclass(frozen=True)
class ColorOptions:
  """How often and how much. Ranges are those of torchvision and SimCLR.

  Attributes:
    jitter: probability of a change of color.
    brightness: its factor is in [1 - b, 1 + b], at least 0.
    contrast: likewise, about the mean gray value.
    saturation: likewise, about each pixel's gray value.
    hue: largest turn of the hue, of a whole circle; at most 0.5.
    gray: probability of no color at all.
    blur: probability of a Gaussian blur.
    sigma: range of its standard deviation, in pixels.
    solarize: probability of inverting bright values.
    threshold: of what is bright, in [0, 1].
  """

  jitter: float = 0.0
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  gray: float = 0.0
  blur: float = 0.0
  sigma: tuple[float, float] = (0.1, 2.0)
  solarize: float = 0.0
  threshold: float = 0.5

  def __post_init__(self):
    for name in ('jitter', 'gray', 'blur', 'solarize', 'threshold'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
          f'{name}: found {getattr(self, name)}, expected 0 to 1'
        )
    for name in ('brightness', 'contrast', 'saturation'):
      if getattr(self, name) < 0:
        raise ValueError(
          f'{name}: found {getattr(self, name)}, expected 0 or more'
        )
    if not 0 <= self.hue <= 0.5:
      raise ValueError(f'hue: found {self.hue}, expected 0 to 0.5')
    if not 0 < self.sigma[0] <= self.sigma[1]:
      raise ValueError(f'sigma: found {self.sigma}, expected 0 < low <= high')


class Draws(NamedTuple):
  """What is random about an example."""

  jitter: Bool[Array, '']
  order: Int[Array, '4']  # Of brightness, contrast, saturation, hue.
  factors: Float[Array, '4']  # In that order; the last is a turn.
  gray: Bool[Array, '']
  blur: Bool[Array, '']
  sigma: Float[Array, '']
  solarize: Bool[Array, '']


def sample(rng: Array, options: ColorOptions) -> Draws:
  """Draws for one example."""
  keys = jax.random.split(rng, 7)
  strength = jnp.array(
    [options.brightness, options.contrast, options.saturation, options.hue]
  )
  middle = jnp.array([1.0, 1.0, 1.0, 0.0])
  low = jnp.maximum(middle - strength, jnp.array([0.0, 0.0, 0.0, -0.5]))
  unit = jax.random.uniform(keys[0], (4,))
  return Draws(
    jitter=jax.random.bernoulli(keys[1], options.jitter),
    order=jax.random.permutation(keys[2], 4),
    factors=low + unit * (middle + strength - low),
    gray=jax.random.bernoulli(keys[3], options.gray),
    blur=jax.random.bernoulli(keys[4], options.blur),
    sigma=jax.random.uniform(
      keys[5], minval=options.sigma[0], maxval=options.sigma[1]
    ),
    solarize=jax.random.bernoulli(keys[6], options.solarize),
  )


def apply(
  image: Float[Array, 'H W 3'], draws: Draws, options: ColorOptions
) -> Float[Array, 'H W 3']:
  """Changes an image in [-1, 1]: jitter, gray, blur, solarise, in order."""
  unit = 0.5 * (image + 1.0)
  if options.jitter:
    unit = jnp.where(draws.jitter, jitter_color(unit, draws), unit)
  if options.gray:
    unit = jnp.where(draws.gray, _gray(unit), unit)
  if options.blur:
    blurred = gaussian_blur(unit, draws.sigma, options.sigma[1])
    unit = jnp.where(draws.blur, blurred, unit)
  if options.solarize:
    solarized = dm_pix.solarize(unit, options.threshold)
    unit = jnp.where(draws.solarize, solarized, unit)
  return 2.0 * unit - 1.0


def augment(
  images: Float[Array, 'B H W 3'], keys: Array, options: ColorOptions
) -> Float[Array, 'B H W 3']:
  """Draws and changes each image of a batch in [-1, 1], with a key for each."""

  def one(image, key):
    return apply(image, sample(key, options), options)

  return jax.vmap(one)(images, keys)


def jitter_color(
  image: Float[Array, 'H W 3'], draws: Draws
) -> Float[Array, 'H W 3']:
  """Brightness, contrast, saturation and hue of an image in [0, 1].

  Over a batch the order is data, so an operation is computed at every place
  where it may stand. Turning the hue costs far more than the others: it stands
  at one place, and they before or after it.
  """
  turn_at = jnp.argmax(draws.order == _HUE)
  others = draws.order[jnp.argsort(draws.order == _HUE, stable=True)][:3]

  def mix(image: Array, i: int, now: Array) -> Array:
    kind = others[i]
    mixed = _mixed(image, _other(image, kind), draws.factors[kind])
    # Else XLA computes all before it again wherever a pixel of it is read.
    return jax.lax.optimization_barrier(jnp.where(now, mixed, image))

  for i in range(3):
    image = mix(image, i, i < turn_at)
  image = jax.lax.optimization_barrier(_turned(image, draws.factors[_HUE]))
  for i in range(3):
    image = mix(image, i, i >= turn_at)
  return image


def gaussian_blur(
  image: Float[Array, 'H W 3'], sigma: Float[Array, ''], largest: float
) -> Float[Array, 'H W 3']:
  """Blurs an image; beyond its border the last pixel goes on.

  Two matrix products: for a few taps a depthwise convolution would do less, but
  slowly, on a TPU's matrix unit and on a CPU alike.

  Args:
    image: of any range.
    sigma: standard deviation in pixels.
    largest: that sigma may have, which decides how far is looked.
  """
  rows, columns = (
    _blur_matrix(side, sigma, largest) for side in image.shape[:2]
  )
  return jnp.einsum('ij,jkc,lk->ilc', rows, image, columns)


def _blur_matrix(
  side: int, sigma: Float[Array, ''], largest: float
) -> Float[Array, 'side side']:
  """Weights of each pixel (columns) in each blurred one (rows)."""
  radius = int(_TRUNCATED * largest + 0.5)
  steps = jnp.arange(-radius, radius + 1)
  weights = jnp.exp(-0.5 * jnp.square(steps / sigma))
  weights = jnp.where(jnp.abs(steps) <= _TRUNCATED * sigma + 0.5, weights, 0.0)
  weights /= jnp.sum(weights)
  at = jnp.arange(side)[:, None]
  looked = jnp.clip(at + steps, 0, side - 1)
  return jnp.zeros((side, side)).at[at, looked].add(weights[None])


def _gray(image: Float[Array, 'H W 3']) -> Float[Array, 'H W 3']:
  """Gray values of ITU-R 601 in all channels."""
  return dm_pix.rgb_to_grayscale(image, keep_dims=True)


def _mixed(image: Array, other: Array, factor: Array) -> Array:
  return jnp.clip(factor * image + (1.0 - factor) * other, 0.0, 1.0)


def _other(
  image: Float[Array, 'H W 3'], kind: Int[Array, '']
) -> Float[Array, 'H W 3']:
  """What an image is mixed with: black, its mean gray, or its gray values."""
  gray = _gray(image)
  mean = jnp.where(kind == _CONTRAST, jnp.mean(gray), 0.0)
  return jnp.where(kind == _SATURATION, gray, mean)


def _turned(image: Array, turn: Array) -> Array:
  return jnp.clip(dm_pix.adjust_hue(image, turn), 0.0, 1.0)
