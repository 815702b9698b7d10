"""Folders with the label map of each image of a split: `<folder>/<id>.png`.

Existing files are kept, so that an interrupted stage resumes. Fine-tuning reads
them as labels.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from input_pipeline import datasets
from input_pipeline.sources import masks, records
from pass_luss.benchmark import png_format
from runtime import console, errors, files, threads
from segcore.distributed import collectives
from segcore.eval import short_side as short_side_lib
from segcore.train import workspace as workspace_lib

# From a split to (label map, example) of each image of this host.
LabelMapFunction = Callable[
  [datasets.Split], Iterable[tuple[np.ndarray, Mapping[str, Any]]]
]
# Images that are written between two checks for preemption.
_BLOCK = 2048


def label_map_path(folder: files.Path, name: str) -> files.Path:
  """Returns the path of the label map of the image with this id."""
  return folder / f'{name}.png'


def indices_without_label_map(
  split: datasets.Split, folder: files.Path
) -> Int[np.ndarray, 'n']:
  """Returns the indices of images whose label map is missing on host 0."""
  exists = np.zeros(len(split), np.uint8)
  if jax.process_index() == 0:
    paths = [label_map_path(folder, name) for name in split.ids()]
    # Folders are listed, as buckets answer a query per file too slowly.
    parents = dict.fromkeys(path.parent for path in paths)
    present = {
      (parent, path.name)
      for parent in parents
      if parent.is_dir()
      for path in parent.iterdir()
    }
    exists[:] = [(path.parent, path.name) in present for path in paths]
  return np.flatnonzero(collectives.broadcast_from_host_0(exists) == 0)


def write_missing_label_maps(
  split: datasets.Split,
  maps: LabelMapFunction,
  folder: files.Path,
  workspace: workspace_lib.Workspace,
  short_side: int,
) -> None:
  """Writes the label map of each image that has none yet.

  Args:
    split: the images.
    maps: function from a split to its label maps.
    folder: folder of the label maps.
    workspace: workspace of the stage.
    short_side: short side of the network's input, in pixels. Images of one
      input size are processed together, since they share batches and compiled
      programs.

  Raises:
    Preempted: the machine asked to stop; written files are kept.
  """
  left = indices_without_label_map(split, folder)
  sizes = [
    short_side_lib.short_side_size(size, short_side) for size in split.sizes()
  ]
  left = np.array(sorted(left.tolist(), key=lambda i: (sizes[i], i)), int)

  def write_file(prediction: tuple[np.ndarray, Mapping[str, Any]]) -> None:
    label, example = prediction
    png_format.write_imagenet_s_png(
      label_map_path(folder, example['id'].item().decode()), label
    )

  starts = range(0, len(left), _BLOCK)
  progress = console.ProgressLine(folder.name, 0, len(starts), _BLOCK)
  for block, start in enumerate(starts, start=1):
    part = split.select(left[start : start + _BLOCK])
    for _ in threads.map_in_threads(write_file, maps(part)):
      pass
    progress.report(block, {})
    if workspace.preemption.reached():
      raise workspace_lib.Preempted(
        f'{workspace.directory} keeps the labels it has'
      )
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'{folder} written')


class PseudoLabeledRecords(Sequence[records.Record]):
  """Records whose labels are the label maps of a folder.

  Args:
    source: records of the images.
    folder: folder of the label maps.
    num_classes: the largest id of a label map.
  """

  def __init__(
    self, source: Sequence[records.Record], folder: files.Path, num_classes: int
  ):
    self._source = source
    self._folder = folder
    self._num_classes = num_classes

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i) -> records.Record:
    record = self._source[int(i)]
    path = label_map_path(self._folder, record['id'].decode())
    label = png_format.read_imagenet_s_png(path, self._num_classes)
    return {**record, 'label': label}

  def __repr__(self) -> str:
    return f'PseudoLabeledRecords({len(self)} records, {self._folder})'


def with_pseudo_labels(
  split: datasets.Split, folder: files.Path, num_generated: int
) -> datasets.Split:
  """Returns the split with the label maps of a folder as its labels.

  Its classes are 'other' and the generated categories.

  Raises:
    UserError: some of the label maps are missing.
  """
  missing = indices_without_label_map(split, folder)
  if len(missing):
    raise errors.UserError(
      f'{folder}: expected label maps of {len(split):,} images, got '
      f'{len(split) - len(missing):,} ({split.ids()[missing[0]]}, … missing): '
      f'remove {folder.parent} to generate them again'
    )
  return categorized_split(
    split,
    'pseudo-labels',
    'label',
    num_generated,
    PseudoLabeledRecords(split.records, folder, num_generated),
  )


def categorized_split(
  split: datasets.Split, name: str, kind: str, count: int, labeled: Any
) -> datasets.Split:
  """Returns the split with classes 'other' and generated categories.

  Args:
    split: the images.
    name: name of the labels.
    kind: kind of the labels, 'label' or 'tags'.
    count: number of categories.
    labeled: records of the images with these labels.
  """
  return dataclasses.replace(
    split,
    name=f'{split.name} with {name}',
    classes=('other', *(f'category {i + 1}' for i in range(count))),
    palette=masks.voc_palette(count + 1),
    label_kinds=(kind,),
    records=labeled,
  )
