"""Noise that is added to images, and the target that a decoder predicts.

Images y are in [-1, 1], noise e is standard normal per pixel and channel, γ is
the share of the image's power that is kept: 1 without noise.

  gamma = sample_noise_gamma(keys, options)
  eps = sample_noise(keys, images.shape)
  noisy = corrupt_with_noise(images, eps, gamma, options)
  prediction_target = denoising_target(images, eps, gamma, options)
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from segcore.types import Images

# Below this, no visible trace of the image is left.
_SMALLEST_GAMMA = 1e-4


@dataclasses.dataclass(frozen=True)
class NoiseOptions:
  """Options of the noise (spec DDeP §4).

  Exactly one of gamma, sigma and gamma_range gives the strength.

  Attributes:
    kind: 'scaled' attenuates the image so that the variance stays (Eq. 5);
      'simple' adds to it (Eq. 1).
    noise_space: range of the images that the equation is applied to, and unit
      of the noise's magnitude: 'symmetric' is [-1, 1]; 'unit' is [0, 1], where
      'scaled' attenuates toward black and σ = 0.22 is 0.44 of [-1, 1]; 'auto'
      is that of the public code: 'symmetric' for 'scaled' (toward mid-gray),
      'unit' for 'simple'.
    gamma: γ of Eq. 5, in (0, 1); 0 if another field gives the strength.
    sigma: σ of Eq. 1, in units of the noise space; equivalent to
      γ = 1 / (1 + σ²); 0 if another field gives the strength.
    gamma_range: least and largest γ, drawn for each image; an upper end above 1
      leaves some images without noise. (0, 0) if another field gives the
      strength.
    draw: distribution of γ over the range (§4.3): 'uniform', clipped at 1; or a
      uniform time step: 'linear' has `num_steps` equidistant values,
      'multiplicative' the products of the first t of these, t < num_steps.
    num_steps: number of diffusion steps of the kinds 'linear' and
      'multiplicative'; 0 for the other kinds.
    target: the prediction target: 'eps' is the noise e, 'x' the clean image,
      'eps_scaled' the noise times its magnitude. For an image without noise,
      the targets of noise are 0.
  """

  kind: Literal['scaled', 'simple'] = 'scaled'
  noise_space: Literal['auto', 'symmetric', 'unit'] = 'auto'
  gamma: float = 0.0
  sigma: float = 0.0
  gamma_range: tuple[float, float] = (0.0, 0.0)
  draw: Literal['uniform', 'linear', 'multiplicative'] = 'uniform'
  num_steps: int = 0
  target: Literal['eps', 'x', 'eps_scaled'] = 'eps'

  def __post_init__(self):
    if not 0 <= self.gamma < 1:
      raise ValueError(f'gamma: expected 0 < gamma < 1, got {self.gamma}')
    if self.sigma < 0:
      raise ValueError(f'sigma: expected above 0, got {self.sigma}')
    ranges = self.gamma_range != (0, 0)
    if sum(map(bool, (self.gamma, self.sigma, ranges))) != 1:
      raise ValueError(
        'expected exactly one of gamma, sigma and gamma_range, got '
        f'gamma={self.gamma}, sigma={self.sigma} and gamma_range='
        f'{self.gamma_range}: set the others to 0'
      )
    least, largest = self.gamma_range
    if ranges and not 0 < least < min(largest, 1):
      raise ValueError(
        'gamma_range: expected 0 < least < largest and least < 1, got '
        f'{self.gamma_range}'
      )
    self._check_steps(ranges)

  def _check_steps(self, ranges: bool) -> None:
    if self.draw != 'uniform' and not ranges:
      raise ValueError(
        f'draw={self.draw!r}: expected a gamma_range to draw from'
      )
    if (self.num_steps >= 2) != (self.draw != 'uniform'):
      wanted = '0' if self.draw == 'uniform' else 'at least 2'
      raise ValueError(
        f'num_steps: expected {wanted} for draw={self.draw!r}, got '
        f'{self.num_steps}'
      )
    if self.draw == 'uniform':
      return
    if self.gamma_range[1] > 1:
      raise ValueError(
        f'gamma_range: expected at most 1 for draw={self.draw!r}, got '
        f'{self.gamma_range}'
      )
    if self.levels[-1] < _SMALLEST_GAMMA:
      raise ValueError(
        f'gamma_range={self.gamma_range} and num_steps={self.num_steps}: '
        f'expected the last step to keep at least {_SMALLEST_GAMMA} of the '
        f'image, got {self.levels[-1]:.2g}'
      )

  @property
  def is_unit(self) -> bool:
    """Returns whether the equation is of images in [0, 1], not in [-1, 1]."""
    if self.noise_space == 'auto':
      return self.kind == 'simple'
    return self.noise_space == 'unit'

  @property
  def unit(self) -> float:
    """Returns the unit of the noise's magnitude, for images in [-1, 1]."""
    return 2.0 if self.is_unit else 1.0

  @property
  def levels(self) -> Float[np.ndarray, 'T']:
    """Returns γ of each time step, for 'linear' and 'multiplicative'."""
    least, largest = self.gamma_range
    linear = np.linspace(largest, least, self.num_steps)
    if self.draw == 'linear':
      return linear
    return np.cumprod([1.0, *linear[:-1]])


def sample_noise_gamma(keys: Array, options: NoiseOptions) -> Float[Array, 'B']:
  """Draws the noise level γ of each image from its key; float32.

  Args:
    keys: [B] PRNG keys. They may be passed to `sample_noise` too, since a
      constant is folded into them here.
    options: options of the noise.
  """
  if options.gamma_range == (0, 0):
    gamma = options.gamma or 1 / (1 + options.sigma**2)
    return jnp.full(len(keys), gamma, jnp.float32)
  # Folded, so that γ is independent of the noise drawn from the same keys.
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
  if options.draw == 'uniform':
    least, largest = options.gamma_range
    drawn = jax.vmap(jax.random.uniform)(keys)
    return jnp.minimum(least + (largest - least) * drawn, 1.0)
  steps = jax.vmap(
    lambda key: jax.random.randint(key, (), 0, options.num_steps)
  )
  return jnp.asarray(options.levels, jnp.float32)[steps(keys)]


def sample_noise(keys: Array, shape: tuple[int, ...]) -> Images:
  """Draws the noise e, each row from its own key; float32.

  Args:
    keys: [B] PRNG keys, one for each image.
    shape: shape [B, H, W, 3] of the images.
  """
  return jax.vmap(lambda key: jax.random.normal(key, shape[1:], jnp.float32))(
    keys
  )


def noise_magnitude(
  gamma: Float[Array, '*B'], options: NoiseOptions
) -> Float[Array, '*B']:
  """Computes the factor of the noise e, in units of the noise space.

  It is sqrt(1 - γ) for 'scaled' and σ = sqrt(1/γ - 1) for 'simple'.

  Args:
    gamma: noise level γ, in (0, 1]; 1 is no noise.
    options: kind and space of the noise.
  """
  power = 1 - gamma
  return jnp.sqrt(power if options.kind == 'scaled' else power / gamma)


def corrupt_with_noise(
  images: Images, eps: Images, gamma: Float[Array, 'B'], options: NoiseOptions
) -> Images:
  """Adds noise to images; the result is not clipped.

  scaled (Eq. 5): sqrt(γ) y + sqrt(1 - γ) e.
  simple (Eq. 1): y + σ e.
  In the noise space 'unit' these are of x = (y + 1) / 2, and the result is
  mapped back to [-1, 1]: simple noise is y + 2 σ e.

  Args:
    images: clean images y in [-1, 1].
    eps: noise e of mean 0 and variance 1.
    gamma: noise level γ of each image, in (0, 1]; 1 is no noise.
    options: kind and space of the noise.
  """
  gamma = _per_image(gamma)
  added = noise_magnitude(gamma, options) * eps
  if options.kind == 'scaled':
    images = _attenuate(images, jnp.sqrt(gamma), options)
  return images + options.unit * added


def denoising_target(
  images: Images, eps: Images, gamma: Float[Array, 'B'], options: NoiseOptions
) -> Images:
  """Computes the target of the prediction (spec DDeP §4.2).

  Args:
    images: clean images in [-1, 1].
    eps: noise that was added to them.
    gamma: noise level γ of each image, in (0, 1]; 1 is no noise.
    options: kind and space of the noise, and the kind of target.
  """
  gamma = _per_image(gamma)
  match options.target:
    case 'eps':
      return jnp.where(gamma < 1, eps, 0.0)
    case 'x':
      return images
    case 'eps_scaled':
      return noise_magnitude(gamma, options) * eps


def denoised_images(
  noisy: Images,
  predicted: Images,
  gamma: Float[Array, 'B'],
  options: NoiseOptions,
) -> Images:
  """Computes the clean images from the noisy ones and a prediction.

  Args:
    noisy: images with noise.
    predicted: prediction of the target of `options`.
    gamma: noise level γ of each image, in (0, 1].
    options: kind and space of the noise, and the kind of target.
  """
  if options.target == 'x':
    return predicted
  gamma = _per_image(gamma)
  added = (
    predicted
    if options.target == 'eps_scaled'
    else noise_magnitude(gamma, options) * predicted
  )
  images = noisy - options.unit * added
  if options.kind == 'scaled':
    images = _attenuate(images, 1 / jnp.sqrt(gamma), options)
  return images


def _attenuate(
  images: Images, factor: Float[Array, 'B 1 1 1'], options: NoiseOptions
) -> Images:
  """Multiplies images by a factor, in the noise space."""
  if options.is_unit:  # factor · (y + 1) - 1, exactly y for a factor of 1.
    return factor * images + (factor - 1.0)
  return factor * images


def _per_image(gamma: Float[Array, 'B']) -> Float[Array, 'B 1 1 1']:
  return gamma[:, None, None, None]
