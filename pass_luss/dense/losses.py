"""Losses of segmentation by clusters (spec comparators §3.3 to §3.6)."""

import math

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pass_luss.pretrain import embedding_ops
from segcore import types


def weighted_cross_entropy(
  logits: Float[Array, '*shape K'],
  labels: Int[Array, '*shape'],
  weights: Float[Array, 'K'],
) -> types.Scalar:
  """Computes Σ w_y (-log p_y) / Σ w_y, as torch's weighted mean.

  Args:
    logits: scores of the clusters.
    labels: cluster of each pixel.
    weights: weight of each cluster.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  of_pixels = weights[labels]
  return jnp.sum(of_pixels * losses) / jnp.maximum(jnp.sum(of_pixels), 1e-12)


def centroid_scores(
  features: Float[Array, '*shape D'], centroids: Float[Array, 'K D']
) -> Float[Array, '*shape K']:
  """Computes the scores f·c of a classifier whose weights are centroids."""
  return embedding_ops.prototype_similarities(features, centroids.T)


def over_clustering_weights(
  num_clusters: int, num_over: int
) -> tuple[float, float]:
  """Computes the weights of the losses of K1 and of K2 clusters.

  λ_K1 = log K2 / (log K1 + log K2), λ_K2 = log K1 / (log K1 + log K2).

  Args:
    num_clusters: number K1 of clusters.
    num_over: number K2 of clusters of the over-clustering.
  """
  total = math.log(num_clusters) + math.log(num_over)
  return math.log(num_over) / total, math.log(num_clusters) / total
