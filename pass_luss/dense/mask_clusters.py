"""Clusters of the masks of whole images by their descriptors (§3.6)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from pass_luss.dense import (
  dense_options,
  mask_contrast,
  mini_batch_kmeans,
)
from pass_luss.pretrain import embedding_ops
from pass_luss.pseudo_labels import kmeans
from segcore.distributed import sharding
from segcore.eval import short_side
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state

# Number of whitened components, at most, and of passes of mini-batch k-means
# over all rows.
_COMPONENTS, _PASSES = 32, 20
# Saliency logit that salient pixels exceed.
THRESHOLD = 0.5
# Batches of rows of which k-means computes the first centroids, and its
# iterations.
_INITIAL_BATCHES, _ITERATIONS = 3, 20


class Whitening(NamedTuple):
  """A principal component analysis that whitens descriptors.

  Attributes:
    mean: [D].
    matrix: [D, E], components divided by their standard deviations.
  """

  mean: Float64[np.ndarray, 'D']
  matrix: Float64[np.ndarray, 'D E']


def whiten(
  descriptors: Float[Array, '*shape D'],
  mean: Float[Array, 'D'],
  matrix: Float[Array, 'D E'],
) -> Float[Array, '*shape E']:
  """Computes the whitened components of descriptors."""
  centered = descriptors - mean
  return jnp.matmul(centered, matrix, precision=embedding_ops.EXACT)


def fit_whitening(
  rows: Float[np.ndarray, 'N D'], size: int = _COMPONENTS
) -> Whitening:
  """Fits the whitened components of the largest variance.

  Variances are divided by N - 1; components without variance are left out, but
  for the first one.

  Args:
    rows: descriptors.
    size: number of components, at most.
  """
  rows = rows.astype(np.float64)
  mean = rows.mean(axis=0)
  _, singular, components = np.linalg.svd(rows - mean, full_matrices=False)
  varying = int((singular > 1e-10 * singular[0]).sum())
  kept = max(min(size, varying), 1)
  # Equal descriptors, as where no pixel is salient, have no deviation.
  deviations = singular[:kept] / np.sqrt(len(rows) - 1) if varying else 1.0
  return Whitening(mean, components[:kept].T / deviations)


def mask_descriptors(
  embeddings: Float[Array, 'B H W D'], saliency: Float[Array, 'B H W']
) -> Float[Array, 'B D']:
  """Computes n(Σ e s) over the pixels whose saliency logit s exceeds 0.5.

  Args:
    embeddings: embeddings e, not normalized.
    saliency: saliency logits s.
  """
  weights = jnp.where(saliency > THRESHOLD, saliency, 0.0)
  sums = jnp.einsum(
    'bhwd,bhw->bd', embeddings, weights, precision=embedding_ops.EXACT
  )
  return embedding_ops.l2_normalize_embeddings(sums)


def descriptor_function(
  segmenter: segmenter_lib.Segmenter,
) -> short_side.ForwardFn:
  """Builds the function from images to the descriptors of their masks."""

  def descriptors(
    state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B D']:
    return mask_descriptors(*_predict(segmenter, state, images))

  return descriptors


def category_function(
  segmenter: segmenter_lib.Segmenter,
  whitening: Whitening,
  centroids: Float[np.ndarray, 'K E'],
) -> short_side.ForwardFn:
  """Builds the function from images to category and saliency of pixels.

  Args:
    segmenter: network with the head.
    whitening: whitening of the descriptors.
    centroids: centroids of whitened descriptors, of the categories 1…K.

  Returns:
    A function of state and images that returns [B, H, W, 2]: the category of
    the image, and the saliency logit.
  """
  mean, matrix = (jnp.asarray(x, jnp.float32) for x in whitening)
  nearest_of = jnp.asarray(centroids, jnp.float32)

  def categories(
    state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B H W 2']:
    embeddings, saliency = _predict(segmenter, state, images)
    rows = whiten(mask_descriptors(embeddings, saliency), mean, matrix)
    nearest = 1 + mini_batch_kmeans.assign_pixels(rows, nearest_of)
    category = jnp.broadcast_to(nearest[:, None, None], saliency.shape)
    return jnp.stack([category.astype(saliency.dtype), saliency], axis=-1)

  return categories


def _predict(
  segmenter: segmenter_lib.Segmenter,
  state: train_state.TrainState,
  images: Float[Array, 'B H W 3'],
) -> tuple[Float[Array, 'B H W D'], Float[Array, 'B H W']]:
  """Computes embeddings and saliency of pixels, in evaluation mode."""
  outputs = segmenter.apply(
    train_state.train_state_variables(state),
    images,
    heads=(dense_options.MASKS,),
  )
  return mask_contrast.upsample_cells(
    outputs[dense_options.MASKS], images.shape[1:3]
  )


@dataclasses.dataclass(frozen=True)
class RowKmeans:
  """Mini-batch k-means of the rows of an array.

  Attributes:
    num_clusters: number K of clusters.
    batch_size: number of rows of a batch.
    seed: seed of the orders and of the first centroids.
    passes: number of passes over all rows, in a new order each.
  """

  num_clusters: int
  batch_size: int
  seed: int
  passes: int = _PASSES

  def fit(self, rows: Float[np.ndarray, 'N E']) -> Float[np.ndarray, 'K E']:
    """Returns the centroids; the last rows of a pass, too few, are left out."""
    rng = np.random.default_rng(self.seed)
    size = min(self.batch_size, len(rows))
    update = jax.jit(mini_batch_kmeans.update_clusters)
    clusters = self._begin(rows[rng.permutation(len(rows))], size)
    for _ in range(self.passes):
      order = rng.permutation(len(rows))
      for start in range(0, len(rows) - size + 1, size):
        batch = rows[order[start : start + size]]
        clusters = update(clusters, batch.astype(np.float32))
    return np.asarray(clusters.centroids)

  def _begin(
    self, shuffled: Float[np.ndarray, 'N E'], size: int
  ) -> mini_batch_kmeans.Clusters:
    """Clusters the rows of the first batches by k-means."""
    first = shuffled[: max(_INITIAL_BATCHES * size, self.num_clusters)]
    # Each host computes the same, on one of its devices.
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    clustering = kmeans.fit_kmeans(
      kmeans.shard_feature_rows(mesh, first.astype(np.float32)),
      np.asarray(
        kmeans.sample_initial_centroids(
          jax.random.PRNGKey(self.seed), 1, len(first), self.num_clusters
        )
      ),
      _ITERATIONS,
    )
    labels = kmeans.gather_assignments(clustering, len(first))
    counts = np.bincount(labels, minlength=self.num_clusters)
    return mini_batch_kmeans.Clusters(
      np.asarray(clustering.centroids), counts.astype(np.float32)
    )
