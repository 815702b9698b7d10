"""The linear classifier of pixels by their cluster."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from pass_luss.pretrain import embedding_ops
from segcore import types

# Name of the head, and standard deviation of its initial weights.
NAME = 'clusters'
INIT_DEVIATION = 0.01


class ClusterHead(nn.Module):
  """A linear classifier of the L2-normalized features of the decoder.

  Attributes:
    num_clusters: number K of clusters.
    reads: 'decoder'.
    stride: stride of the map that the head reads.
    map_name: None: the map is selected by its stride.
  """

  num_clusters: int
  reads: str = 'decoder'
  stride: int = 4
  map_name: str | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B h w D'], train: bool = False
  ) -> Float[Array, 'B h w K']:
    """Computes the scores of each cell."""
    del train
    shape = x.shape[-1], self.num_clusters
    init = nn.initializers.normal(INIT_DEVIATION)
    params = {
      'kernel': self.param('kernel', init, shape, jnp.float32),
      'bias': self.param('bias', nn.initializers.zeros, shape[1:], jnp.float32),
    }
    return cluster_scores(params, embedding_ops.l2_normalize_embeddings(x))


def cluster_scores(
  params: types.Params, features: Float[Array, '*shape D']
) -> Float[Array, '*shape K']:
  """Computes the scores of clusters from L2-normalized features.

  Args:
    params: kernel [D, K] and bias [K] of the head.
    features: L2-normalized features.
  """
  scores = embedding_ops.prototype_similarities(features, params['kernel'])
  return scores + params['bias']
