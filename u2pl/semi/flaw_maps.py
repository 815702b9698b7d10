"""The maps of GCT: targets of the flaw detector, and of dynamic consistency.

  target = flaw_target(labels, probabilities)
  handled = handle_flaw_map(flaw_map)
  targets, both_bad = consistency_targets(probabilities, handled, threshold)

All of them are per image and without a gradient. Source: Ke et al. 2020,
"Guided Collaborative Training for Pixel-wise Semi-Supervised Learning" (GCT).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from segcore.ops import color_augment

Maps = Float[Array, 'B H W']

# Added to the range of a map before it is divided by it.
_EPSILON = 1e-9
# Largest value of a handled map that counts as no flaw at all.
_CLIPPED = 0.1


def flaw_target(
  labels: Int[Array, 'B H W'],
  probabilities: Float[Array, 'B H W C'],
  mu: float = 0.5,
  num_repeats: int = 1,
) -> Maps:
  """Computes the target of the flaw detector for labeled images, in [0, 1].

  μ Σ_c |y_c - p_c|, blurred; then ν times the largest of 3x3 pixels, blurred.
  Ignored pixels have no class: their sum is 1.

  Args:
    labels: ground truth; negative where ignored.
    probabilities: prediction.
    mu: μ.
    num_repeats: ν.
  """
  height = labels.shape[1]
  one_hot = jax.nn.one_hot(
    labels, probabilities.shape[-1], dtype=probabilities.dtype
  )
  flaws = mu * jnp.sum(jnp.abs(one_hot - probabilities), axis=-1)
  flaws = blur(flaws, odd_size(height / 8))
  for _ in range(num_repeats):
    flaws = blur(_largest_of_3x3(flaws), odd_size(height / 4))
  return _stretch(flaws, flaws)


def handle_flaw_map(flaw_map: Maps) -> Maps:
  """Blurs a predicted flaw map, clears it if it is small, and scales it.

  Smallest and largest value are those before a map is cleared.
  """
  flaws = blur(jnp.maximum(flaw_map, 0), odd_size(flaw_map.shape[1] / 16))
  largest = jnp.max(flaws, axis=(1, 2), keepdims=True)
  return _stretch(jnp.where(largest > _CLIPPED, flaws, 0), flaws)


def consistency_targets(
  probabilities: tuple[Float[Array, 'B H W C'], Float[Array, 'B H W C']],
  handled: tuple[Maps, Maps],
  threshold: float,
) -> tuple[
  tuple[Float[Array, 'B H W C'], Float[Array, 'B H W C']],
  Bool[Array, 'B H W'],
]:
  """Computes for each pixel the prediction of the network with fewer flaws.

  Args:
    probabilities: predictions of both networks.
    handled: handled flaw maps of both.
    threshold: ξ; above it a flaw counts as 1. Of two equal flaws each network
      keeps its own prediction.

  Returns:
    The targets of both, and the pixels above the threshold in both.
  """
  bad = [flaws > threshold for flaws in handled]
  first, second = (
    jnp.where(is_bad, 1, flaws)
    for is_bad, flaws in zip(bad, handled, strict=True)
  )
  targets = (
    jnp.where((second >= first)[..., None], *probabilities),
    jnp.where((first >= second)[..., None], *probabilities[::-1]),
  )
  return targets, bad[0] & bad[1]


def odd_size(length: float) -> int:
  """Returns a length rounded down, then up to an odd number.

  >>> odd_size(513 / 8), odd_size(513 / 16)
  (65, 33)
  """
  return int(length) + 1 - int(length) % 2


def blur(maps: Maps, size: int) -> Maps:
  """Blurs maps by a Gaussian filter, reflected at the border.

  Args:
    maps: maps whose sides exceed half of the size.
    size: odd number of taps a side.
  """
  weights = jnp.asarray(blur_weights(size), maps.dtype)
  rows, columns = (
    color_augment.blur_matrix(weights, side, 'reflect')
    for side in maps.shape[1:]
  )
  return jnp.einsum(
    'ih,jw,bhw->bij',
    rows,
    columns,
    maps,
    precision=jax.lax.Precision.HIGHEST,
  )


def blur_weights(size: int) -> Float[np.ndarray, 'size']:
  """Computes the weights of the filter along an axis.

  They are a unit impulse of this size, filtered by a Gaussian whose border is
  the impulse mirrored, edge pixels included, with σ = 0.3 ((size - 1)/2 - 1) +
  0.8, cut off at 4σ.

  Args:
    size: odd number of taps.
  """
  sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
  radius = int(4 * sigma + 0.5)
  gaussian = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / sigma))
  impulse = np.zeros(size)
  impulse[size // 2] = 1
  framed = np.pad(impulse, radius, mode='symmetric')
  return np.convolve(framed, gaussian / gaussian.sum(), mode='valid')


def _largest_of_3x3(maps: Maps) -> Maps:
  """Computes the largest value of the 3x3 pixels around each pixel.

  Reflection at the border adds no value that is not in the 3x3 already.
  """
  for axis in (1, 2):
    pads = [(1, 1) if i == axis else (0, 0) for i in range(3)]
    framed, side = jnp.pad(maps, pads, mode='reflect'), maps.shape[axis]
    before = jax.lax.slice_in_dim(framed, 0, side, axis=axis)
    after = jax.lax.slice_in_dim(framed, 2, side + 2, axis=axis)
    maps = jnp.maximum(maps, jnp.maximum(before, after))
  return maps


def _stretch(maps: Maps, reference: Maps) -> Maps:
  """Maps the range of the values of a reference to [0, 1], in each image."""
  low = jnp.min(reference, axis=(1, 2), keepdims=True)
  high = jnp.max(reference, axis=(1, 2), keepdims=True)
  return (maps - low) / (high - low + _EPSILON)
