"""DDeP's noise and targets in plain numpy, as a reference for tests.

Transcribed from the specification (cited as §) and from nothing else.
"""

import numpy as np


def gamma_of(sigma):
  """Computes gamma = 1 / (1 + sigma²) (§4.1)."""
  return 1 / (1 + np.square(sigma))


def sigma_of(gamma):
  """Computes sigma = sqrt(1 / gamma - 1) (§4.1)."""
  return np.sqrt(1 / np.asarray(gamma) - 1)


def _per_example(value, like):
  """Reshapes a scalar or (B,) to broadcast against (B, H, W, C)."""
  value = np.asarray(value, np.float64)
  if value.ndim == 0:
    return value
  return value.reshape(value.shape + (1,) * (like.ndim - 1))


def simple_noise(
  image: np.ndarray, eps: np.ndarray, sigma, noise_space: str = 'unit'
) -> np.ndarray:
  """Computes x + sigma e (Eq. 1) of images in [-1, 1], in their units.

  Args:
    image: (B, H, W, C), y in [-1, 1].
    eps: e, standard normal, as the image.
    sigma: scalar or (B,).
    noise_space: 'unit' adds the noise to x = (y + 1) / 2, as the public code
      does: 2 sigma e in the units of y; 'symmetric' adds sigma e to y.
  """
  sigma = _per_example(sigma, image)
  return image + {'unit': 2.0, 'symmetric': 1.0}[noise_space] * sigma * eps


def scaled_noise(
  image: np.ndarray, eps: np.ndarray, gamma, noise_space: str = 'symmetric'
) -> np.ndarray:
  """Computes sqrt(gamma) y + sqrt(1 - gamma) e (Eq. 5), in units of [-1, 1].

  Args:
    image: (B, H, W, C), y in [-1, 1].
    eps: e, standard normal, as the image.
    gamma: scalar or (B,); `gamma_of(sigma)` for a sigma of Eq. 5.
    noise_space: 'symmetric' as above; 'unit' has x = (y + 1) / 2 in place of
      y, and converts the result to [-1, 1]. The public code does *not* convert
      it: see `scaled_noise_of_unit_image`.
  """
  gamma = _per_example(gamma, image)
  if noise_space == 'symmetric':
    return np.sqrt(gamma) * image + np.sqrt(1 - gamma) * eps
  if noise_space == 'unit':
    unit = np.sqrt(gamma) * (image + 1) / 2 + np.sqrt(1 - gamma) * eps
    return 2 * unit - 1
  raise ValueError(f'expected unit or symmetric, got {noise_space!r}')


def scaled_noise_of_unit_image(
  image: np.ndarray, eps: np.ndarray, gamma
) -> np.ndarray:
  """Computes scaled noise by the public code, of images in [0, 1] (§4.1)."""
  root = np.sqrt(_per_example(gamma, image))
  rest = np.sqrt(1 - _per_example(gamma, image))
  return root * image + (rest * eps - root + 1) / 2


def noise_target(
  kind: str,
  image: np.ndarray,
  eps: np.ndarray,
  *,
  gamma=None,
  sigma=None,
) -> np.ndarray:
  """Returns the target of the network (§4.2).

  Args:
    kind: 'eps', 'x' (the clean image, as the encoder takes it) or
      'eps_scaled' (sigma e of simple noise, sqrt(1 - gamma) e of scaled).
    image: (B, H, W, C), y in [-1, 1].
    eps: e, standard normal.
    gamma: of scaled noise; eps is 0 in an example where it is 1 (§4.3).
    sigma: of simple noise, instead of gamma.
  """
  if (gamma is None) == (sigma is None):
    raise ValueError('expected gamma (scaled noise) or sigma (simple noise)')
  if kind == 'x':
    return image
  if kind == 'eps':
    return eps if gamma is None else eps * (_per_example(gamma, image) < 1)
  if kind == 'eps_scaled':
    if gamma is None:
      return _per_example(sigma, image) * eps
    return np.sqrt(1 - _per_example(gamma, image)) * eps
  raise ValueError(f'expected eps, x or eps_scaled, got {kind!r}')


def denoising_loss(prediction: np.ndarray, target: np.ndarray) -> float:
  """Computes the mean squared error (Eq. 2 to 6)."""
  return float(np.mean((prediction - target) ** 2))


def clipped_uniform(u, low: float, high: float) -> np.ndarray:
  """Maps u ~ U(0, 1) to gamma ~ U(low, high), at most 1 (§4.3)."""
  return np.minimum(low + (high - low) * np.asarray(u), 1.0)


def gamma_schedule(
  kind: str, low: float, high: float, steps: int
) -> np.ndarray:
  """Computes gamma of the time steps 0 … steps - 1 (§4.3).

  Args:
    kind: 'linear' goes from high to low in equal steps; 'multiplicative' is
      the product of the first t of these, hence 1 at t = 0.
    low: the last of the linear values.
    high: the first of them.
    steps: their number.
  """
  linear = np.linspace(high, low, steps)
  if kind == 'linear':
    return linear
  if kind == 'multiplicative':
    return np.array([np.prod(linear[:step]) for step in range(steps)])
  raise ValueError(f'expected linear or multiplicative, got {kind!r}')
