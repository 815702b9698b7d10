"""MDC: DeepCluster on pixels, with a classifier that is new in each epoch.

Cho et al. 2021, in the variant of DeepCluster (Caron et al. 2018) that they
compare PiCIE with (spec comparators §3.4):

  f = n(decoder(view 1)), y = nearest centroid of the network of the epoch
  L = Σ w_y CE(W f + b, y) / Σ w_y
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epy
from jaxtyping import Array

from pass_luss.dense import (
  cluster_head,
  dense_options,
  losses,
  pixel_clustering,
)
from segcore import types

with epy.lazy_imports():
  import optax

_NAME = 'view1'


@dataclasses.dataclass(frozen=True)
class Mdc(pixel_clustering.PixelClustering):
  """Learns the clusters of one view by a linear classifier.

  Attributes:
    options: classifier and its learning rate.
  """

  options: dense_options.MdcOptions

  @property
  def specs(self) -> tuple[pixel_clustering.ClusteringSpec, ...]:
    """Returns the clustering of view 1."""
    return (pixel_clustering.ClusteringSpec(_NAME, 0, self.num_clusters),)

  @property
  def _optimizer(self) -> 'optax.GradientTransformation':
    return optax.adam(self.options.classifier_rate)

  def loss(self, head, features, clusters):
    """Computes the weighted cross entropy of the classifier."""
    of = clusters[_NAME]
    scores = cluster_head.cluster_scores(head, features[0])
    return losses.weighted_cross_entropy(scores, of.labels, of.weights), {}

  def init_classifier_optimizer(self, params: types.Params) -> Any:
    """Builds the state of the classifier's Adam."""
    if self.options.classifier == 'centroids':
      return ()
    return self._optimizer.init(params['heads'][cluster_head.NAME])

  def begin_classifier(
    self, state: pixel_clustering.State, key: Array
  ) -> pixel_clustering.State:
    """Draws the classifier and begins its optimizer, in each epoch."""
    if self.options.classifier == 'centroids':
      return super().begin_classifier(state, key)
    shape = state.clusterings[_NAME].centroids.T.shape
    kernel = cluster_head.INIT_DEVIATION * jax.random.normal(key, shape)
    state = pixel_clustering.replace_head(
      state, {'kernel': kernel, 'bias': jnp.zeros(shape[1])}
    )
    return state.replace(
      classifier_opt_state=self.init_classifier_optimizer(state.params)
    )

  def update_classifier(
    self, state: pixel_clustering.State, gradient: types.Params
  ) -> pixel_clustering.State:
    """Takes a step of the classifier's Adam."""
    if self.options.classifier == 'centroids':
      return state
    head = state.params['heads'][cluster_head.NAME]
    updates, opt_state = self._optimizer.update(
      gradient, state.classifier_opt_state, head
    )
    state = pixel_clustering.replace_head(
      state, optax.apply_updates(head, updates)
    )
    return state.replace(classifier_opt_state=opt_state)
