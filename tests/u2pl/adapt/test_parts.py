"""Parts of a step of adaptation against the transcription, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transcriptions import daformer as reference
from tests.u2pl.adapt import tiny
from u2pl import mixing, pseudo_labels
from u2pl.adapt import (
  feature_distance,
  losses,
  mixed_images,
  pixel_contrast,
  reused_outputs,
  self_training,
)

CLASSES, THINGS = 6, (1, 2, 4)

kept_mask = jax.jit(mixing.dacs_kept_mask)
downscale = jax.jit(feature_distance.downscale_labels, static_argnums=(1, 2, 3))


@pytest.fixture(autouse=True)
def _in_float64():
  with jax.enable_x64():
    yield


def draw_labels(*shape, seed=0, least=-1):
  """Draws coarse labels, some of them ignored."""
  rng = np.random.default_rng(seed)
  batch, height, width = shape
  coarse = rng.integers(
    least, CLASSES, (batch, -(-height // 3), -(-width // 3))
  )
  return coarse.repeat(3, 1).repeat(3, 2)[:, :height, :width]


def draw(*shape, seed=0, scale=1.0):
  return np.random.default_rng(seed).normal(scale=scale, size=shape)


@pytest.mark.parametrize('least', [-1, 0])
def test_half_of_the_classes_of_the_batch_are_pasted(least):
  for seed in range(5):
    labels = draw_labels(3, 9, 7, seed=seed, least=least)
    priorities = np.random.default_rng(seed).random((3, CLASSES + 1))
    expected = reference.class_masks(labels, priorities)
    np.testing.assert_array_equal(kept_mask(labels, priorities), expected)


def test_ignored_pixels_are_a_class_that_other_images_lack():
  """Three classes of the batch: two are pasted, one of them maybe nowhere."""
  labels = np.array([[[-1, -1, 2, 2]], [[4, 4, 4, 4]]])
  priorities = np.zeros((2, CLASSES + 1))
  priorities[:, -1] = 0.9
  priorities[0, 4], priorities[1, 2] = 0.8, 0.8
  kept = np.asarray(kept_mask(labels, priorities))
  assert kept[0, 0].tolist() == [True, True, False, False]
  assert kept[1, 0].tolist() == [False] * 4


@pytest.mark.parametrize(('size', 'side'), [((12, 16), 4), ((13, 9), 3)])
def test_labels_of_cells(size, side):
  labels = draw_labels(4, *size)
  cells = (size[0] // side, size[1] // side)
  for min_share in (0.0, 0.5, 0.75):
    actual = downscale(labels, cells, CLASSES, min_share)
    expected = reference.cell_labels(labels, side, CLASSES, min_share)
    np.testing.assert_array_equal(actual, expected)
    # Some are ignored, some are not.
    assert expected.max() > -1 and (expected.min() == -1 or not min_share)


def test_of_equal_classes_a_cell_has_the_lowest():
  labels = np.array([[[3, 3], [1, 1]], [[-1, 2], [2, -1]]])
  actual = downscale(labels, (1, 1), CLASSES, 0.5)
  assert np.ravel(actual).tolist() == [1, 2]


def test_feature_distance_and_its_gradient():
  options = feature_distance.FeatureDistanceOptions(
    weight=0.005, classes=THINGS, min_share=0.5
  )
  features, frozen = draw(2, 4, 4, 5), draw(2, 4, 4, 5, seed=1)
  frozen[0, :2] = features[0, :2]  # Of a distance of 0.
  labels = draw_labels(2, 16, 16)
  loss = jax.jit(
    jax.value_and_grad(
      lambda x: losses.feature_distance_loss(
        x, jnp.asarray(frozen), jnp.asarray(labels), CLASSES, options
      )
    )
  )
  cells = reference.cell_labels(labels, 4, CLASSES, 0.5)
  kept = np.isin(cells, THINGS)
  assert kept[0, :2].any() and kept[1].any() and not kept.all()
  expected, gradient = reference.feature_distance(
    features, frozen, cells, THINGS
  )
  actual, derivative = loss(features)
  np.testing.assert_allclose(actual, expected, rtol=1e-12)
  np.testing.assert_allclose(derivative, gradient, atol=1e-15)


def test_without_things_the_feature_distance_is_0():
  options = feature_distance.FeatureDistanceOptions()
  loss = jax.value_and_grad(
    lambda x: losses.feature_distance_loss(
      x, jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 8, 8), int), 19, options
    )
  )
  value, gradient = loss(jnp.zeros((1, 2, 2, 3)))
  assert value == 0 and not gradient.any()


def test_share_of_confident_pixels():
  scores = draw(2, 5, 7, CLASSES, scale=4.0)
  expected = reference.confident_share(scores)
  assert 0 < expected < 1
  share = self_training.confident_share(jnp.asarray(scores), 0.968)
  np.testing.assert_allclose(share, expected, rtol=1e-12)


def test_weights_of_source_and_target_pixels():
  kept = np.random.default_rng(0).random((2, 9, 4)) < 0.5
  rows = np.asarray(self_training.trusted_rows(9, 2, 3))
  weights = self_training.mixed_pixel_weights(
    *(jnp.asarray(x) for x in (kept, rows & ~kept, 0.3))
  )
  expected = reference.mix(
    kept, np.ones(kept.shape), reference.target_weights(kept.shape, 0.3, 2, 3)
  )
  np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize(
  ('weighting', 'weight'), [('share', 0.3), ('reliable', 2.5), ('both', 0.75)]
)
def test_weights_of_reliable_pixels(weighting, weight):
  kept = np.zeros((1, 3, 4), bool)
  kept[:, 0, :2] = True
  trusted, reliable = ~kept, np.zeros(kept.shape, bool)
  reliable[:, 1] = True
  options = self_training.SelfTrainingOptions(
    weighting=weighting, filtered=True
  )
  weights = self_training.weights_by_reliability(
    *(jnp.asarray(x) for x in (kept, trusted, reliable, 0.3)), options
  )
  # Of 10 trusted pixels, 4 are reliable.
  expected = np.where(kept, 1.0, np.where(reliable, weight, 0.0))
  np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_ignored_pixels_count_in_the_mean():
  logits, labels = draw(2, 3, 3, CLASSES), draw_labels(2, 12, 12)
  weights = np.random.default_rng(3).random(labels.shape)
  upsampled = reference.half_pixel(logits, (12, 12))
  for weight in (np.ones(labels.shape), weights):
    expected, gradient = reference.weighted_cross_entropy(
      upsampled, labels, weight
    )
    actual, derivative = jax.value_and_grad(losses.mean_loss)(
      *(jnp.asarray(x) for x in (logits, labels, weight))
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    np.testing.assert_allclose(
      derivative,
      reference.half_pixel_transposed(gradient, (3, 3)),
      atol=1e-9,
    )


# A mixed image of one row: source pixels of class 1 and ignored, then target
# pixels, the first two in rows without weight, the last one without a label.
ROW = mixed_images.MixedImages(
  images=None,
  labels=np.array([[[1, 1, -1, 2, 2, 3, 3, 3, -1]]]),
  kept=np.array([[[1, 1, 1, 0, 0, 0, 0, 0, 0]]], bool),
  trusted=np.array([[[0, 0, 0, 0, 0, 1, 1, 1, 0]]], bool),
)
ENTROPY = np.array([[[0.1, 0.9, 0.9, 0.2, 0.8, 0.3, 0.5, 0.7, 0.9]]])


@pytest.mark.parametrize(
  ('fields', 'labels', 'labeled', 'reliable', 'unreliable'),
  [
    ({}, [1, 1, -1, -1, -1, 3, 3, 3, -1], [0, 1, 2], [5], [6, 7]),
    (
      {'ignored_rows': True},
      [1, 1, -1, 2, 2, 3, 3, 3, -1],
      [0, 1, 2],
      [3, 5],
      [4, 6, 7],
    ),
    (
      {'source_pixels': 'unlabeled'},
      [1, 1, -1, -1, -1, 3, 3, 3, -1],
      [],
      [0, 5],
      [1, 6, 7],
    ),
    (
      {'source_pixels': 'ignored'},
      [-1, -1, -1, -1, -1, 3, 3, 3, -1],
      [],
      [5],
      [6, 7],
    ),
  ],
  ids=['paper', 'ignored_rows', 'unlabeled', 'ignored'],
)
def test_pixels_of_mixed_images_in_the_contrastive_loss(
  fields, labels, labeled, reliable, unreliable
):
  """γ is the median of the entropies 0.3, 0.5, 0.7 for all options."""
  options = dataclasses.replace(tiny.PLUS, **fields)

  @jax.jit
  def compute(mixed, entropy):
    reliability = pseudo_labels.partition_by_entropy(
      entropy,
      pixel_contrast.unlabeled_pixels(mixed, options),
      jnp.asarray(50.0),
      counted=mixed.trusted,
    )
    return pixel_contrast.joined_labels_and_masks(
      pixel_contrast.DomainPixels(
        jnp.full((1, 1, 9), 4), mixed, reliability, options.source_pixels
      )
    )

  joined, masks = jax.device_get(compute(ROW, ENTROPY))
  assert joined[:, 0].tolist() == [[4] * 9, labels]
  assert masks.labeled[0].all() and not masks.reliable[0].any()
  for mask, expected in zip(
    masks, (labeled, reliable, unreliable), strict=True
  ):
    assert np.flatnonzero(mask[1]).tolist() == expected


def test_outputs_are_mixed_as_images_are():
  kept = np.zeros((1, 4, 6), bool)
  kept[:, :2, :4] = True
  own, others = (
    {'logits': draw(1, 2, 3, 4, seed=i), 'rep': draw(1, 2, 3, 4, seed=i + 1)}
    for i in (0, 2)
  )
  actual = jax.jit(reused_outputs.mix_outputs)(own, others, kept)
  for name in ('logits', 'rep'):
    expected = others[name].copy()
    expected[0, 0, :2] = own[name][0, 0, :2]
    np.testing.assert_array_equal(
      actual.by_head[name], np.concatenate([own[name], expected])
    )
  first, second = (
    np.exp(reference.log_softmax(reference.half_pixel(x['logits'], (4, 6))))
    for x in (own, others)
  )
  probs = np.where(kept[..., None], first, second)
  np.testing.assert_allclose(
    actual.entropy, -(probs * np.log(probs + 1e-10)).sum(-1), rtol=1e-9
  )


@pytest.mark.parametrize(
  ('options', 'fields', 'message'),
  [
    (self_training.SelfTrainingOptions, {'threshold': 2.0}, 'threshold'),
    (self_training.SelfTrainingOptions, {'ema_decay': 1.0}, 'decay < 1'),
    (self_training.SelfTrainingOptions, {'ignored_top': -1}, 'ignored_top'),
    (
      self_training.SelfTrainingOptions,
      {'weighting': 'both'},
      "weighting='both': expected filtered=True",
    ),
    (feature_distance.FeatureDistanceOptions, {'classes': ()}, 'classes'),
    (feature_distance.FeatureDistanceOptions, {'weight': 0.0}, 'weight'),
    (feature_distance.FeatureDistanceOptions, {'min_share': 2.0}, 'min_share'),
  ],
)
def test_options_out_of_range_are_refused(options, fields, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(options(), **fields)
