"""Order statistics and draws over all pixels of a global batch.

No pixel is sorted or gathered: what devices exchange are counts.

  gamma = percentile(entropy, valid, 80.0)
  pixels = nth_true(candidates, ranks)
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from segcore.types import Scalar


def order_statistic(
  values: Float[Array, '*shape'], mask: Bool[Array, '*shape'], rank: ArrayLike
) -> Scalar:
  """The value of a rank, counted from 0, among those under the mask.

  Found by halving the range of all floats until one is left; what is compared
  are the bits, whose order as integers is that of the values.

  Args:
    values: no NaN under the mask.
    mask: which of them count; at least one.
    rank: int [], clipped to those there are.
  """
  keys = _to_keys(values)
  wanted = jnp.clip(rank, 0, jnp.maximum(_count(mask) - 1, 0)) + 1

  def halve(_, bounds):
    low, high = bounds
    # The mean, rounded down; their sum could overflow.
    middle = (low & high) + ((low ^ high) >> 1)
    enough = _count(mask & (keys <= middle)) >= wanted
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  limits = jnp.iinfo(keys.dtype)
  bounds = (
    jnp.array(limits.min, keys.dtype),
    jnp.array(limits.max, keys.dtype),
  )
  key, _ = jax.lax.fori_loop(0, limits.bits, halve, bounds)
  return _from_keys(key, values.dtype)


def percentile(
  values: Float[Array, '*shape'],
  mask: Bool[Array, '*shape'],
  percent: ArrayLike,
) -> Scalar:
  """The percentile of the values under the mask, as numpy's 'linear' finds it.

  Args:
    values: no NaN under the mask.
    mask: which of them count; infinity is returned where there are none.
    percent: [], from 0 to 100.

  >>> percentile(jnp.array([0.0, 1.0, 4.0]), jnp.array([1, 1, 1]) > 0, 75.0)
  Array(2.5, dtype=float32)
  """
  count = _count(mask)
  position = jnp.asarray(percent, values.dtype) / 100 * (count - 1)
  rank = jnp.floor(position).astype(jnp.int32)
  low = order_statistic(values, mask, rank)
  # The next one: equal to it, or the least of those that are larger.
  larger = mask & (values > low)
  following = jnp.min(jnp.where(larger, values, jnp.inf))
  repeated = _count(mask & (values <= low)) > rank + 1
  high = jnp.where(repeated | (following == jnp.inf), low, following)
  found = low + (high - low) * (position - rank.astype(values.dtype))
  return jnp.where(count > 0, found, jnp.inf)


def ranks_from_uniforms(
  uniforms: Float[Array, '*shape'], counts: Int[Array, '...']
) -> Int[Array, '*shape']:
  """Ranks in 0 … count - 1 from uniform numbers in [0, 1); 0 for a count of 0.

  Counts are broadcast against the numbers.

  >>> ranks_from_uniforms(jnp.array([0.0, 0.5, 0.999]), jnp.array([4, 4, 4]))
  Array([0, 2, 3], dtype=int32)
  """
  ranks = jnp.floor(uniforms * counts).astype(jnp.int32)
  return jnp.clip(ranks, 0, jnp.maximum(counts - 1, 0))


def nth_true(
  mask: Bool[Array, 'B P C'], ranks: Int[Array, 'C R']
) -> Int[Array, 'C R']:
  """Where, for each class, the pixels of these ranks under the mask are.

  Args:
    mask: P pixels of each image.
    ranks: from 0, in the order of images and pixels.

  Returns:
    b·P + p; 0 for a rank that there is not.
  """
  num_images, num_pixels, _ = mask.shape
  # The largest arrays here, so of the smallest type that can count an image.
  kind = jnp.uint16 if num_pixels < 2**16 else jnp.int32
  inside = jnp.cumsum(mask, axis=1, dtype=kind)
  of_image = jnp.sum(mask, axis=1, dtype=jnp.int32)
  before = jnp.cumsum(of_image, axis=0) - of_image
  local = ranks - before[:, :, None]
  here = (local >= 0) & (local < of_image[:, :, None])

  def search(running: Array, wanted: Array) -> Array:
    wanted = jnp.clip(wanted + 1, 0, num_pixels).astype(kind)
    return jnp.searchsorted(running, wanted)

  of_classes = jax.vmap(search, in_axes=(1, 0))
  pixel = jax.vmap(of_classes)(inside, local).astype(jnp.int32)
  start = num_pixels * jnp.arange(num_images, dtype=jnp.int32)[:, None, None]
  return jnp.sum(jnp.where(here, start + pixel, 0), axis=0, dtype=jnp.int32)


def keep_top_priorities(
  mask: Bool[Array, 'B P C'], priorities: Int[Array, 'B P'], most: int
) -> Bool[Array, 'B P C']:
  """The mask, thinned out to `most` pixels of each class.

  Args:
    mask: pixels of each class.
    priorities: of each pixel; the largest stay. Uniform draws, with a key for
      each image, make of this a uniform choice that is the same on any number
      of devices.
    most: pixels of a class that stay. Where the priorities of several pixels
      are equal, more may.
  """
  counts = jnp.sum(mask, axis=(0, 1), dtype=jnp.int32)
  high = jnp.iinfo(priorities.dtype).max

  def halve(_, bounds):
    # The least threshold at which no more than `most` pixels are left.
    low, top = bounds
    middle = low + ((top - low) >> 1)
    left = jnp.sum(
      mask & (priorities[..., None] > middle), axis=(0, 1), dtype=jnp.int32
    )
    few = left < most
    return jnp.where(few, low, middle + 1), jnp.where(few, middle, top)

  bounds = (jnp.zeros_like(counts), jnp.full_like(counts, high))
  threshold, _ = jax.lax.fori_loop(0, 31, halve, bounds)
  chosen = mask & (priorities[..., None] >= threshold)
  return jnp.where(counts <= most, mask, chosen)


def draw_pixel_priorities(keys: Array, num_pixels: int) -> Int[Array, 'B P']:
  """Uniform draws from 0 to 2³¹ - 1 for the pixels of each image.

  Args:
    keys: [B] of keys, one for each image of the global batch.
    num_pixels: of an image.
  """

  def draw(key: Array) -> Array:
    bits = jax.random.bits(key, (num_pixels,), jnp.uint32)
    return (bits >> 1).astype(jnp.int32)

  return jax.vmap(draw)(keys)


def _count(mask: Bool[Array, '*shape']) -> Int[Array, '']:
  return jnp.sum(mask, dtype=jnp.int32)


def _to_keys(values: Float[Array, '*shape']) -> Int[Array, '*shape']:
  """Integers in the order of the floats."""
  kind = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
  # -0 is 0.
  bits = jax.lax.bitcast_convert_type(values + 0.0, kind)
  return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)


def _from_keys(keys: Shaped[Array, ''], dtype) -> Scalar:
  bits = jnp.where(keys < 0, keys ^ jnp.iinfo(keys.dtype).max, keys)
  return jax.lax.bitcast_convert_type(bits, dtype)
