"""Pseudo-labels of features and centroids, and the choice of a threshold."""

import jax
import numpy as np
import pytest

from pass_luss.pseudo_labels import label_options, labeler
from tests.pass_luss import support
from tests.transcriptions import pass_labels, pass_pretraining


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


def test_a_threshold_above_1_is_refused():
  with pytest.raises(ValueError, match='threshold: expected at most 1'):
    label_options.LabelOptions(threshold=2.0)
