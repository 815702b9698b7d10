"""Losses by pixel, image or element, and the one function that averages them.

  loss = losses.cross_entropy(logits, labels)
  loss = losses.masked_mean(loss, labels >= 0)

No loss is reduced here: the caller applies mask, weights and mean once. All are
computed in float32 or better, whatever the precision of the network.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from etils import epy
from jaxtyping import Array, Bool, Float, Int

from segcore.ops import order_statistics
from segcore.types import Scalar

with epy.lazy_imports():
  import optax


def cross_entropy(
  logits: Float[Array, '*shape C'], labels: Int[Array, '*shape']
) -> Float[Array, '*shape']:
  """Computes the cross entropy of each pixel, in nats.

  Loss and gradient are 0 where the label is negative. A label of C or more
  gives NaN, at which the training stops, instead of a wrong class.

  >>> cross_entropy(jnp.zeros((1, 1, 2, 4)), jnp.array([[[2, -1]]]))
  Array([[[1.3862944, 0.       ]]], dtype=float32)
  """
  # Optax wraps negative labels around, so they are replaced before and masked
  # after; `where` and not a product, which would keep NaN of ignored pixels.
  loss = optax.softmax_cross_entropy_with_integer_labels(
    at_least_float32(logits), jnp.maximum(labels, 0)
  )
  return jnp.where(labels < 0, 0.0, loss)


def label_probability(
  logits: Float[Array, '*shape C'], labels: Int[Array, '*shape']
) -> Float[Array, '*shape']:
  """Computes the softmax probability of each pixel's label.

  Where the label is negative, the result is the probability of class 0.
  """
  probs = jax.nn.softmax(at_least_float32(logits))
  indices = jnp.maximum(labels, 0).astype(jnp.int32)[..., None]
  return jnp.take_along_axis(probs, indices, axis=-1)[..., 0]


def hard_example_mask(
  logits: Float[Array, '*shape C'],
  labels: Int[Array, '*shape'],
  threshold: float,
  min_kept: int,
) -> Bool[Array, '*shape']:
  """Selects the pixels that online hard example mining (OHEM) keeps.

  These are the pixels whose label has at most the threshold's probability, or
  the `min_kept` hardest pixels if these are more. All labeled pixels are kept
  if there are fewer than `min_kept`, or if `min_kept` is 0.
  Source: Shrivastava et al. 2016, as U2PL (Wang et al. 2022) has it.

  Args:
    logits: logits of the pixels of all images.
    labels: class of each pixel; negative where ignored, which is never kept.
    threshold: probability of the label up to which a pixel is hard.
    min_kept: least number of pixels to keep in the whole batch.
  """
  valid = labels >= 0
  if not min_kept:
    return valid
  probs = label_probability(jax.lax.stop_gradient(logits), labels)
  probs = jnp.where(valid, probs, 1.0)  # Ignored pixels rank last.
  # The selection is data, not a subset of fixed size: a threshold that all
  # devices compute together, instead of a sort of all pixels.
  rank = jnp.asarray(min(valid.size, min_kept) - 1, jnp.int32)
  limit = order_statistics.order_statistic(probs, jnp.ones_like(valid), rank)
  too_few = jnp.sum(valid, dtype=jnp.int32) < min_kept
  return valid & (too_few | (probs <= jnp.maximum(limit, threshold)))


def at_least_float32(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Converts x to float32, unless its precision is higher."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def tag_cross_entropy(
  logits: Float[Array, 'B C'],
  tags: Bool[Array, 'B C'],
  kind: Literal['softmax', 'sigmoid'],
) -> Float[Array, 'B']:
  """Computes the cross entropy of image-level labels, in nats.

  Args:
    logits: logits of each image.
    tags: the classes in each image.
    kind: 'softmax' for exactly one tag an image: none or several give NaN
      (padding rows of a batch have none and must be masked); 'sigmoid' for any
      number: the mean over classes of binary cross entropies, which is torch's
      MultiLabelSoftMarginLoss.

  >>> tags = jnp.array([[True, False]])
  >>> tag_cross_entropy(jnp.zeros((1, 2)), tags, 'softmax')
  Array([0.6931472], dtype=float32)
  """
  logits = at_least_float32(logits)
  if kind == 'softmax':
    # `where` and not a product with tags: a class of logit -inf that is not
    # the tag would give 0 * inf.
    loss = -jnp.sum(jnp.where(tags, jax.nn.log_softmax(logits), 0.0), axis=-1)
    return jnp.where(jnp.sum(tags, axis=-1) == 1, loss, jnp.nan)
  if kind == 'sigmoid':
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, tags), axis=-1)
  raise ValueError(f'kind: expected softmax or sigmoid, got {kind!r}')


def squared_error(
  prediction: Float[Array, '*shape'], target: Float[Array, '*shape']
) -> Float[Array, '*shape']:
  """Computes the squared difference of each element, without a factor ½.

  >>> squared_error(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]))
  Array([4., 0.], dtype=float32)
  """
  return jnp.square(at_least_float32(prediction) - at_least_float32(target))


def absolute_error(
  prediction: Float[Array, '*shape'], target: Float[Array, '*shape']
) -> Float[Array, '*shape']:
  """Computes the absolute difference of each element.

  Where both are equal its gradient is 0, as torch's; that of `jnp.abs` is 1.

  >>> absolute_error(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]))
  Array([2., 0.], dtype=float32)
  """
  difference = at_least_float32(prediction) - at_least_float32(target)
  return difference * jnp.sign(jax.lax.stop_gradient(difference))


def label_weights(
  labels: Int[Array, '*shape'], class_weights: Sequence[float] | None
) -> Float[Array, '*shape'] | None:
  """Returns the weight of each pixel's class, or None without weights.

  Where the label is negative, the result is the weight of class 0.
  """
  if class_weights is None:
    return None
  return jnp.asarray(class_weights, jnp.float32)[jnp.maximum(labels, 0)]


def masked_sum_and_count(
  values: Float[Array, '*shape'],
  mask: Bool[Array, '*shape'],
  weights: Float[Array, '*shape'] | None = None,
) -> tuple[Scalar, Scalar]:
  """Computes the sum of the values under the mask, and their number.

  With weights, these are the sum of the weighted values and that of the
  weights. Values outside the mask, even NaN, change neither sum nor gradient.
  Both numbers add up over parts of a batch, as gradient accumulation needs it.

  >>> masked_sum_and_count(jnp.array([1.0, 2.0]), jnp.array([False, True]))
  (Array(2., dtype=float32), Array(1., dtype=float32))
  """
  values = at_least_float32(values)
  if weights is not None:
    total = jnp.sum(jnp.where(mask, weights * values, 0.0))
    return total, jnp.sum(jnp.where(mask, weights, 0.0), dtype=total.dtype)
  total = jnp.sum(jnp.where(mask, values, 0.0))
  # Counted in int32: float32 has no odd integers above 16.7 million.
  return total, jnp.sum(mask, dtype=jnp.int32).astype(total.dtype)


def labeled_cross_entropy(
  logits: Float[Array, 'B H W C'],
  labels: Int[Array, 'B H W'],
  images: Bool[Array, 'B'],
  class_weights: Sequence[float] | None = None,
) -> tuple[Scalar, Scalar]:
  """Computes the cross entropy summed over labeled pixels, and their number.

  Args:
    logits: scores of the classes.
    labels: class indices; negative where ignored.
    images: images that count; the others are padding of the batch.
    class_weights: weight of each class, for the weighted mean of torch's
      cross_entropy, sum(w · loss) / sum(w); None for equal weights.

  Returns:
    The sum in nats and the number of pixels or, with weights, the sum of their
    weights, as `masked_sum_and_count`.
  """
  return masked_sum_and_count(
    cross_entropy(logits, labels),
    (labels >= 0) & images[:, None, None],
    label_weights(labels, class_weights),
  )


def masked_mean(
  values: Float[Array, '*shape'],
  mask: Bool[Array, '*shape'],
  weights: Float[Array, '*shape'] | None = None,
) -> Scalar:
  """Computes the mean of the values under the mask.

  With weights it is sum(w · value) / sum(w). Mean and gradient are 0 where the
  mask is empty.

  >>> masked_mean(jnp.array([1.0, 2.0, 4.0]), jnp.array([False, True, True]))
  Array(3., dtype=float32)
  """
  total, count = masked_sum_and_count(values, mask, weights)
  # A sum of weights may lie below 1, a number of pixels only at 0.
  least = 1.0 if weights is None else jnp.finfo(count.dtype).tiny
  return total / jnp.maximum(count, least)
