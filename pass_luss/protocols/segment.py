"""Segments whole splits into files, matches and scores them, packs submissions.

The files are those of a benchmark submission: `<split>/<name>.png`, with
match.json beside them (spec §5.1, §5.2, §6).
"""

import dataclasses
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from input_pipeline import datasets, splits
from input_pipeline import loader as loader_lib
from input_pipeline.sources import records
from pass_luss.benchmark import label_folders, matching, metrics, png_format
from pass_luss.protocols import protocol_options
from runtime import console, files, threads
from segcore.eval import evaluator, panels, short_side
from segcore.eval import metrics as metrics_lib
from segcore.experiment import evaluation
from segcore.train import train_state

# Lines of method.txt, which the benchmark's servers require; in the order of
# the fields of `SubmissionInfo`.
_METHOD_LINES = (
  'Method name',
  'Training data',
  'Training scheme',
  'Networks',
  'Paper/Project link',
  'Method description',
)


def label_map_function(
  predictor: short_side.LabelMaps,
  state: train_state.TrainState,
  batch_size: int,
  mesh: Mesh,
  reading: loader_lib.ReadOptions,
) -> label_folders.LabelMapFunction:
  """Builds the function that predicts the label maps of a split.

  Args:
    predictor: predictor of label maps.
    state: training state of the network.
    batch_size: global number of images of a batch.
    mesh: the devices.
    reading: threads and worker processes of the input pipeline.
  """

  def predict(split: datasets.Split) -> Iterable:
    predictions = evaluator.Predictions(
      split, predictor, batch_size, mesh, (), reading
    )
    return predictions(state)

  return predict


def resize_label_maps(
  grids: Iterator[tuple[np.ndarray, Mapping[str, Any]]],
) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
  """Resizes labels of cells to the size of their images, by floor-nearest."""
  for labels, example in grids:
    size = tuple(example['size'].tolist())
    labels = np.asarray(labels).astype(np.int16)
    yield short_side.resize_predicted_labels(labels, size), example


@dataclasses.dataclass(frozen=True, eq=False)
class CellPredictions(evaluator.Predictions):
  """Predictions of label maps by a predictor of the labels of cells.

  Attributes:
    classes: class of each predicted label; None where labels are classes.
  """

  classes: tuple[int, ...] | None = None

  def __call__(
    self, state: train_state.TrainState
  ) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
    """Yields (label map of the image's size, example) of this host's images."""
    for labels, example in resize_label_maps(super().__call__(state)):
      if self.classes is not None:
        labels = np.asarray(self.classes, np.int16)[labels]
      yield labels, example


def match_label_map_files(
  split: datasets.Split, folder: files.Path, num_generated: int
) -> matching.Match:
  """Matches the categories of label map files with the classes of the masks.

  Each host reads its share of the files; the result is the same on all.

  Args:
    split: images with masks.
    folder: folder of the label maps.
    num_generated: number of categories without 'other'.
  """
  counts = matching.Cooccurrence.empty(num_generated, _num_classes(split))
  pairs = threads.map_in_threads(
    lambda i: matching.present_category_ids(
      *_pair(split, folder, i, num_generated)[:2]
    ),
    _local_indices(split),
  )
  return metrics_lib.merge_metrics_across_hosts(
    counts.update_all(pairs)
  ).match()


def score_label_map_files(
  split: datasets.Split,
  folder: files.Path,
  num_generated: int,
  match: matching.Match | None,
) -> metrics_lib.Values:
  """Scores label map files against the masks; the same on every host.

  Args:
    split: images with masks.
    folder: folder of the label maps.
    num_generated: number of categories without 'other'.
    match: mapping from predicted categories to classes; None where predictions
      are classes.

  Returns:
    The values of `metrics.ImageNetS`.
  """
  num_classes = _num_classes(split)

  def count(i: int) -> metrics.ImageNetS:
    prediction, label, name = _pair(split, folder, i, num_generated)
    if match is not None:
      prediction = match.apply(prediction)
    return metrics.count_imagenet_s_image(prediction, label, name, num_classes)

  total = metrics.ImageNetS.empty(num_classes)
  for counted in threads.map_in_threads(count, _local_indices(split)):
    total = total.merge(counted)
  return metrics_lib.merge_metrics_across_hosts(total).compute()


def draw_label_map_panel(
  split: datasets.Split,
  folder: files.Path,
  num_generated: int,
  match: matching.Match | None,
) -> np.ndarray:
  """Draws image, mask, label map and errors of evenly spaced images.

  Args:
    split: images with masks.
    folder: folder of their label maps.
    num_generated: number of categories of the label maps, without 'other'.
    match: match of categories and classes; None if label maps have classes.
  """
  examples = []
  for i in splits.evenly_spaced_image_indices(
    len(split), evaluation.NUM_PANEL_ROWS
  ):
    prediction, label, _ = _pair(split, folder, i, num_generated)
    if match is not None:
      prediction = match.apply(prediction)
    image = records.decode_record_image(split.records[i]['image'])
    examples.append(panels.Example(image, label, prediction))
  return panels.draw_panels(examples, split.classes, split.palette)


def write_submission(
  split: datasets.Split,
  folder: files.Path,
  match: files.Path | None,
  about: protocol_options.SubmissionInfo,
) -> files.Path:
  """Packs label maps, match.json and method.txt into a zip file; on host 0.

  Args:
    split: the images.
    folder: folder of the label maps, <wnid>/<name>.png.
    match: path of match.json; None where predictions are classes.
    about: content of method.txt.

  Returns:
    The path of the zip, beside the folder.
  """
  path = folder.with_name(f'{folder.name}_submission.zip')
  if jax.process_index() != 0:
    return path
  values = dataclasses.astuple(about)
  lines = [
    f'{name}: {v}' for name, v in zip(_METHOD_LINES, values, strict=True)
  ]
  with (
    files.atomic_file(path) as file,
    # PNG files are compressed already.
    zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive,
  ):
    for name in sorted(split.ids()):
      content = label_folders.label_map_path(folder, name).read_bytes()
      archive.writestr(f'{name}.png', content)
    if match is not None:
      archive.writestr('match.json', match.read_bytes())
    archive.writestr('method.txt', '\n'.join(lines) + '\n')
  return path


def log_label_map_scores(
  values: metrics_lib.Values, split: datasets.Split, name: str
) -> None:
  """Logs the main scores of a split in one line.

  Args:
    values: values of the benchmark's metrics.
    split: the scored images.
    name: name of the scores in the line.
  """
  console.print_line(
    f'{name}: mIoU {values["miou"]:.4f}, boundary mIoU '
    f'{values["boundary_miou"]:.4f}, image accuracy '
    f'{values["image_accuracy"]:.4f}, F {values["f_beta"]:.4f} over '
    f'{len(split)} images'
  )


def _num_classes(split: datasets.Split) -> int:
  """Counts the classes without 'other', class 0 of all data sets of PASS."""
  return len(split.classes) - 1


def _local_indices(split: datasets.Split) -> list[int]:
  """Returns the images that this host counts."""
  return list(range(jax.process_index(), len(split), jax.process_count()))


def _pair(
  split: datasets.Split, folder: files.Path, i: int, num_generated: int
) -> tuple[Int[np.ndarray, 'H W'], Int[np.ndarray, 'H W'], str]:
  """Reads the label map and the mask of the i-th image, and its id."""
  record = split.records[i]
  name = record['id'].decode()
  prediction = png_format.read_imagenet_s_png(
    label_folders.label_map_path(folder, name), num_generated
  )
  return prediction, records.decode_record_label(record['label']), name
