"""Stage `frozen_kmeans`: k-means segments of any encoder (§8.1.3 b)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epy
from jaxtyping import Array, Float, Int32

from input_pipeline import datasets
from pass_luss.pseudo_labels import label_options
from pass_luss.stages import frozen
from runtime import errors
from runtime.option_ranges import AtLeastOne, NonNegative
from segcore.distributed import collectives

with epy.lazy_imports():
  from pass_luss.protocols import cluster_matching, frozen_encoder, segment
  from pass_luss.pseudo_labels import cluster, features, kmeans
  from segcore.eval import metrics, short_side
  from segcore.train import train_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenKmeansOptions(frozen.FrozenOptions):
  """Options of k-means segments.

  The labels of the labeled images are not read; clusters are matched with
  classes on `val_split`.

  Attributes:
    clusters: number of clusters; 0 for the number of classes, with which they
      are matched one to one. If there are more clusters than classes, each
      is matched with the class that it overlaps most.
    rows_per_image: number of random patches of an image that are clustered; 0
      for all.
    iterations: number of assignments and updates of each restart.
    restarts: number of k-means runs, of which the one with the lowest objective
      is kept.
  """

  clusters: NonNegative[int] = 0
  rows_per_image: NonNegative[int] = 0
  iterations: AtLeastOne = 20
  restarts: AtLeastOne = 5


class FrozenKmeansStage(frozen.FrozenStage):
  """Segments images by the clusters of their patches."""

  name = 'frozen_kmeans'
  options: FrozenKmeansOptions

  def check_data(self) -> None:
    """Raises UserError if there are fewer clusters than classes."""
    super().check_data()
    block = self.options
    split = self.context.open(block.data, block.split)
    if 0 < block.clusters < len(split.classes):
      raise errors.UserError(
        f'{self.path}.clusters: expected 0, or at least {len(split.classes)}, '
        f'the number of classes, got {block.clusters}'
      )

  def describe_protocol(self, encoder: 'frozen_encoder.FrozenEncoder') -> str:
    """Describes the clusters and how they are matched with classes."""
    block = self.options
    clusters = 'as many clusters as classes'
    if block.clusters:
      clusters = f'{block.clusters} clusters'
    return (
      f'{clusters} of patches, matched with '
      f'classes by pixels of {block.val_split}, cells of {encoder.stride} '
      f'pixels, short side {encoder.short_side}'
    )

  def fit(self, inputs: frozen.FitInputs) -> frozen.FrozenFit:
    """Clusters the patches, and matches the clusters with classes."""
    centroids = self._fit_centroids(inputs)
    block, encoder = self.options, inputs.encoder
    predictor = encoder.feature_maps(
      frozen_cluster_function(encoder, centroids)
    )
    val = self.context.evaluated(block, block.val_split, self.name)
    counts = metrics.ConfusionMatrix.empty(len(centroids))
    for labels, example in self._predictions(val, predictor)(encoder.state):
      counts = counts.update(labels, example['label'], example['id'])
    counts = metrics.merge_metrics_across_hosts(counts).counts
    match = cluster_matching.match_clusters(
      counts[: len(inputs.labeled.classes)]
    )
    return frozen.FrozenFit(
      lambda split: self._predictions(split, predictor, match.classes),
      encoder.state,
      {
        'num_clusters': len(centroids),
        'matching': match.kind,
        'classes_of_clusters': list(match.classes),
      },
    )

  def _fit_centroids(
    self, inputs: frozen.FitInputs
  ) -> Float[np.ndarray, 'K D']:
    """Returns the centroids; reads them if they were written before."""
    encoder, labeled, workspace = inputs
    block, path = self.options, workspace.directory / cluster.CENTROIDS
    # Host 0 decides: another host may see its files later.
    if collectives.broadcast_from_host_0(path.exists()):
      return features.read_feature_array(path)
    num_clusters = block.clusters or len(labeled.classes)
    counts = [encoder.count_cells(size) for size in labeled.sizes()]
    if block.rows_per_image:
      counts = [min(count, block.rows_per_image) for count in counts]
    self.check_rows(sum(counts), num_clusters, encoder.channels, 'clusters')

    def rows_of(
      index: int, maps: Float[np.ndarray, 'h w D'], example: Mapping[str, Any]
    ) -> Float[np.ndarray, 'n D']:
      del example
      rows = maps.reshape(-1, maps.shape[-1])
      rng = np.random.default_rng((block.seed, index))
      return rows[sample_frozen_patches(rng, len(rows), block.rows_per_image)]

    rows = self.row_extractor(encoder, workspace).extract(
      labeled,
      encoder.feature_maps(encoder.normalized_features),
      rows_of,
      encoder.channels,
    )
    clustering = cluster.fit_centroids(
      rows,
      num_clusters,
      label_options.ClusterOptions(
        iterations=block.iterations, restarts=block.restarts, seed=block.seed
      ),
      self.context.mesh,
      workspace,
    )
    cluster.write_clustering(workspace.directory, clustering, len(rows))
    return np.asarray(clustering.centroids, np.float32)

  def _predictions(
    self,
    split: datasets.Split,
    predictor: 'short_side.FeatureMaps',
    classes: tuple[int, ...] | None = None,
  ) -> 'segment.CellPredictions':
    """Builds the predictions of clusters, or of their classes."""
    return segment.CellPredictions(
      split,
      predictor,
      self.options.batch_size,
      self.context.mesh,
      ('label',),
      self.context.operation.reading,
      log_progress=True,
      classes=classes,
    )


def sample_frozen_patches(
  rng: np.random.Generator, count: int, limit: int
) -> Int32[np.ndarray, 'n']:
  """Draws distinct patches of an image; returns their sorted indices.

  Args:
    rng: random generator of the image.
    count: number of its patches.
    limit: number of patches to draw; 0 for all.
  """
  chosen = rng.permutation(count)[: limit or count]
  return np.sort(chosen).astype(np.int32)


def frozen_cluster_function(
  encoder: 'frozen_encoder.FrozenEncoder', centroids: Float[np.ndarray, 'K D']
) -> 'short_side.ForwardFn':
  """Builds the function from images to the nearest centroid of each cell.

  Args:
    encoder: encoder whose L2-normalized features are compared.
    centroids: centroids of L2-normalized features.
  """
  centroids = jnp.asarray(centroids)[None]

  def clusters(
    state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Int32[Array, 'B h w']:
    maps = encoder.normalized_features(state, images)
    rows = maps.reshape(-1, maps.shape[-1])
    nearest = kmeans.nearest_centroids(rows, centroids)[0]
    return nearest.reshape(maps.shape[:-1])

  return clusters
