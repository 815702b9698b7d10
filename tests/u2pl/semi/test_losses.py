"""Supervised and unsupervised losses against the numpy transcription."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import torch_arithmetic
from tests.transcriptions import u2pl as reference
from u2pl import pseudo_labels
from u2pl.semi import losses
from u2pl.semi import options as options_lib

CLASSES, SIZE = 5, (33, 33)


def labels_of(seed=0):
  """Draws coarse labels [2, 33, 33]; some pixels are ignored."""
  coarse = np.random.default_rng(seed).integers(-1, CLASSES, (2, 4, 4))
  return coarse.repeat(9, 1).repeat(9, 2)[:, : SIZE[0], : SIZE[1]]


def logits_of(seed):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, 9, 9, CLASSES)).astype(np.float32)


def upsampled(logits):
  upsample = jax.jit(pseudo_labels.upsample_teacher_scores, static_argnums=1)
  return np.asarray(upsample(logits, SIZE), np.float64)


supervised_loss = jax.jit(losses.supervised_loss, static_argnums=2)
unsupervised_loss = jax.jit(losses.unsupervised_loss, static_argnums=4)


def test_supervised_loss_is_ohem_of_the_main_and_the_auxiliary_head():
  options = options_lib.SupervisedOptions(
    'ohem', threshold=0.3, kept_per_image=60, auxiliary=0.4
  )
  outputs = {'logits': logits_of(0), 'aux': logits_of(1)}
  labels = labels_of()
  loss = supervised_loss(outputs, labels, options)
  main, auxiliary = (
    reference.ohem(
      upsampled(outputs[name]), labels, min_kept=120, threshold=0.3
    )
    for name in ('logits', 'aux')
  )
  np.testing.assert_allclose(
    loss, reference.with_auxiliary(main, auxiliary), rtol=1e-5
  )
  plain = reference.cross_entropy(upsampled(outputs['logits']), labels)
  assert abs(float(loss) - plain) > 0.1


def test_supervised_loss_is_cross_entropy_unless_configured():
  labels = labels_of()
  loss = supervised_loss(
    {'logits': logits_of(0)}, labels, options_lib.SupervisedOptions()
  )
  expected = reference.cross_entropy(upsampled(logits_of(0)), labels)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize('kind', ['ce', 'ohem'])
def test_class_weights_weight_the_pixels_that_count(kind):
  """With OHEM they are applied after the choice of pixels."""
  options = options_lib.SupervisedOptions(
    kind, threshold=0.3, kept_per_image=60, auxiliary=0.4
  )
  weights = (0.5, 1.0, 3.0, 0.2, 2.0)
  outputs = {'logits': logits_of(0), 'aux': logits_of(1)}
  labels = labels_of()
  expected = 0.0
  for name, factor in (('logits', 1.0), ('aux', 0.4)):
    logits = upsampled(outputs[name])
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    own = np.take_along_axis(probs, labels.clip(0)[..., None], -1)[..., 0]
    counted = labels >= 0
    if kind == 'ohem':
      counted &= own <= max(0.3, np.sort(own[counted])[119])
    weight = np.array(weights)[labels[counted]]
    expected += factor * (weight * -np.log(own[counted])).sum() / weight.sum()
  loss = jax.jit(losses.supervised_loss, static_argnums=(2, 3))(
    jax.tree.map(jnp.asarray, outputs),
    jnp.asarray(labels, jnp.int32),
    options,
    weights,
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize('filtered', [True, False])
@pytest.mark.parametrize('xi', [(1.0, 0.0), (1.0, 0.1)])
def test_unsupervised_loss_is_a_weighted_mean_over_the_pixels_kept(
  filtered, xi
):
  """Divides the mean by the share of pixels kept, if `filtered`."""
  labels = labels_of()
  kept = (labels >= 0) & (np.random.default_rng(2).random(labels.shape) < 0.7)
  options = options_lib.ConsistencyOptions(
    filtered=filtered, forward=xi[0], reverse=xi[1]
  )
  loss = unsupervised_loss(logits_of(0), labels, kept, kept.size, options)
  expected = reference.symmetric_cross_entropy(
    upsampled(logits_of(0)), np.where(kept, labels, -1), xi
  )
  if filtered:
    expected *= kept.size / kept.sum()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize('filtered', [True, False])
def test_pixels_without_confidence_add_0_to_the_mean(filtered):
  """FixMatch, Eq. 4: the mean is over all pixels, not the confident ones."""
  labels, rng = labels_of(), np.random.default_rng(2)
  kept = (labels >= 0) & (rng.random(labels.shape) < 0.7)
  confident = rng.random(labels.shape) < 0.4
  loss = unsupervised_loss(
    jnp.asarray(logits_of(0)),
    jnp.asarray(np.where(confident, labels, -1), jnp.int32),
    jnp.asarray(kept),
    kept.size,
    options_lib.ConsistencyOptions(filtered=filtered, reverse=0.1),
  )
  mean = reference.symmetric_cross_entropy(
    upsampled(logits_of(0)), np.where(kept & confident, labels, -1), (1.0, 0.1)
  )
  expected = mean * (kept & confident).sum() / kept.sum()
  if filtered:
    expected *= kept.size / kept.sum()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_logits_are_upsampled_as_configured():
  labels, logits = labels_of(), logits_of(0)
  options = options_lib.SupervisedOptions(align_corners=False)
  upsampled_logits = torch_arithmetic.resize(
    np.float64(logits).transpose(0, 3, 1, 2), SIZE, align_corners=False
  ).transpose(0, 2, 3, 1)
  np.testing.assert_allclose(
    supervised_loss({'logits': logits}, labels, options),
    reference.cross_entropy(upsampled_logits, labels),
    rtol=1e-5,
  )


def test_unsupervised_loss_is_scaled_by_its_weight():
  labels = labels_of()
  options = options_lib.ConsistencyOptions()
  full, scaled = (
    unsupervised_loss(
      logits_of(0),
      labels,
      labels >= 0,
      labels.size,
      dataclasses.replace(options, weight=weight),
    )
    for weight in (1.0, 0.3)
  )
  np.testing.assert_allclose(scaled, 0.3 * full, rtol=1e-6)
  with pytest.raises(ValueError, match='weight: expected more than 0, got 0'):
    options_lib.ConsistencyOptions(weight=0.0)


def test_streams_are_split_as_batches_are_joined():
  outputs = {'logits': jnp.arange(12).reshape(6, 2), 'rep': jnp.arange(6)}
  labeled, unlabeled = losses.split_student_outputs(outputs)
  assert labeled['rep'].tolist() == [0, 2, 4]
  assert unlabeled['logits'].tolist() == [[2, 3], [6, 7], [10, 11]]
