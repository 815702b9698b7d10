"""Reliability and losses of pseudo-labels against the transcription."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.ops import losses, order_statistics
from tests.transcriptions import u2pl as reference
from tests.u2pl import inputs
from u2pl import pseudo_labels


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


def test_entropy():
  logits = inputs.draw(2, 3, inputs.CLASSES)
  inputs.assert_close(
    jax.jit(pseudo_labels.pixel_entropy)(logits),
    reference.entropy(reference.softmax(logits)),
  )


@pytest.mark.parametrize('epoch', [0, 1, 40, 79])
def test_unreliable_share_decreases_linearly(epoch):
  partition = pseudo_labels.PartitionOptions(20.0)
  inputs.assert_close(
    partition.at(jnp.asarray(epoch / 80)),
    100 * reference.unreliable_share(epoch, 80),
  )
  constant = pseudo_labels.PartitionOptions(20.0, dynamic=False)
  assert float(constant.at(jnp.asarray(epoch / 80))) == 20.0


@pytest.mark.parametrize('percent', [80.0, 91.7, 99.75])
def test_percentile_and_weight(percent):
  values = np.abs(inputs.draw(2, 7, 5))
  valid = inputs.draw_labels(2, 7, 5) >= 0
  gamma = jax.jit(order_statistics.percentile)(values, valid, percent)
  inputs.assert_close(gamma, reference.percentile(values, valid, percent))
  kept = valid & (values < np.asarray(gamma))
  weight = jax.jit(pseudo_labels.reliable_pixel_weight)
  inputs.assert_close(weight(kept, kept.size), reference.adaptive_weight(kept))
  assert float(weight(np.zeros(9, bool), 9)) == 9.0
  assert float(weight(np.ones(4, bool), 6)) == 1.5


def test_padding_has_no_label_and_does_not_count():
  labels = jnp.arange(6).reshape(1, 2, 3)
  valid = jnp.array([[[True, False, True], [False, True, True]]])
  actual, count = pseudo_labels.ignore_padded_pseudo_labels(labels, valid)
  assert actual.tolist() == [[[0, -1, 2], [-1, 4, 5]]]
  assert int(count) == 4
  actual, count = pseudo_labels.ignore_padded_pseudo_labels(labels, None)
  assert actual is labels and int(count) == 6


@pytest.mark.parametrize('anchor_entropy', ['paper', 'released'])
def test_partition_by_entropy(anchor_entropy):
  entropies, labels = np.abs(inputs.draw(2, 7, 5)), inputs.draw_labels(2, 7, 5)
  partition = jax.jit(pseudo_labels.partition_by_entropy, static_argnums=3)
  actual = partition(entropies, labels >= 0, 37.0, anchor_entropy)
  anchors, unreliable = reference.reliability_masks(
    entropies, labels, 0.37, anchor_entropy
  )
  reliable, _ = reference.reliability_masks(entropies, labels, 0.37)
  np.testing.assert_array_equal(actual.anchors, anchors)
  np.testing.assert_array_equal(actual.reliable, reliable)
  np.testing.assert_array_equal(actual.unreliable, unreliable)
  assert (anchors != reliable).any() == (anchor_entropy == 'released')


@pytest.mark.parametrize('xi', [(1.0, 0.0), (1.0, 0.1), (0.1, 1.0)])
def test_symmetric_cross_entropy(xi):
  logits, labels = (
    inputs.draw(1, 3, 4, inputs.CLASSES),
    inputs.draw_labels(1, 3, 4),
  )

  @jax.jit
  def loss(x):
    values = pseudo_labels.symmetric_cross_entropy(x, jnp.asarray(labels), *xi)
    return losses.masked_mean(values, jnp.asarray(labels) >= 0)

  def reference_loss(x):
    return reference.symmetric_cross_entropy(x, labels, xi)

  inputs.assert_close(loss(logits), reference_loss(logits))
  inputs.assert_gradient(loss, reference_loss, logits)


def test_scores_are_upsampled_with_aligned_corners():
  scores = inputs.draw(1, 5, 4, 3)
  upsample = jax.jit(pseudo_labels.upsample_teacher_scores, static_argnums=1)
  actual = upsample(scores, (9, 13))
  inputs.assert_close(actual, reference.bilinear(scores, (9, 13)))
