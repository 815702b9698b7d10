"""Pseudo-labels of features and centroids, and the choice of a threshold."""

import jax
import numpy as np
import pytest

from pass_luss.pseudo_labels import labeler
from tests.pass_luss import support
from tests.transcriptions import pass_benchmark, pass_labels, pass_pretraining


def test_categories_of_images_and_of_cells():
  net, state = support.build_attention_network()
  images = support.random_images(count=6)
  pooled = pass_pretraining.normalize(
    pass_pretraining.gap(support.deepest_features(net, state, images))
  )
  centroids = pooled[[3, 0, 5, 1]].astype(np.float32)
  predict = jax.jit(labeler.pseudo_category_function(net, centroids, 'image'))
  grids = np.asarray(predict(state, support.to_symmetric(images)))
  nearest = np.argmax(pooled @ pass_pretraining.normalize(centroids).T, axis=-1)
  np.testing.assert_array_equal(
    grids[..., 0], np.broadcast_to(1 + nearest[:, None, None], (6, 16, 20))
  )
  assert len(set(nearest)) > 1 and np.all(grids[..., 1] == 1)

  predict = jax.jit(labeler.pseudo_category_function(net, centroids, 'pixel'))
  grids = np.asarray(predict(state, support.to_symmetric(images[:1])))
  deep = support.deepest_features(net, state, images[:1])[0]
  expected = pass_labels.category_map(deep, centroids, (16, 20))
  assert np.mean(grids[0, ..., 0] != expected) < 0.01


def test_pseudo_labels():
  net, state = support.build_attention_network()
  images = support.random_images()
  rng = np.random.default_rng(1)
  centroids = rng.normal(size=(support.CLASSES, 32)).astype(np.float32)
  predict = jax.jit(
    labeler.pseudo_category_function(net, centroids, 'attended')
  )
  grids = np.asarray(predict(state, support.to_symmetric(images)))
  weights, size = support.attention_weights(state), (37, 45)
  for i, deep in enumerate(support.deepest_features(net, state, images)):
    attention = labeler.resize_attention(grids[i, ..., 1], size)
    np.testing.assert_allclose(
      attention, pass_labels.attention_map(deep, weights, size), atol=1e-4
    )
    for threshold in (0.0, 0.5, 0.6):
      labels = labeler.category_label_map(
        grids[i, ..., 0].astype(int), attention, threshold
      )
      expected = pass_labels.pseudo_labels(
        deep, weights, centroids, threshold, size
      )
      # Rounding decides between two equally near centroids, and at τ.
      assert np.mean(labels != expected) < 0.01
  assert len(np.unique(grids[..., 0])) > 1


def test_sweep_equals_labeling_at_each_threshold():
  rng = np.random.default_rng(0)
  thresholds = labeler.THRESHOLDS
  sweep = labeler.ThresholdSweep.empty(support.CLASSES, support.CLASSES)
  images = []
  for i in range(2 * support.CLASSES):
    # One class an image, so that categories are matched to other numbers.
    label = rng.integers(-1, 2, (5, 6)) * (1 + i % support.CLASSES)
    label[label < 0] = -1
    agrees = rng.random(label.shape) < 0.95
    categories = np.where(
      agrees & (label > 0),
      label % support.CLASSES + 1,
      rng.integers(1, 5, (5, 6)),
    )
    attention = np.where(label > 0, 0.35, 0.0) + 0.6 * rng.random((5, 6))
    sweep.update(categories, attention, label)
    images.append((categories, attention, label))
  expected, by_name = [], []
  for threshold in thresholds:
    predictions = [
      np.where(attention < threshold, 0, categories)
      for categories, attention, _ in images
    ]
    truths = [np.where(d[2] < 0, 1000, d[2]) for d in images]
    matrix = pass_benchmark.matching_matrix(
      predictions, truths, support.CLASSES
    )
    match = pass_benchmark.hungarian(matrix)
    matched = [pass_benchmark.apply_matching(x, match) for x in predictions]
    for each, values in ((matched, expected), (predictions, by_name)):
      values.append(pass_benchmark.miou(each, truths, support.CLASSES) / 100)
  threshold, miou = sweep.best(by_name=True)
  assert threshold == thresholds[int(np.argmax(by_name))]
  np.testing.assert_allclose(miou, max(by_name), rtol=1e-9)
  # Categories are the classes in another order: by name they are worse.
  assert miou < max(expected)
  threshold, miou = sweep.best()
  assert threshold == thresholds[int(np.argmax(expected))]
  np.testing.assert_allclose(miou, max(expected), rtol=1e-9)
  assert max(expected) - min(expected) > 0.02


def test_a_threshold_above_1_is_refused():
  with pytest.raises(ValueError, match='threshold: expected at most 1'):
    labeler.LabelOptions(threshold=2.0)
