"""SC-CAM's sub-categories: k-means of the images of each class.

Spec comparators §4.2. An image of several classes has a sub-category of each.
"""

import warnings
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from etils import epy
from jaxtyping import Array, Float, Int

from pass_luss.pseudo_labels import features
from runtime import files
from segcore.eval import short_side as short_side_lib
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state

with epy.lazy_imports():
  import scipy.cluster.vq

# Rows of (index of the image, class, sub-category), in the stage's folder.
FILE = 'subcategories.npy'

Rows = Float[np.ndarray, 'N D']
Centroids = Float[np.ndarray, 'K D']


def pooled_feature_function(
  segmenter: segmenter_lib.Segmenter,
) -> short_side_lib.ForwardFn:
  """Builds the function from images to the means of their deepest maps."""

  def pool(
    state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B D']:
    variables = train_state.train_state_variables(state)
    maps = segmenter.apply(variables, images, method='deepest_map')
    return jnp.mean(maps.astype(jnp.float32), axis=(1, 2))

  return pool


def assign_subcategories(
  rows: Rows,
  tags: Sequence[tuple[int, ...]],
  count: int,
  restarts: int,
  iterations: int,
  seed: int,
) -> Mapping[tuple[int, int], int]:
  """Assigns each image a sub-category of each of its classes.

  Args:
    rows: features of the images.
    tags: classes of each image, from 1.
    count: number of sub-categories of a class; fewer if it has fewer different
      images.
    restarts: number of k-means runs, of which the best is kept.
    iterations: number of assignments and updates of a run.
    seed: seed of the initial centroids, with the class.

  Returns:
    The sub-category, from 0, by (index of the image, class).
  """
  assigned = {}
  for category in sorted({each for classes in tags for each in classes}):
    members = [i for i, classes in enumerate(tags) if category in classes]
    of_class = np.asarray(rows[members], np.float64)
    rng = np.random.default_rng((seed, category))
    initial = sample_centroid_sets(rng, of_class, count, restarts)
    labels = cluster_class(of_class, initial, iterations)
    assigned.update(
      {(i, category): int(k) for i, k in zip(members, labels, strict=True)}
    )
  return assigned


def cluster_class(
  rows: Rows, initial: Sequence[Centroids], iterations: int
) -> Int[np.ndarray, 'N']:
  """Runs k-means from each set of centroids; returns the best assignment.

  Args:
    rows: features of the images of a class.
    initial: sets of centroids to begin with; the first of equally good ones
      wins.
    iterations: number of assignments and updates.
  """
  best, assignment = np.inf, None
  for centroids in initial:
    fitted = _move_centroids(rows, centroids, iterations)
    labels, distances = scipy.cluster.vq.vq(rows, fitted)
    objective = float(np.sum(np.square(distances)))
    if objective < best:
      best, assignment = objective, labels
  return assignment


def _move_centroids(
  rows: Rows, centroids: Centroids, iterations: int
) -> Centroids:
  """Moves centroids to the means of their rows, until nothing changes."""
  with warnings.catch_warnings():
    # An empty cluster keeps its centroid.
    warnings.simplefilter('ignore', UserWarning)
    for _ in range(iterations):
      moved, _ = scipy.cluster.vq.kmeans2(
        rows, centroids, iter=1, minit='matrix', missing='warn'
      )
      if np.array_equal(moved, centroids):
        break
      centroids = moved
  return centroids


def sample_centroid_sets(
  rng: np.random.Generator, rows: Rows, count: int, restarts: int
) -> list[Centroids]:
  """Draws centroids by k-means++: each far from those before it.

  Args:
    rng: random generator.
    rows: features to draw from.
    count: number of centroids, as far as there are different rows.
    restarts: number of sets.
  """
  sets = []
  for _ in range(restarts):
    chosen = [rows[rng.integers(len(rows))]]
    nearest = np.sum(np.square(rows - chosen[0]), axis=1)
    while len(chosen) < count and nearest.max() > 0:
      row = rows[rng.choice(len(rows), p=nearest / nearest.sum())]
      chosen.append(row)
      nearest = np.minimum(nearest, np.sum(np.square(rows - row), axis=1))
    sets.append(np.stack(chosen))
  return sets


def write_subcategories(
  folder: files.Path, assigned: Mapping[tuple[int, int], int]
) -> None:
  """Writes the sub-categories of images to the folder of a stage.

  Args:
    folder: folder of the stage.
    assigned: sub-categories as `assign_subcategories` returns them.
  """
  rows = [(*pair, sub) for pair, sub in sorted(assigned.items())]
  features.write_feature_array(folder / FILE, np.array(rows, np.int32))


def read_subcategories(folder: files.Path) -> Mapping[tuple[int, int], int]:
  """Reads the sub-categories that `write_subcategories` has written."""
  rows = features.read_feature_array(folder / FILE).tolist()
  return {(i, category): sub for i, category, sub in rows}
