"""Noise that is added to images, and what a decoder is asked to find of it.

Images y are in [-1, 1], noise e is standard normal per pixel and channel.

  eps = sample(keys, images.shape)
  noisy = corrupt(images, eps, options)
  aim = target(images, eps, options)
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Options:
  """Kind and strength of the noise (spec DDeP §4).

  Attributes:
    kind: 'scaled' attenuates the image so that the variance stays (Eq. 5);
      'simple' adds to it (Eq. 1).
    gamma: γ of Eq. 5, the share of the image's power that is kept, in (0, 1);
      0 where sigma is given.
    sigma: σ of Eq. 1, in units of images in [0, 1] for 'simple'; gives
      γ = 1 / (1 + σ²) for 'scaled'; 0 where gamma is given.
    target: what is predicted: 'eps' the noise e, 'x' the clean image, or
      'eps_scaled' the noise at its magnitude.
  """

  kind: Literal['scaled', 'simple'] = 'scaled'
  gamma: float = 0.0
  sigma: float = 0.0
  target: Literal['eps', 'x', 'eps_scaled'] = 'eps'

  def __post_init__(self):
    if not 0 <= self.gamma < 1:
      raise ValueError(f'gamma: found {self.gamma}, expected 0 < gamma < 1')
    if self.sigma < 0:
      raise ValueError(f'sigma: found {self.sigma}, expected above 0')
    if bool(self.gamma) == bool(self.sigma):
      raise ValueError(
        f'gamma={self.gamma} and sigma={self.sigma}: expected exactly one of '
        'them, set the other to 0'
      )

  @property
  def power_kept(self) -> float:
    """γ = 1 / (1 + σ²)."""
    return self.gamma or 1 / (1 + self.sigma**2)

  @property
  def magnitude(self) -> float:
    """Factor of e: sqrt(1 - γ) for 'scaled', σ for 'simple'."""
    if self.kind == 'scaled':
      return math.sqrt(1 - self.power_kept)
    return self.sigma or math.sqrt(1 / self.gamma - 1)


def sample(keys: Array, shape: tuple[int, ...]) -> Float[Array, 'B H W 3']:
  """Draws e, each row from its own key; float32.

  Args:
    keys: [B] of keys.
    shape: [B, H, W, 3] of the images.
  """
  return jax.vmap(lambda key: jax.random.normal(key, shape[1:], jnp.float32))(
    keys
  )


def corrupt(
  images: Float[Array, 'B H W 3'],
  eps: Float[Array, 'B H W 3'],
  options: Options,
) -> Float[Array, 'B H W 3']:
  """Adds the noise; not clipped.

  scaled (Eq. 5): sqrt(γ) y + sqrt(1 - γ) e.
  simple (Eq. 1): x + σ e on images x in [0, 1], that is y + 2 σ e.
  """
  if options.kind == 'scaled':
    return math.sqrt(options.power_kept) * images + options.magnitude * eps
  return images + 2 * options.magnitude * eps


def target(
  images: Float[Array, 'B H W 3'],
  eps: Float[Array, 'B H W 3'],
  options: Options,
) -> Float[Array, 'B H W 3']:
  """What the prediction is compared with (spec DDeP §4.2)."""
  match options.target:
    case 'eps':
      return eps
    case 'x':
      return images
    case 'eps_scaled':
      return options.magnitude * eps


def clean(
  noisy: Float[Array, 'B H W 3'],
  found: Float[Array, 'B H W 3'],
  options: Options,
) -> Float[Array, 'B H W 3']:
  """The image that a prediction amounts to: `corrupt` solved for it."""
  if options.target == 'x':
    return found
  eps = found if options.target == 'eps' else found / options.magnitude
  if options.kind == 'scaled':
    return (noisy - options.magnitude * eps) / math.sqrt(options.power_kept)
  return noisy - 2 * options.magnitude * eps
