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
    pseudo_labels.pixel_entropy(jnp.asarray(logits)),
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
  gamma = order_statistics.percentile(
    jnp.asarray(values), jnp.asarray(valid), percent
  )
  inputs.assert_close(gamma, reference.percentile(values, valid, percent))
  kept = valid & (values < np.asarray(gamma))
  inputs.assert_close(
    pseudo_labels.reliable_pixel_weight(jnp.asarray(kept), kept.size),
    reference.adaptive_weight(kept),
  )
  none = jnp.zeros(9, bool)
  assert float(pseudo_labels.reliable_pixel_weight(none, 9)) == 9.0
  four = jnp.ones(4, bool)
  assert float(pseudo_labels.reliable_pixel_weight(four, 6)) == 1.5


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
  actual = pseudo_labels.partition_by_entropy(
    jnp.asarray(entropies),
    jnp.asarray(labels >= 0),
    jnp.asarray(37.0),
    anchor_entropy,
  )
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

  def loss(x):
    values = pseudo_labels.symmetric_cross_entropy(x, jnp.asarray(labels), *xi)
    return losses.masked_mean(values, jnp.asarray(labels) >= 0)

  def reference_loss(x):
    return reference.symmetric_cross_entropy(x, labels, xi)

  inputs.assert_close(loss(jnp.asarray(logits)), reference_loss(logits))
  inputs.assert_gradient(loss, reference_loss, logits)


def test_scores_are_upsampled_with_aligned_corners():
  scores = inputs.draw(1, 5, 4, 3)
  actual = pseudo_labels.upsample_teacher_scores(jnp.asarray(scores), (9, 13))
  inputs.assert_close(actual, reference.bilinear(scores, (9, 13)))
