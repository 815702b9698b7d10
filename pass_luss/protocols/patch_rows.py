"""Extraction of a row of features, and of labels, for each patch of a split.

Blocks of images are written to the stage's folder as they are finished, and
read from there on a second run. All hosts return the same rows, in the order of
the images, whatever the batches and the devices.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32

from input_pipeline import datasets
from input_pipeline import loader as loader_lib
from pass_luss.pseudo_labels import features
from runtime import console
from segcore.distributed import collectives
from segcore.eval import evaluator, gather
from segcore.eval import short_side as short_side_lib
from segcore.train import train_state
from segcore.train import workspace as workspace_lib

# Images whose rows share a file: the unit in which an interrupted extraction
# resumes.
BLOCK = 256

# (index of the image, feature map, example) -> rows [n, …].
RowFunction = Callable[
  [int, np.ndarray, Mapping[str, Any]], Float[np.ndarray, 'n K']
]


@dataclasses.dataclass(frozen=True, eq=False)
class RowExtractor:
  """Computes the rows of a split's patches, and keeps them in files.

  Attributes:
    state: training state of the network.
    batch_size: global number of images of a batch; changes no result.
    mesh: the devices.
    reading: threads of the input pipeline.
    workspace: workspace of the stage.
  """

  state: train_state.TrainState
  batch_size: int
  mesh: Mesh
  reading: loader_lib.ReadOptions
  workspace: workspace_lib.Workspace

  def extract(
    self,
    split: datasets.Split,
    predictor: short_side_lib.FeatureMaps,
    rows_of: RowFunction,
    width: int,
    *,
    name: str = 'rows',
    augmentation: evaluator.Augmentation | None = None,
  ) -> Float32[np.ndarray, 'N K']:
    """Computes the rows of all images, in the order of the images.

    Args:
      split: the images; labels are read if it has them.
      predictor: predictor of the feature map of an image.
      rows_of: function from (index, feature map [h, w, D], example) of an image
        to its rows [n, K].
      width: number K of values of a row.
      name: first part of the file names.
      augmentation: random crop of each image before prediction.

    Raises:
      Preempted: the machine asked to stop; finished blocks are kept.
    """
    starts = range(0, len(split), BLOCK)
    parts = []
    for start in starts:
      path = self.workspace.directory / 'features' / f'{name}-{start:09}.npy'
      # Host 0 decides for all: on local disks the others see no file.
      if collectives.broadcast_from_host_0(path.exists()):
        parts.append(features.read_feature_array(path))
        continue
      indices = np.arange(start, min(start + BLOCK, len(split)))
      predictions = evaluator.Predictions(
        split.select(indices),
        predictor,
        self.batch_size,
        self.mesh,
        ('label',),
        self.reading,
        log_progress=True,
        augmentation=augmentation
        and augmentation._replace(seed=(*augmentation.seed, start)),
      )
      rows = self._compute(predictions, rows_of, start, width)
      if jax.process_index() == 0:
        features.write_feature_array(path, rows)
      parts.append(rows)
      if len(starts) > 1:
        console.print_line(
          f'{name}: {start + len(indices)} of {len(split)} images'
        )
      if self.workspace.preemption.reached():
        raise workspace_lib.Preempted(
          f'{self.workspace.directory} keeps its finished features'
        )
    return np.concatenate(parts)

  def _compute(
    self,
    predictions: evaluator.Predictions,
    rows_of: RowFunction,
    start: int,
    width: int,
  ) -> Float32[np.ndarray, 'n K']:
    """Computes the rows of a block, gathered from all hosts."""
    order = {name: i for i, name in enumerate(predictions.split.ids())}
    # A row that is no image's, so that no host is without rows.
    indices, parts = [np.full(1, -1)], [np.zeros((1, width), np.float32)]
    for feature_map, example in predictions(self.state):
      index = order[example['id'].item().decode()]
      rows = rows_of(start + index, feature_map, example)
      indices.append(np.full(len(rows), index))
      parts.append(rows)
    images = gather.all_gather_predictions(np.concatenate(indices), np.int32)
    rows = gather.all_gather_predictions(np.concatenate(parts), np.float32)
    order = np.argsort(images, kind='stable')
    return rows[order][np.count_nonzero(images < 0) :]
