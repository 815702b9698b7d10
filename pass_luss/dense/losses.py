"""Losses of segmentation by clusters of pixels (spec comparators §3.3 to §3.5).

Sources: MDC and PiCIE, Cho et al. 2021, arXiv:2103.17070.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pass_luss.pretrain import embedding_ops
from segcore.ops import losses
from segcore.types import Scalar


class ViewClusters(NamedTuple):
  """The clusters of one view, and the cluster of each of its pixels.

  Attributes:
    centroids: centroids of the clusters, the weights of a linear classifier.
    weights: weight of each cluster in the loss.
    labels: cluster of each pixel.
  """

  centroids: Float[Array, 'K D']
  weights: Float[Array, 'K']
  labels: Int[Array, '*shape']


class PicieTerms(NamedTuple):
  """The two terms of PiCIE, whose mean is its loss.

  Attributes:
    within: loss of the features of a view by the clusters of the same view.
    across: loss of the features of a view by the clusters of the other one.
  """

  within: Scalar
  across: Scalar


def cluster_frequencies(counts: Float[Array, 'K']) -> Float[Array, 'K']:
  """Divides the number of pixels of each cluster by that of all pixels.

  These frequencies themselves are the weights of the clusters in the loss, not
  their inverses, as in the released code: frequent clusters count more.
  """
  return counts / jnp.sum(counts)


def weighted_cross_entropy(
  logits: Float[Array, '*shape K'],
  labels: Int[Array, '*shape'],
  weights: Float[Array, 'K'],
) -> Scalar:
  """Computes Σ w_y (-log p_y) / Σ w_y, as torch's weighted mean.

  Args:
    logits: scores of the clusters.
    labels: cluster of each pixel.
    weights: weight of each cluster; some pixel's must not be 0.
  """
  of_pixels = weights[labels]
  total = jnp.sum(of_pixels * losses.cross_entropy(logits, labels))
  return total / jnp.sum(of_pixels)


def centroid_scores(
  features: Float[Array, '*shape D'], centroids: Float[Array, 'K D']
) -> Float[Array, '*shape K']:
  """Computes the scores f·c of a classifier whose weights are centroids."""
  return embedding_ops.prototype_similarities(features, centroids.T)


def picie_terms(
  features: Sequence[Float[Array, '*shape D']],
  clusters: Sequence[ViewClusters],
) -> PicieTerms:
  """Computes the loss of two views by the clusters of both (PiCIE, Eq. 5-7).

    within = (CE_1(f_1 C_1, y_1) + CE_2(f_2 C_2, y_2)) / 2
    across = (CE_2(f_1 C_2, y_2) + CE_1(f_2 C_1, y_1)) / 2

  CE_v is weighted by the clusters of view v.

  Args:
    features: L2-normalized features of the pixels of both views.
    clusters: clusters of both views.
  """
  (first, second), (c1, c2) = features, clusters

  def loss(features: Array, of: ViewClusters) -> Scalar:
    scores = centroid_scores(features, of.centroids)
    return weighted_cross_entropy(scores, of.labels, of.weights)

  return PicieTerms(
    within=(loss(first, c1) + loss(second, c2)) / 2.0,
    across=(loss(first, c2) + loss(second, c1)) / 2.0,
  )


def picie_loss(
  features: Sequence[Float[Array, '*shape D']],
  terms: PicieTerms,
  adds_mse: bool = False,
) -> Scalar:
  """Computes (within + across) / 2, or its mean with the error of features.

  Args:
    features: L2-normalized features of the pixels of both views.
    terms: terms of the loss.
    adds_mse: whether the mean squared difference of the features of both views
      is averaged with the loss.
  """
  loss = (terms.within + terms.across) / 2.0
  if not adds_mse:
    return loss
  first, second = features
  return (loss + jnp.mean(jnp.square(first - second))) / 2.0


def over_clustering_weights(
  num_clusters: int, num_over: int
) -> tuple[float, float]:
  """Computes the weights of the losses of K1 and of K2 clusters (PiCIE + H).

  λ_K1 = log K2 / (log K1 + log K2), λ_K2 = log K1 / (log K1 + log K2).

  Args:
    num_clusters: number K1 of clusters.
    num_over: number K2 of clusters of the over-clustering.
  """
  total = math.log(num_clusters) + math.log(num_over)
  return math.log(num_over) / total, math.log(num_clusters) / total
