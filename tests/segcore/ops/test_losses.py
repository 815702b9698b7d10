import doctest

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from segcore.distributed import sharding
from segcore.ops import losses

cross_entropy = jax.jit(losses.cross_entropy)
tag_cross_entropy = jax.jit(losses.tag_cross_entropy, static_argnums=2)


def value_and_gradient(loss, x):
  """Returns a scalar and its gradient at `x`, in one program."""
  return jax.device_get(jax.jit(jax.value_and_grad(loss))(x))


def reference_cross_entropy(logits, labels):
  """Computes values and the gradient of their sum by a loop, in float64."""
  values = np.zeros(labels.shape)
  gradient = np.zeros(logits.shape)
  for index in np.ndindex(labels.shape):
    if labels[index] < 0:
      continue
    powers = np.exp(logits[index].astype(np.float64))
    probs = powers / powers.sum()
    values[index] = -np.log(probs[labels[index]])
    gradient[index] = probs
    gradient[index][labels[index]] -= 1.0
  return values, gradient


@pytest.fixture
def pixels():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32) * 3
  labels = rng.integers(-2, 5, size=(2, 3, 4)).astype(np.int16)
  assert (labels < 0).any() and (labels >= 0).any()
  return logits, labels


def test_cross_entropy_by_hand():
  # Probabilities 1/4 and 3/4.
  logits = np.float32([[0.0, np.log(3.0)]] * 3)
  loss = cross_entropy(logits, np.array([0, 1, -7]))
  np.testing.assert_allclose(
    loss, [np.log(4), np.log(4 / 3), 0.0], rtol=1e-6, atol=1e-7
  )


def test_cross_entropy_and_its_gradient_equal_a_loop(pixels):
  logits, labels = pixels
  values, gradient = reference_cross_entropy(logits, labels)
  loss = cross_entropy(logits, labels)
  np.testing.assert_allclose(loss, values, rtol=2e-6, atol=1e-6)
  _, derived = value_and_gradient(
    lambda x: losses.cross_entropy(x, jnp.array(labels)).sum(), logits
  )
  np.testing.assert_allclose(derived, gradient, atol=1e-6)
  np.testing.assert_array_equal(derived[labels < 0], 0.0)


def test_cross_entropy_is_finite_at_the_ends_of_float32():
  logits = np.float32([[3e38, -3e38], [-np.inf, 0.0], [1e4, -1e4]])
  value, gradient = value_and_gradient(
    lambda x: losses.cross_entropy(x, jnp.array([0, 1, 1])).sum(), logits
  )
  np.testing.assert_allclose(value, 2e4)
  np.testing.assert_array_equal(gradient, [[0, 0], [0, 0], [1, -1]])


def test_cross_entropy_of_bfloat16_is_computed_in_float32():
  logits = np.array([[0.0, 5.0, -3.0]], jnp.bfloat16)
  loss = cross_entropy(logits, np.array([2]))
  assert loss.dtype == jnp.float32
  exact = np.log(np.exp([0.0, 5.0, -3.0]).sum()) + 3.0
  np.testing.assert_allclose(loss, [exact], rtol=1e-6)


def test_labels_out_of_range_give_nan():
  loss = cross_entropy(np.zeros((2, 4), np.float32), np.array([4, 3]))
  np.testing.assert_array_equal(np.isnan(loss), [True, False])


def test_softmax_tags_equal_labels(pixels):
  logits, labels = pixels[0][0, 0], np.array([3, 0, 4, 2])
  tags = np.eye(5, dtype=bool)[labels]
  values, _ = reference_cross_entropy(logits, labels)
  loss = tag_cross_entropy(logits, tags, 'softmax')
  np.testing.assert_allclose(loss, values, rtol=2e-6)


def test_none_or_several_softmax_tags_give_nan_that_a_mask_removes():
  logits = np.zeros((3, 4), np.float32)
  tags = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
  loss = tag_cross_entropy(logits, tags, 'softmax')
  np.testing.assert_array_equal(np.isnan(loss), [False, True, True])

  value, gradient = value_and_gradient(
    lambda x: losses.masked_mean(
      losses.tag_cross_entropy(x, jnp.array(tags), 'softmax'),
      jnp.array([True, False, False]),
    ),
    logits,
  )
  np.testing.assert_allclose(value, np.log(4), rtol=1e-6)
  np.testing.assert_allclose(gradient[0], [-0.75, 0.25, 0.25, 0.25])
  np.testing.assert_array_equal(gradient[1:], 0.0)


def test_softmax_tags_accept_a_logit_of_minus_infinity():
  tags = np.array([[True, False, False]])
  value, gradient = value_and_gradient(
    lambda x: losses.tag_cross_entropy(x, jnp.array(tags), 'softmax')[0],
    np.float32([[0.0, 0.0, -np.inf]]),
  )
  np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
  np.testing.assert_allclose(gradient, [[-0.5, 0.5, 0.0]])


def test_sigmoid_tags_equal_a_loop():
  logits = np.array([[0.0, 2.0, -1.0], [4.0, -4.0, 0.5]], np.float32)
  tags = np.array([[1, 0, 1], [0, 0, 0]], bool)
  expected = []
  for row, row_tags in zip(logits.astype(np.float64), tags, strict=True):
    probs = 1 / (1 + np.exp(-row))
    terms = [
      -np.log(p if tag else 1 - p)
      for p, tag in zip(probs, row_tags, strict=True)
    ]
    expected.append(sum(terms) / 3)
  loss = tag_cross_entropy(logits, tags, 'sigmoid')
  np.testing.assert_allclose(loss, expected, rtol=2e-6)


def test_sigmoid_tags_are_finite_for_large_logits():
  tags = np.array([[False, True]])
  value, gradient = value_and_gradient(
    lambda x: losses.tag_cross_entropy(x, jnp.array(tags), 'sigmoid')[0],
    np.float32([[1e4, -1e4]]),
  )
  np.testing.assert_allclose(value, 1e4)
  np.testing.assert_allclose(gradient, [[0.5, -0.5]])


def test_squared_error_by_hand_and_in_float32():
  loss = jax.jit(losses.squared_error)(
    np.array([[1.0, -2.0]], jnp.bfloat16), np.float32([[4.0, -2.5]])
  )
  assert loss.dtype == jnp.float32
  np.testing.assert_array_equal(loss, [[9.0, 0.25]])


def test_masked_equals_sliced():
  rng = np.random.default_rng(1)
  values = rng.normal(size=(4, 6)).astype(np.float32)
  mask = rng.random((4, 6)) < 0.4
  kept = values[mask].astype(np.float64)
  total, count = jax.jit(losses.masked_sum_and_count)(values, mask)
  np.testing.assert_allclose(total, kept.sum(), rtol=1e-5)
  assert count == mask.sum()
  mean = jax.jit(losses.masked_mean)(values, mask)
  np.testing.assert_allclose(mean, kept.mean(), rtol=1e-5)


def test_weighted_cross_entropy_is_the_weighted_mean_of_torch(pixels):
  """sum(w · ce) / sum(w) over the pixels that count, on 8 devices as on 1."""
  logits, labels = (np.concatenate([x] * 4) for x in pixels)
  labels[3] = -1
  weights = (0.2, 1.0, 5.0, 0.7, 2.0)
  images = np.array([True] * 6 + [False] * 2)
  values, _ = reference_cross_entropy(logits, labels)
  total = count = 0.0
  for index in np.ndindex(labels.shape):
    if labels[index] >= 0 and images[index[0]]:
      total += weights[labels[index]] * values[index]
      count += weights[labels[index]]

  def mean(logits, labels, images):
    total, count = losses.labeled_cross_entropy(logits, labels, images, weights)
    return total / count, (total, count)

  step = jax.jit(jax.value_and_grad(mean, has_aux=True))
  one = step(*map(jnp.asarray, (logits, labels, images)))
  rows = sharding.batch_sharding(sharding.make_mesh())
  eight = step(*jax.device_put((logits, labels, images), rows))
  np.testing.assert_allclose(one[0][1], [total, count], rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    one,
    eight,
  )


def test_equal_weights_cancel_in_the_mean():
  values = jnp.array([1.0, 2.0, 6.0])
  for mask, mean in (([True, False, True], 3.5), ([False] * 3, 0.0)):
    weighted = losses.masked_mean(
      values, jnp.array(mask), jnp.full(3, 0.2, jnp.float32)
    )
    np.testing.assert_allclose(weighted, mean, rtol=1e-6)


def test_parts_add_up_to_the_whole():
  values = np.arange(12, dtype=np.float32).reshape(4, 3)
  mask = values % 3 != 1
  of_part = jax.jit(losses.masked_sum_and_count)
  parts = [
    jax.device_get(of_part(values[i : i + 1], mask[i : i + 1]))
    for i in range(4)
  ]
  total, count = (sum(part[k] for part in parts) for k in (0, 1))
  mean = jax.jit(losses.masked_mean)(values, mask)
  np.testing.assert_allclose(total / count, mean)


def test_empty_mask_has_mean_and_gradient_0_even_over_nan():
  value, gradient = value_and_gradient(
    lambda x: losses.masked_mean(x, jnp.zeros(2, bool)),
    np.float32([np.nan, np.inf]),
  )
  assert value == 0.0
  np.testing.assert_array_equal(gradient, [0.0, 0.0])


def test_counts_that_float32_cannot_represent_are_exact():
  mask = jnp.ones(2**24 + 2, bool)
  _, count = jax.jit(losses.masked_sum_and_count)(
    jnp.zeros(mask.shape, jnp.bfloat16), mask
  )
  assert int(count) == 2**24 + 2


def test_unknown_kind_is_refused():
  # Without jaxtyping's checks, as in production.
  jaxtyping.config.update('jaxtyping_disable', True)
  try:
    with pytest.raises(
      ValueError, match="expected softmax or sigmoid, got 'hinge'"
    ):
      losses.tag_cross_entropy(
        jnp.zeros((1, 2)), jnp.zeros((1, 2), bool), 'hinge'
      )
  finally:
    jaxtyping.config.update('jaxtyping_disable', False)


def test_docstring_examples():
  assert doctest.testmod(losses).failed == 0
