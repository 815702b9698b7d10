"""Losses against slow numpy transcriptions, with gradients by differences."""

import jax
import numpy as np
import pytest

from pass_luss.dense import losses, mask_losses
from tests.transcriptions import luss_dense as reference

CENTROIDS = (4, 3)  # K, D


@pytest.fixture(scope='module')
def drawn():
  """Draws features of 7 pixels, and clusters of both views."""
  rng = np.random.default_rng(0)
  features = [reference.normalize(rng.normal(size=(7, 3))) for _ in range(2)]
  clusters = [
    losses.ViewClusters(
      rng.normal(size=CENTROIDS),
      rng.dirichlet(np.ones(4)),
      rng.integers(0, 4, 7),
    )
    for _ in range(2)
  ]
  return features, clusters


def of_reference(clusters):
  c, w, y = zip(*clusters, strict=True)
  return (*c, *y, *w)


@pytest.mark.parametrize('adds_mse', [False, True])
def test_picie(drawn, adds_mse):
  def loss(features, clusters):
    terms = losses.picie_terms(features, clusters)
    return losses.picie_loss(features, terms, adds_mse), terms

  features, clusters = drawn
  with jax.enable_x64():
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, terms), gradients = jax.device_get(step(features, clusters))
  arguments = of_reference(clusters)
  np.testing.assert_allclose(
    terms, reference.picie_terms(*features, *arguments), rtol=1e-12
  )
  np.testing.assert_allclose(
    value, reference.picie_loss(*features, *arguments, adds_mse), rtol=1e-12
  )
  for v, gradient in enumerate(gradients):

    def moved(x, v=v):
      both = (x, features[1]) if v == 0 else (features[0], x)
      return reference.picie_loss(*both, *arguments, adds_mse)

    np.testing.assert_allclose(
      gradient, reference.differences(moved, features[v]), atol=1e-8
    )


def test_equal_views_have_no_difference_across(drawn):
  (first, _), (clusters, _) = drawn
  with jax.enable_x64():
    compute = jax.jit(losses.picie_terms)
    terms = compute([first, first], [clusters, clusters])
  np.testing.assert_allclose(terms.within, terms.across, rtol=1e-12)


def test_weights_are_frequencies():
  counts = np.array([6.0, 0.0, 2.0])
  np.testing.assert_allclose(
    jax.jit(losses.cluster_frequencies)(counts), [0.75, 0.0, 0.25]
  )


def test_a_frequent_cluster_counts_more():
  """Two pixels of equal scores: the loss is that of the heavier one, mostly."""
  logits = np.array([[0.0, 0.0], [2.0, 0.0]])
  labels, weights = np.array([0, 1]), np.array([0.25, 0.75])
  expected = 0.25 * np.log(2) + 0.75 * (2 + np.log1p(np.exp(-2)))
  compute = jax.jit(losses.weighted_cross_entropy)
  actual = compute(logits, labels, weights)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(('k1', 'k2'), [(27, 100), (51, 100), (10, 10)])
def test_weights_of_over_clustering(k1, k2):
  actual = losses.over_clustering_weights(k1, k2)
  np.testing.assert_allclose(actual, reference.over_weights(k1, k2))
  assert sum(actual) == pytest.approx(1)
  assert k1 == k2 or actual[0] > actual[1]


def test_maskcontrast():
  rng = np.random.default_rng(1)
  queries, keys = rng.normal(size=(2, 3, 4, 5, 6))
  masks, key_masks = rng.random((2, 3, 4, 5)) < 0.4
  masks[2] = False  # An image without salient pixels has no label.
  masks[2, 0, 0] = True
  ring = reference.normalize(rng.normal(size=(4, 6)))
  logits = rng.normal(size=masks.shape)

  def loss(queries, keys, logits, masks, key_masks, ring):
    prototypes = mask_losses.mask_prototypes(keys, key_masks)
    contrast = mask_losses.mask_contrast_loss(
      queries, masks, prototypes, ring, 0.5
    )
    saliency = mask_losses.balanced_saliency_loss(logits, masks)
    return contrast + saliency, (prototypes, contrast, saliency)

  with jax.enable_x64():
    step = jax.jit(jax.value_and_grad(loss, (0, 2), has_aux=True))
    (_, values), gradients = jax.device_get(
      step(queries, keys, logits, masks, key_masks, ring)
    )
  prototypes = reference.prototypes(keys, key_masks)
  expected = (
    prototypes,
    reference.mask_loss(queries, masks, prototypes, ring),
    reference.saliency_loss(logits, masks),
  )
  for value, other in zip(values, expected, strict=True):
    np.testing.assert_allclose(value, other, rtol=1e-12)
  np.testing.assert_allclose(
    gradients[0],
    reference.differences(
      lambda x: reference.mask_loss(x, masks, prototypes, ring), queries
    ),
    atol=1e-8,
  )
  np.testing.assert_allclose(
    gradients[1],
    reference.differences(lambda o: reference.saliency_loss(o, masks), logits),
    atol=1e-8,
  )


def test_pixels_of_a_large_mask_weigh_less():
  masks = np.zeros((2, 2, 2), bool)
  masks[0] = masks[1, 0, 0] = True
  weights = jax.jit(mask_losses.mask_weights)(masks)
  np.testing.assert_allclose(
    weights, 1 / np.log(1.02 + np.array([0.8, 0.2])), rtol=1e-6
  )
