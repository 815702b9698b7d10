"""Stage `cluster`: as many centroids as there are classes (step 2b)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from etils import epy

from input_pipeline import datasets
from pass_luss.pseudo_labels import label_options
from pass_luss.stages import attend, base, represent
from runtime import console, errors, files, json_files
from segcore.distributed import collectives
from segcore.experiment import experiment_stage
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.pseudo_labels import cluster as cluster_lib
  from pass_luss.pseudo_labels import clustering_scores, features
  from segcore.eval import short_side
  from segcore.train import train_state

# Bytes of the features on a host, at most.
_MAX_FEATURE_BYTES = 64e9


class ClusteredStage(base.InferenceStage):
  """A stage on the network whose features are clustered."""

  @property
  def trained_by(
    self,
  ) -> represent.RepresentStage | attend.AttendStage:
    """Returns the stage that trains the network."""
    attended = self.experiment.cluster.kind == 'attended'
    cls = attend.AttendStage if attended else represent.RepresentStage
    return cls(self.experiment, self.exact_context)

  def build_network(self):
    """Builds the network in float32."""
    return self.trained_by.method(self.exact_context).segmenter

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stage that trains the network."""
    return (self.trained_by.name,)

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images that are clustered."""
    return experiment_stage.Inputs((self.image_input(),))

  def network_state(
    self, workspace: workspace_lib.Workspace
  ) -> 'train_state.TrainState':
    """Reads the variables of the network whose features are clustered."""
    return self.read_state(workspace.needed[self.trained_by.name])[1]


class ClusterStage(ClusteredStage):
  """Clusters the features of the images by k-means."""

  name = 'cluster'
  options: label_options.ClusterOptions

  def check_data(self) -> None:
    """Refuses too few rows to cluster, and more than fit into memory."""
    self.check_rows(self.open_images())

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Writes centroids and assignments; scores them where there are tags."""
    split, folder = self.open_images(), workspace.directory
    self.check_rows(split)
    # The centroids are written last. Host 0 decides: another host may see its
    # files later.
    done = (folder / cluster_lib.CENTROIDS).exists()
    if not collectives.broadcast_from_host_0(done):
      self._write_clustering(workspace, split)
    # On host 0 only: the others need not read all tags.
    if jax.process_index() == 0 and self.options.kind != 'pixel':
      self._write_scores(split, folder)
    features.delete_feature_files(workspace)
    return [folder / name for name in cluster_lib.FILES]

  def check_rows(self, split: datasets.Split) -> None:
    """Raises UserError for too few rows to cluster, or for too many."""
    rows, kind = len(split), self.options.kind
    if kind == 'pixel':
      *cells, channels = self.feature_map_shape()
      rows *= math.prod(cells)
      size = 4 * rows * channels
      if size > _MAX_FEATURE_BYTES:
        raise errors.UserError(
          "config.cluster.kind='pixel': expected at most "
          f'{_MAX_FEATURE_BYTES / 1e9:.0f} GB of features, got '
          f'{size / 1e9:.0f} GB for {len(split):,} images: choose fewer images '
          "(the paper has it for ImageNet-S 50 only), or kind='attended'"
        )
    num_classes = len(split.classes) - 1
    if rows < num_classes:
      raise errors.UserError(
        f'config.images: expected at least {num_classes} rows to cluster, one '
        f'for each class, got {rows} in {split.name}: choose data with more '
        'images'
      )

  def feature_map_shape(self) -> tuple[int, int, int]:
    """Returns height, width and channels of the map clustered by pixels."""
    side, net = self.options.crop, self.build_network()
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)

    def deepest(images: jax.Array) -> jax.Array:
      return net.init_with_output(
        jax.random.PRNGKey(0), images, method='deepest_map'
      )[0]

    return jax.eval_shape(deepest, images).shape[1:]

  def _write_clustering(
    self, workspace: workspace_lib.Workspace, split: datasets.Split
  ) -> None:
    """Extracts the features of all images, fits and writes the centroids."""
    block, context = self.options, self.context
    feature_maps = short_side.FeatureMaps(
      features.clustering_feature_function(self.build_network(), block.kind),
      block.short_side,
      block.crop,
    )
    extracted = features.extract_clustering_features(
      split,
      feature_maps,
      self.network_state(workspace),
      block.batch_size,
      context.mesh,
      context.operation.reading,
      workspace,
    )
    rows = extracted.reshape(-1, extracted.shape[-1])
    clustering = cluster_lib.fit_centroids(
      rows, len(split.classes) - 1, block, context.mesh, workspace
    )
    cluster_lib.write_clustering(workspace.directory, clustering, len(rows))

  def _write_scores(self, split: datasets.Split, folder: files.Path) -> None:
    """Writes how well clusters agree with the tags, where images have one."""
    tags = features.read_feature_row_classes(split)
    if tags is None:
      return
    assignments = cluster_lib.read_cluster_assignments(folder)
    scores = clustering_scores.score_clustering(assignments, tags)
    console.print_line(
      f'clusters against classes: NMI {scores["nmi"]:.4f}, accuracy '
      f'{scores["accuracy"]:.4f}'
    )
    path = folder / cluster_lib.SCORES
    json_files.write_json(path, json_files.read_json(path) | scores)
