"""Step 2b of PASS: k-means of the features of a split (spec §3.2)."""

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from pass_luss.pseudo_labels import features, kmeans, label_options
from runtime import console, files, json_files
from segcore.train import workspace as workspace_lib

# Outputs in the stage's folder: the cluster of each row, from 0; the objective,
# the number of rows and scores against classes; and the centroids.
ASSIGNMENTS = 'assignments.npy'
SCORES = 'clusters.json'
CENTROIDS = 'centroids.npy'
FILES = (ASSIGNMENTS, SCORES, CENTROIDS)


def fit_centroids(
  rows: Float32[np.ndarray, 'N D'],
  num_clusters: int,
  options: label_options.ClusterOptions,
  mesh: Mesh,
  workspace: workspace_lib.Workspace,
) -> kmeans.Clustering:
  """Runs k-means with restarts and logs its progress.

  Args:
    rows: features to cluster.
    num_clusters: number of clusters.
    options: options of k-means.
    mesh: the devices.
    workspace: workspace of the stage.

  Raises:
    Preempted: the machine asked to stop; features are kept, restarts are not.
  """
  initial = kmeans.sample_initial_centroids(
    jax.random.PRNGKey(options.seed), options.restarts, len(rows), num_clusters
  )
  console.print_line(
    f'k-means: {len(rows):,} rows of {rows.shape[1]}, {num_clusters} clusters, '
    f'{options.restarts} restarts of {options.iterations} iterations'
  )
  progress = console.ProgressLine('k-means', 0, options.restarts, len(rows))

  def report(done: int, objective: float) -> None:
    progress.report(done, {'objective': objective})
    if workspace.preemption.reached():
      raise workspace_lib.Preempted(f'{workspace.directory} keeps its features')

  return kmeans.fit_kmeans(
    kmeans.shard_feature_rows(mesh, rows),
    initial,
    options.iterations,
    progress=report,
  )


def write_clustering(
  folder: files.Path, clustering: kmeans.Clustering, num_rows: int
) -> None:
  """Writes the outputs of the stage from host 0; all hosts must call it.

  The centroids are written last: where they exist, all outputs do.

  Args:
    folder: folder of the stage.
    clustering: centroids and the cluster of every row.
    num_rows: number of rows without the padding.
  """
  assignments = kmeans.gather_assignments(clustering, num_rows)
  if jax.process_index() == 0:
    features.write_feature_array(folder / ASSIGNMENTS, assignments)
    json_files.write_json(
      folder / SCORES,
      {'objective': clustering.objective, 'num_rows': num_rows},
    )
    features.write_feature_array(
      folder / CENTROIDS, np.asarray(clustering.centroids, np.float32)
    )


def read_centroids(folder: files.Path) -> Float32[np.ndarray, 'K D']:
  """Reads the centroids from the folder of a finished stage."""
  return features.read_feature_array(folder / CENTROIDS)


def read_cluster_assignments(folder: files.Path) -> Int32[np.ndarray, 'N']:
  """Reads the cluster of each row, from 0, from a finished stage's folder."""
  return features.read_feature_array(folder / ASSIGNMENTS)
