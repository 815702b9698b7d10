"""The clusterings of all images between the epochs of PCL (spec §2.7)."""

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from input_pipeline import datasets
from input_pipeline import loader as loader_lib
from pass_luss.pretrain import comparator_options, embedding_ops
from pass_luss.pretrain import objective as objective_lib
from pass_luss.pretrain.objectives import pcl as pcl_lib
from pass_luss.pseudo_labels import features, kmeans
from runtime import console, errors, files
from segcore.eval import short_side
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state
from segcore.train import workspace as workspace_lib

# Images that k-means reads at most, for each cluster, as in Faiss.
_MAX_ROWS_PER_CLUSTER = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class EpochClustering:
  """Computes the prototypes of PCL anew from all images.

  Attributes:
    objective: PCL.
    segmenter: network of the encoder and of PCL's head, in float32.
    split: images that are trained on.
    batch_size: global number of images of a batch.
    mesh: the devices.
    reading: threads and worker processes of the input pipeline.
    workspace: workspace of the stage, in which blocks of embeddings are kept
      until all are computed.
  """

  objective: pcl_lib.Pcl
  segmenter: segmenter_lib.Segmenter
  split: datasets.Split
  batch_size: int
  mesh: Mesh
  reading: loader_lib.ReadOptions
  workspace: workspace_lib.Workspace

  def __call__(self, state: objective_lib.State) -> objective_lib.State:
    """Returns the state with new clusterings.

    Raises:
      Preempted: the machine asked to stop; finished blocks are kept.
    """
    step = int(state.step)
    # A folder of this step: embeddings of another step must not be read.
    folder = self.workspace.directory / f'clustering-{step}'
    embeddings = self._embed(
      state, dataclasses.replace(self.workspace, directory=folder)
    )
    options, old = self.objective.options, state.memory[self.objective.name]
    clusterings = []
    for position, k in enumerate(options.clusters):
      clusterings.append(self._cluster(embeddings, k, position, options))
      console.print_line(
        f'step {step}: {k:,} prototypes of {len(embeddings):,} images'
      )
    if jax.process_index() == 0:
      files.remove_folder(folder)
    memory = old.replace(
      clusterings=jax.tree.map(
        lambda new, before: jax.device_put(new, before.sharding),
        tuple(clusterings),
        old.clusterings,
      ),
      is_clustered=jax.device_put(np.array(True), old.is_clustered.sharding),
    )
    return state.replace(memory={**state.memory, self.objective.name: memory})

  def _embed(
    self, state: objective_lib.State, workspace: workspace_lib.Workspace
  ) -> Float32[np.ndarray, 'N D']:
    """Embeds all images by the momentum encoder, in evaluation mode."""
    spec, name = self.objective.needs_embeddings, self.objective.name

    def embed(
      state: train_state.TrainState, images: jax.Array
    ) -> Float32[jax.Array, 'B D']:
      variables = train_state.train_state_variables(state)
      outputs = self.segmenter.apply(variables, images, heads=(name,))[name]
      return embedding_ops.l2_normalize_embeddings(outputs)

    encoder = train_state.TrainState(
      state.step,
      state.momentum_params,
      state.momentum_batch_stats,
      opt_state=(),
      rng=state.rng,
    )
    return features.extract_clustering_features(
      self.split,
      short_side.FeatureMaps(embed, spec.short_side, spec.crop),
      encoder,
      self.batch_size,
      self.mesh,
      self.reading,
      workspace,
    )

  def _cluster(
    self,
    embeddings: Float32[np.ndarray, 'N D'],
    k: int,
    position: int,
    options: comparator_options.PclOptions,
  ) -> pcl_lib.Prototypes:
    """Runs k-means, seeded by the position of the number of clusters."""
    rows = embeddings
    if len(rows) > _MAX_ROWS_PER_CLUSTER * k:
      chosen = np.random.default_rng(position).choice(
        len(rows), _MAX_ROWS_PER_CLUSTER * k, replace=False
      )
      rows = rows[np.sort(chosen)]
    initial = kmeans.sample_initial_centroids(
      jax.random.PRNGKey(position), options.restarts, len(rows), k
    )
    clustering = kmeans.fit_kmeans(
      kmeans.shard_feature_rows(self.mesh, rows),
      initial,
      options.iterations,
    )
    centroids = np.asarray(clustering.centroids)
    if rows is embeddings:
      assignments = kmeans.gather_assignments(clustering, len(rows))
    else:
      assignments = np.asarray(
        kmeans.assign_to_centroids(embeddings, centroids)
      )
    return pcl_lib.make_prototypes(
      embeddings, centroids, assignments, options.temperature
    )


def check_num_images(
  path: str, objectives: Iterable[objective_lib.Objective], num_images: int
) -> None:
  """Raises UserError unless objectives are built for this number of images.

  Args:
    path: path of the stage's block in the config, for the message.
    objectives: objectives of the stage.
    num_images: number of images of its training split.
  """
  for each in objectives:
    spec = each.needs_embeddings
    if spec and spec.num_images != num_images:
      raise errors.UserError(
        f'{path}.learn.{each.name}.num_images: expected {num_images}, those of '
        f'the training split, got {spec.num_images}'
      )
