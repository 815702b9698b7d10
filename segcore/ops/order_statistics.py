"""Order statistics and random selection over all pixels of a global batch.

  gamma = percentile(entropy, valid, 80.0)
  pixels = nth_true_pixels(candidates, ranks)

Sorting or gathering pixels of a batch that is sharded over devices would move
all of them. These functions search by bisection and by counting, so devices
exchange a few counts only.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray, Shaped

from segcore.types import ExampleKeys, Scalar


def order_statistic(
  values: Float[Array, '*shape'], mask: Bool[Array, '*shape'], rank: ArrayLike
) -> Scalar:
  """Returns the value of a rank among those under the mask.

  Bisects the range of all floats, 32 times for float32: each halving counts the
  values below the middle. The bits of floats are compared as integers, whose
  order is that of the values (see `_to_keys`), so the result is exact.

  Args:
    values: array without NaN under the mask.
    mask: mask with at least one true element.
    rank: int [], rank counted from 0; clipped to the number of values.
  """
  keys = _to_keys(values)
  target = jnp.clip(rank, 0, jnp.maximum(_count(mask) - 1, 0)) + 1

  def halve(_, bounds):
    # Invariant: the key of the rank is in [low, high].
    low, high = bounds
    # The mean, rounded down, without the sum, which could overflow.
    middle = (low & high) + ((low ^ high) >> 1)
    enough = _count(mask & (keys <= middle)) >= target
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
  """Computes a percentile of the values under the mask, as numpy's 'linear'.

  Args:
    values: array without NaN under the mask.
    mask: mask of the values that count; infinity is returned if it is empty.
    percent: float [], percentile from 0 to 100.

  >>> percentile(jnp.array([0.0, 1.0, 4.0]), jnp.array([1, 1, 1]) > 0, 75.0)
  Array(2.5, dtype=float32)
  """
  count = _count(mask)
  position = jnp.asarray(percent, values.dtype) / 100 * (count - 1)
  rank = jnp.floor(position).astype(jnp.int32)
  low = order_statistic(values, mask, rank)
  # The next order statistic needs no second bisection: it is equal to this one,
  # or the smallest of the values that are larger.
  larger = mask & (values > low)
  following = jnp.min(jnp.where(larger, values, jnp.inf))
  repeated = _count(mask & (values <= low)) > rank + 1
  high = jnp.where(repeated | (following == jnp.inf), low, following)
  result = low + (high - low) * (position - rank.astype(values.dtype))
  return jnp.where(count > 0, result, jnp.inf)


def ranks_from_uniforms(
  uniforms: Float[Array, '*shape'], counts: Int[Array, '...']
) -> Int[Array, '*shape']:
  """Converts uniform numbers in [0, 1) to ranks from 0 to count - 1.

  Args:
    uniforms: uniform numbers in [0, 1).
    counts: numbers of candidates, broadcast against the draws; the rank is 0
      where the count is 0.

  >>> ranks_from_uniforms(jnp.array([0.0, 0.5, 0.999]), jnp.array([4, 4, 4]))
  Array([0, 2, 3], dtype=int32)
  """
  ranks = jnp.floor(uniforms * counts).astype(jnp.int32)
  # Rounding may take the product up to the count itself.
  return jnp.clip(ranks, 0, jnp.maximum(counts - 1, 0))


def nth_true_pixels(
  mask: Bool[Array, 'B P C'], ranks: Int[Array, 'C num_ranks']
) -> Int[Array, 'C num_ranks']:
  """Finds the pixels of given ranks under each class's mask.

  Args:
    mask: mask of the pixels of each class.
    ranks: ranks from 0, in the order of images and then pixels.

  Returns:
    Indices b·P + p; 0 for a rank that is not less than the class's count.
  """
  num_images, num_pixels, _ = mask.shape
  # Running counts are the largest arrays here: in the smallest sufficient type.
  dtype = jnp.uint16 if num_pixels < 2**16 else jnp.int32
  running = jnp.cumsum(mask, axis=1, dtype=dtype)
  per_image = jnp.sum(mask, axis=1, dtype=jnp.int32)
  before = jnp.cumsum(per_image, axis=0) - per_image
  # The rank within each image, valid in the one image that the pixel is in.
  local = ranks - before[:, :, None]
  in_image = (local >= 0) & (local < per_image[:, :, None])

  def search(
    running: Integer[Array, 'P'], local: Int[Array, 'num_ranks']
  ) -> Int[Array, 'num_ranks']:
    # The pixel of rank r is the first at which the running count is r + 1.
    target = jnp.clip(local + 1, 0, num_pixels).astype(dtype)
    return jnp.searchsorted(running, target)

  search_classes = jax.vmap(search, in_axes=(1, 0))
  pixel = jax.vmap(search_classes)(running, local).astype(jnp.int32)
  start = num_pixels * jnp.arange(num_images, dtype=jnp.int32)[:, None, None]
  # Sums over images: every device searches its own images, one term is not 0.
  return jnp.sum(jnp.where(in_image, start + pixel, 0), axis=0, dtype=jnp.int32)


def keep_top_priorities(
  mask: Bool[Array, 'B P C'], priorities: Int[Array, 'B P'], max_count: int
) -> Bool[Array, 'B P C']:
  """Keeps the `max_count` pixels of highest priority under each class's mask.

  With priorities of `sample_pixel_priorities` this is a uniform random
  selection, the same one on any number of devices.

  Args:
    mask: mask of the pixels of each class.
    priorities: non-negative priority of each pixel.
    max_count: number of pixels of a class that are kept; more are kept where
      several pixels share the lowest of their priorities.
  """
  counts = jnp.sum(mask, axis=(0, 1), dtype=jnp.int32)
  high = jnp.iinfo(priorities.dtype).max

  def halve(_, bounds):
    # Finds, by class, the smallest threshold above which fewer than `max_count`
    # pixels lie: from this threshold on there are that many.
    low, top = bounds
    middle = low + ((top - low) >> 1)
    above = jnp.sum(
      mask & (priorities[..., None] > middle), axis=(0, 1), dtype=jnp.int32
    )
    few = above < max_count
    return jnp.where(few, low, middle + 1), jnp.where(few, middle, top)

  bounds = (jnp.zeros_like(counts), jnp.full_like(counts, high))
  threshold, _ = jax.lax.fori_loop(0, 31, halve, bounds)
  kept = mask & (priorities[..., None] >= threshold)
  return jnp.where(counts <= max_count, mask, kept)


def sample_pixel_priorities(
  keys: ExampleKeys, num_pixels: int
) -> Int[Array, 'B P']:
  """Samples uniform integers from 0 to 2³¹ - 1 for the pixels of each image.

  Args:
    keys: keys of the images of the global batch.
    num_pixels: number P of pixels of an image.
  """

  def draw(key: PRNGKeyArray) -> Int[Array, 'P']:
    bits = jax.random.bits(key, (num_pixels,), jnp.uint32)
    return (bits >> 1).astype(jnp.int32)

  return jax.vmap(draw)(keys)


def _count(mask: Bool[Array, '*shape']) -> Int[Array, '']:
  # In int32: float32 has gaps above 16.7 million, fewer than a batch's pixels.
  return jnp.sum(mask, dtype=jnp.int32)


def _to_keys(values: Float[Array, '*shape']) -> Int[Array, '*shape']:
  """Maps floats to integers of the same order.

  The bits of floats that are not negative are ordered as they are; those of
  negative ones in reverse, so all their bits but the sign are flipped.
  """
  dtype = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
  # Adding 0 turns -0, which has other bits, into 0.
  bits = jax.lax.bitcast_convert_type(values + 0.0, dtype)
  return jnp.where(bits < 0, bits ^ jnp.iinfo(dtype).max, bits)


def _from_keys(keys: Shaped[Array, ''], dtype: DTypeLike) -> Scalar:
  bits = jnp.where(keys < 0, keys ^ jnp.iinfo(keys.dtype).max, keys)
  return jax.lax.bitcast_convert_type(bits, dtype)
