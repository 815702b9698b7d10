"""Folders with a label map for each image: `<folder>/<id of the image>.png`.

They are made for the images of a split that have none yet, so that it can go on
where it was stopped, and are read again as labels to learn from.
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

# From a split to the label map of each image of this host, and the image.
LabelMapFunction = Callable[
  [datasets.Split], Iterable[tuple[np.ndarray, Mapping[str, Any]]]
]
# Images between two looks at whether the machine asked to stop.
_BLOCK = 2048


def label_path(folder: files.Path, name: str) -> files.Path:
  """Where the label map of an image is: its name, with .png."""
  return folder / f'{name}.png'


def missing_indices(
  split: datasets.Split, folder: files.Path
) -> Int[np.ndarray, 'n']:
  """The images without a label map in a folder; as host 0 sees it."""
  here = np.zeros(len(split), np.uint8)
  if jax.process_index() == 0:
    paths = [label_path(folder, name) for name in split.ids()]
    # A folder is asked once: a bucket answers one question after the other.
    parents = dict.fromkeys(path.parent for path in paths)
    known = {
      (parent, path.name)
      for parent in parents
      if parent.is_dir()
      for path in parent.iterdir()
    }
    here[:] = [(path.parent, path.name) in known for path in paths]
  return np.flatnonzero(collectives.broadcast_from_host_0(here) == 0)


def write(
  split: datasets.Split,
  maps: LabelMapFunction,
  folder: files.Path,
  place: workspace_lib.Workspace,
  short_side: int,
) -> None:
  """Writes the label map of each image; those that are there are kept.

  Args:
    split: the images.
    maps: how label maps are found.
    folder: of them.
    place: of the stage.
    short_side: of the images as the network is shown them: those that are then
      of one size come together, as they share batches and programs.

  Raises:
    Preempted: the machine asked to stop; what is written is kept.
  """
  left = missing_indices(split, folder)
  shown = [
    short_side_lib.resized_size(size, short_side) for size in split.sizes()
  ]
  left = np.array(sorted(left.tolist(), key=lambda i: (shown[i], i)), int)

  def put(found: tuple[np.ndarray, Mapping[str, Any]]) -> None:
    label, example = found
    png_format.write(label_path(folder, example['id'].item().decode()), label)

  starts = range(0, len(left), _BLOCK)
  progress = console.ProgressLine(folder.name, 0, len(starts), _BLOCK)
  for block, start in enumerate(starts, start=1):
    part = split.select(left[start : start + _BLOCK])
    for _ in threads.ordered_map(put, maps(part)):
      pass
    progress.report(block, {})
    if place.preemption.reached():
      raise workspace_lib.Preempted(
        f'{place.directory} keeps the labels it has'
      )
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'{folder} written')


class PseudoLabeledRecords(Sequence[records.Record]):
  """Records of images with the label maps of a folder, by their names."""

  def __init__(
    self, source: Sequence[records.Record], folder: files.Path, most: int
  ):
    self._source = source
    self._folder = folder
    self._most = most

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i) -> records.Record:
    record = self._source[int(i)]
    path = label_path(self._folder, record['id'].decode())
    label = png_format.read(path, self._most)
    return {**record, 'label': label}

  def __repr__(self) -> str:
    return f'PseudoLabeledRecords({len(self)} records, {self._folder})'


def with_pseudo_labels(
  split: datasets.Split, folder: files.Path, num_generated: int
) -> datasets.Split:
  """The images of a split with the label maps of a folder.

  Classes are 'other' and the generated categories.

  Raises:
    UserError: some of the label maps are missing.
  """
  lacking = missing_indices(split, folder)
  if len(lacking):
    raise errors.UserError(
      f'{folder} lacks the labels of {len(lacking):,} of {len(split):,} images '
      f'({split.ids()[lacking[0]]}, …): remove {folder.parent} to make them '
      'again'
    )
  return dataclasses.replace(
    split,
    name=f'{split.name} with generated labels',
    classes=('other', *(f'category {i + 1}' for i in range(num_generated))),
    palette=masks.palette(num_generated + 1),
    label_kinds=('label',),
    records=PseudoLabeledRecords(split.records, folder, num_generated),
  )
