"""Step 2b of PASS: a feature for each image, and their k-means (spec §3.2)."""

import contextlib
import dataclasses
import io
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, Shaped

from input_pipeline import datasets
from input_pipeline import loader as loader_lib
from pass_luss.pretrain import embedding_ops
from pass_luss.pseudo_labels import attention, kmeans
from runtime import console, files, json_files, threads
from segcore.distributed import collectives, sharding
from segcore.eval import evaluator, gather
from segcore.eval import short_side as short_side_lib
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state
from segcore.train import workspace as workspace_lib

# What a clustering leaves in its folder: the cluster of each row, from 0; how
# near it is; and the centroids.
ASSIGNMENTS = 'assignments.npy'
NUMBERS = 'clusters.json'
CENTROIDS = 'centroids.npy'
FILES = (ASSIGNMENTS, NUMBERS, CENTROIDS)
# Images whose features are kept together, in one file.
BLOCK = 4096
# Keeps the length of a feature of zeros from being 0.
_EPSILON = 1e-8

# What is clustered: images by what is attended to, images as a whole (the
# image-level baseline), or the cells of their maps (the pixel-level one).
Kind = Literal['attended', 'image', 'pixel']


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
  """Features and k-means.

  Attributes:
    kind: what is clustered.
    iterations: of k-means.
    restarts: of which the best is kept.
    short_side: of the images.
    crop: side of the middle that is looked at.
    batch_size: global number of images; changes nothing of what is found.
    seed: of the restarts.
  """

  kind: Kind = 'attended'
  iterations: int = 20
  restarts: int = 30
  short_side: int = 256
  crop: int = 224
  batch_size: int = 256
  seed: int = 0

  def __post_init__(self):
    for name in ('iterations', 'restarts', 'short_side', 'crop', 'batch_size'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name}: found {getattr(self, name)}, expected 1 or more'
        )
    if self.crop > self.short_side:
      raise ValueError(
        f'crop: found {self.crop}, expected at most the short side of '
        f'{self.short_side}'
      )


def look_of(
  segmenter: segmenter_lib.Segmenter, kind: Kind
) -> short_side_lib.Look:
  """From images to what is clustered: [B, D], of cells [B, h, w, D]."""

  def look(
    state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B ...']:
    variables = train_state.variables(state)
    if kind == 'attended':
      maps, weights = attention.attention(segmenter, variables, images)
      found = embedding_ops.average_pool(maps * weights)
    else:
      maps = segmenter.apply(
        variables, images, decode=False, method='features'
      )['encoder'].deepest.array
      found = embedding_ops.average_pool(maps) if kind == 'image' else maps
    found = found.astype(jnp.float32)
    length = jnp.linalg.norm(found, axis=-1, keepdims=True)
    return found / (length + _EPSILON)

  return look


def features(
  split: datasets.Split,
  look: short_side_lib.AtGrid,
  state: train_state.TrainState,
  batch_size: int,
  mesh: Mesh,
  reading: loader_lib.ReadOptions,
  place: workspace_lib.Workspace,
) -> Float32[np.ndarray, 'N ...']:
  """What is found in each image, in the order of the split; on every host.

  Blocks of images are written to the stage's folder as they are done, and a
  block that is there is not looked at again.

  Raises:
    Preempted: the machine asked to stop; finished blocks are kept.
  """
  folder = place.directory / 'features'
  starts = range(0, len(split), BLOCK)
  progress = console.ProgressLine('features', 0, len(starts), BLOCK)
  result = None
  for done, start in enumerate(starts, start=1):
    path = folder / f'{start:09}.npy'
    # As host 0 sees it.
    if not collectives.broadcast_from_host_0(path.exists()):
      indices = np.arange(start, min(start + BLOCK, len(split)))
      part = split.select(indices)
      found = gather.rows_of(
        evaluator.Predictions(part, look, batch_size, mesh, (), reading), state
      )
      if place.preemption.reached():
        raise workspace_lib.Preempted(
          f'{place.directory} keeps its finished features'
        )
      if jax.process_index() == 0:
        _write(path, found)
      progress.report(done, {})
    else:
      found = read(path)
    if result is None:
      result = np.empty((len(split), *found.shape[1:]), np.float32)
    result[start : start + len(found)] = found
  return result


def forget(place: workspace_lib.Workspace) -> None:
  """Removes the features, once there are centroids; from host 0."""
  if jax.process_index() == 0:
    # What is left behind does no harm.
    with contextlib.suppress(OSError):
      files.remove_folder(place.directory / 'features')


def _write(path: files.Path, array: np.ndarray) -> None:
  content = io.BytesIO()
  np.save(content, array)
  files.write(path, content.getvalue())


def centroids(
  rows: Float32[np.ndarray, 'N D'],
  num_clusters: int,
  options: ClusterOptions,
  mesh: Mesh,
  place: workspace_lib.Workspace,
) -> kmeans.Clustering:
  """The best k-means of some restarts; says how far it is.

  Raises:
    Preempted: the machine asked to stop; features are kept, restarts are not.
  """
  initial = kmeans.sample_initial(
    jax.random.PRNGKey(options.seed), options.restarts, len(rows), num_clusters
  )
  console.log(
    f'k-means: {len(rows):,} rows of {rows.shape[1]}, {num_clusters} clusters, '
    f'{options.restarts} restarts of {options.iterations} iterations'
  )
  progress = console.ProgressLine('k-means', 0, options.restarts, len(rows))

  def tell(done: int, least: float) -> None:
    progress.report(done, {'objective': least})
    if place.preemption.reached():
      raise workspace_lib.Preempted(f'{place.directory} keeps its features')

  return kmeans.fit(
    kmeans.place(mesh, rows), initial, options.iterations, progress=tell
  )


def write(folder: files.Path, found: kmeans.Clustering, num_rows: int) -> None:
  """Writes a clustering, from host 0.

  Centroids come last: where they are, all is.

  Args:
    folder: of the stage.
    found: the clustering.
    num_rows: of it, without what only fills the devices up.
  """
  whole = sharding.replicated(found.assignments.sharding.mesh)
  assigned = np.asarray(jax.device_put(found.assignments, whole))[:num_rows]
  if jax.process_index() == 0:
    _write(folder / ASSIGNMENTS, assigned)
    said = {'objective': found.objective, 'num_rows': num_rows}
    json_files.write(folder / NUMBERS, said)
    _write(folder / CENTROIDS, np.asarray(found.centroids, np.float32))


def read(path: files.Path) -> Shaped[np.ndarray, 'N ...']:
  """Reads centroids, assignments or features."""
  return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)


def tags_of(split: datasets.Split) -> Int[np.ndarray, 'N'] | None:
  """The class of each image, where each has exactly one; else None."""
  if 'tags' not in split.label_kinds:
    return None
  found = threads.ordered_map(
    lambda i: np.asarray(split.records[i]['tags']), range(len(split))
  )
  found = list(found)
  if any(len(tags) != 1 for tags in found):
    return None
  return np.concatenate(found).astype(np.int64)
