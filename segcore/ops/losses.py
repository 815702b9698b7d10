"""Losses per pixel, image or element, and the one place that averages them.

  loss = losses.cross_entropy(logits, labels)
  loss = losses.masked_mean(loss, labels >= 0)

No loss reduces itself: mask, weights and mean are applied once, by the caller.
All of it is float32 at least, whatever the precision of the network.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from segcore.ops import order_statistics
from segcore.types import Scalar


def cross_entropy(
  logits: Float[Array, '*shape C'], labels: Int[Array, '*shape']
) -> Float[Array, '*shape']:
  """Cross entropy of each pixel, in nats; 0 where the label is negative.

  The gradient of an ignored pixel is 0. A label of C or more gives NaN, so
  that the loop's finite check stops on it.

  >>> cross_entropy(jnp.zeros((1, 1, 2, 4)), jnp.array([[[2, -1]]]))
  Array([[[1.3862944, 0.       ]]], dtype=float32)
  """
  loss = optax.softmax_cross_entropy_with_integer_labels(
    at_least_float32(logits), jnp.maximum(labels, 0)
  )
  return jnp.where(labels < 0, 0.0, loss)


def label_probability(
  logits: Float[Array, '*shape C'], labels: Int[Array, '*shape']
) -> Float[Array, '*shape']:
  """What softmax gives to each pixel's label; class 0 where it is ignored."""
  probs = jax.nn.softmax(at_least_float32(logits))
  indices = jnp.maximum(labels, 0).astype(jnp.int32)[..., None]
  return jnp.take_along_axis(probs, indices, axis=-1)[..., 0]


def hard_example_mask(
  logits: Float[Array, '*shape C'],
  labels: Int[Array, '*shape'],
  threshold: float,
  least: int,
) -> Bool[Array, '*shape']:
  """Pixels that online hard example mining (OHEM) keeps.

  Those whose class is no more probable than the threshold, or than that of the
  `least`-th hardest pixel if that is more. All pixels with a label, if they are
  fewer than `least`, or if that is 0. Source: spec U2PL §3.1.

  Args:
    logits: of the pixels of all images.
    labels: negative where ignored; such pixels count as certain.
    threshold: probability.
    least: pixels.
  """
  valid = labels >= 0
  if not least:
    return valid
  at_label = label_probability(jax.lax.stop_gradient(logits), labels)
  certain = jnp.where(valid, at_label, 1.0)
  rank = jnp.asarray(min(valid.size, least) - 1, jnp.int32)
  limit = order_statistics.order_statistic(certain, jnp.ones_like(valid), rank)
  few = jnp.sum(valid, dtype=jnp.int32) < least
  return valid & (few | (certain <= jnp.maximum(limit, threshold)))


def at_least_float32(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """x in float32, or as it is if that is more."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def tag_cross_entropy(
  logits: Float[Array, 'B C'],
  tags: Bool[Array, 'B C'],
  kind: Literal['softmax', 'sigmoid'],
) -> Float[Array, 'B']:
  """Cross entropy of image-level labels, in nats.

  `softmax`: an image has exactly one tag; one with none or several gives NaN
  (rows that only pad the batch have none: mask them). `sigmoid`: any number of
  tags; the mean over classes of the binary cross entropies, which is torch's
  MultiLabelSoftMarginLoss.

  >>> tags = jnp.array([[True, False]])
  >>> tag_cross_entropy(jnp.zeros((1, 2)), tags, 'softmax')
  Array([0.6931472], dtype=float32)
  """
  logits = at_least_float32(logits)
  if kind == 'softmax':
    # A class of logit -inf costs nothing unless it is the tag: no 0 * inf.
    loss = -jnp.sum(jnp.where(tags, jax.nn.log_softmax(logits), 0.0), axis=-1)
    return jnp.where(jnp.sum(tags, axis=-1) == 1, loss, jnp.nan)
  if kind == 'sigmoid':
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, tags), axis=-1)
  raise ValueError(f'kind is {kind!r}; allowed: softmax, sigmoid')


def squared_error(
  prediction: Float[Array, '*shape'], target: Float[Array, '*shape']
) -> Float[Array, '*shape']:
  """Squared difference of each element, without the factor ½.

  >>> squared_error(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]))
  Array([4., 0.], dtype=float32)
  """
  return jnp.square(at_least_float32(prediction) - at_least_float32(target))


def masked_sum_and_count(
  values: Float[Array, '*shape'], mask: Bool[Array, '*shape']
) -> tuple[Scalar, Scalar]:
  """Sum of the values under the mask, and how many they are.

  What lies outside the mask touches neither sum nor gradient, even NaN. Both
  numbers add up over parts of a batch, which is what accumulation needs.

  >>> masked_sum_and_count(jnp.array([1.0, 2.0]), jnp.array([False, True]))
  (Array(2., dtype=float32), Array(1., dtype=float32))
  """
  total = jnp.sum(jnp.where(mask, at_least_float32(values), 0.0))
  # Counted in int32: float32 stops counting by ones at 16.7 million pixels.
  return total, jnp.sum(mask, dtype=jnp.int32).astype(total.dtype)


def masked_mean(
  values: Float[Array, '*shape'], mask: Bool[Array, '*shape']
) -> Scalar:
  """Mean of the values under the mask; 0, with a zero gradient, if it is empty.

  >>> masked_mean(jnp.array([1.0, 2.0, 4.0]), jnp.array([False, True, True]))
  Array(3., dtype=float32)
  """
  total, count = masked_sum_and_count(values, mask)
  return total / jnp.maximum(count, 1.0)
