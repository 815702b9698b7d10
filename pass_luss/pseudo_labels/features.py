"""Extracts L2-normalized features of whole splits, for k-means (spec §3.2)."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, Shaped

from input_pipeline import datasets
from input_pipeline import loader as loader_lib
from pass_luss.pretrain import embedding_ops
from pass_luss.pseudo_labels import attention, label_options
from runtime import console, files, threads
from segcore.distributed import collectives
from segcore.eval import evaluator, gather
from segcore.eval import short_side as short_side_lib
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state
from segcore.train import workspace as workspace_lib

# Images whose features share a file: the unit in which an interrupted
# extraction resumes.
BLOCK = 4096
# Added to the norm, so that a feature of zeros stays zeros.
_EPSILON = 1e-8


def clustering_feature_function(
  segmenter: segmenter_lib.Segmenter, kind: label_options.Kind
) -> short_side_lib.ForwardFn:
  """Builds the function from images to L2-normalized features.

  Args:
    segmenter: the network; of kind 'attended', with the head `attention`.
    kind: unit of clustering.

  Returns:
    A function of state and images that returns [B, D], or [B, h, w, D] of kind
    'pixel'.
  """

  def features(
    state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B ...']:
    if kind == 'attended':
      maps, weights = attention.features_and_attention(segmenter, state, images)
      rows = embedding_ops.average_pool_embeddings(maps * weights)
    else:
      maps = segmenter.apply(
        train_state.train_state_variables(state), images, method='deepest_map'
      )
      rows = (
        embedding_ops.average_pool_embeddings(maps) if kind == 'image' else maps
      )
    rows = rows.astype(jnp.float32)
    norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / (norm + _EPSILON)

  return features


def extract_clustering_features(
  split: datasets.Split,
  predictor: short_side_lib.FeatureMaps,
  state: train_state.TrainState,
  batch_size: int,
  mesh: Mesh,
  reading: loader_lib.ReadOptions,
  workspace: workspace_lib.Workspace,
) -> Float32[np.ndarray, 'N ...']:
  """Computes the features of each image in the order of the split.

  All hosts return the same array. Blocks of images are written to the stage's
  folder as they are finished, and read from there on a second run.

  Args:
    split: the images.
    predictor: predictor of the features of an image.
    state: training state of the network.
    batch_size: global number of images of a batch.
    mesh: the devices.
    reading: threads and worker processes of the input pipeline.
    workspace: workspace of the stage.

  Raises:
    Preempted: the machine asked to stop; finished blocks are kept.
  """
  folder = workspace.directory / 'features'
  starts = range(0, len(split), BLOCK)
  progress = console.ProgressLine('features', 0, len(starts), BLOCK)
  result = None
  for done, start in enumerate(starts, start=1):
    path = folder / f'{start:09}.npy'
    # Host 0 decides for all: on local disks the others see no file.
    if collectives.broadcast_from_host_0(path.exists()):
      rows = read_feature_array(path)
    else:
      indices = np.arange(start, min(start + BLOCK, len(split)))
      rows = gather.predict_in_order(
        evaluator.Predictions(
          split.select(indices), predictor, batch_size, mesh, (), reading
        ),
        state,
      )
      if workspace.preemption.reached():
        raise workspace_lib.Preempted(
          f'{workspace.directory} keeps its finished features'
        )
      if jax.process_index() == 0:
        write_feature_array(path, rows)
      progress.report(done, {})
    if result is None:
      result = np.empty((len(split), *rows.shape[1:]), np.float32)
    result[start : start + len(rows)] = rows
  return result


def delete_feature_files(workspace: workspace_lib.Workspace) -> None:
  """Deletes the stage's feature files; acts on host 0 only."""
  if jax.process_index() == 0:
    # Leftover files cost space, but are no reason to fail a finished stage.
    with contextlib.suppress(OSError):
      files.remove_folder(workspace.directory / 'features')


def write_feature_array(path: files.Path, array: np.ndarray) -> None:
  """Writes an array as .npy atomically; `path` may be in a bucket."""
  content = io.BytesIO()
  np.save(content, array)
  files.write_atomically(path, content.getvalue())


def read_feature_array(path: files.Path) -> Shaped[np.ndarray, '...']:
  """Reads an array that `write_feature_array` has written."""
  return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)


def read_feature_row_classes(
  split: datasets.Split,
) -> Int[np.ndarray, 'N'] | None:
  """Reads the class of each image, in the order of the rows of features.

  Returns:
    Class ids; None unless each image has exactly one tag.
  """
  if 'tags' not in split.label_kinds:
    return None
  tags = list(
    threads.map_in_threads(
      lambda i: np.asarray(split.records[i]['tags']), range(len(split))
    )
  )
  if any(len(classes) != 1 for classes in tags):
    return None
  return np.concatenate(tags).astype(np.int64)
