"""PiCIE: pixels keep their cluster under changes of color and of geometry.

Cho et al. 2021, arXiv:2103.17070 (spec comparators §3.5):

  f_1 = n(decoder(crop(color_1(x))))      view 1: the image is cropped
  f_2 = n(crop(decoder(color_2(x))))      view 2: the feature map is cropped
  y_v = nearest of the centroids C_v of view v, by the network of the epoch
  within = (CE_1(f_1 C_1, y_1) + CE_2(f_2 C_2, y_2)) / 2
  across = (CE_2(f_1 C_2, y_2) + CE_1(f_2 C_1, y_1)) / 2
  L = (within + across) / 2

PiCIE + H adds the same loss with more clusters.
"""

import dataclasses

from pass_luss.dense import dense_options, losses, pixel_clustering

# Names of the clusterings of both views, and what is added for more clusters.
_VIEWS = ('view1', 'view2')
_OVER = '_over'


@dataclasses.dataclass(frozen=True)
class Picie(pixel_clustering.PixelClustering):
  """Learns the clusters of two views from the features of both.

  Attributes:
    options: over-clustering and the further term.
  """

  options: dense_options.PicieOptions

  @property
  def specs(self) -> tuple[pixel_clustering.ClusteringSpec, ...]:
    """Returns the clusterings of both views, then those of more clusters."""
    counts = {'': self.num_clusters, _OVER: self.options.over_clusters}
    return tuple(
      pixel_clustering.ClusteringSpec(f'{name}{suffix}', view, count)
      for suffix, count in counts.items()
      if count
      for view, name in enumerate(_VIEWS)
    )

  def loss(self, head, features, clusters):
    """Computes the loss of the clusters, and that of more clusters."""
    del head  # The centroids of view 1, which are in `clusters`.
    adds_mse, over = self.options.adds_mse, self.options.over_clusters
    terms = losses.picie_terms(features, [clusters[n] for n in _VIEWS])
    loss = losses.picie_loss(features, terms, adds_mse)
    scalars = {'loss_within': terms.within, 'loss_across': terms.across}
    if not over:
      return loss, scalars
    terms = losses.picie_terms(
      features, [clusters[f'{name}{_OVER}'] for name in _VIEWS]
    )
    over_loss = losses.picie_loss(features, terms, adds_mse)
    few, many = losses.over_clustering_weights(self.num_clusters, over)
    scalars |= {'loss_clusters': loss, 'loss_over_clusters': over_loss}
    return few * loss + many * over_loss, scalars
