"""Label maps of whole splits, as files, and how well they agree with masks.

The files are those of the benchmark's submission: `<split>/<name>.png`, with
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
from runtime import console, files, threads
from segcore.eval import evaluator, panels, short_side
from segcore.eval import metrics as metrics_lib
from segcore.experiment import context
from segcore.train import train_state

# What the benchmark's servers ask for in method.txt.
_METHOD = (
  'Method name',
  'Training data',
  'Training scheme',
  'Networks',
  'Paper/Project link',
  'Method description',
)


@dataclasses.dataclass(frozen=True)
class SubmissionInfo:
  """What method.txt says; a submission without it is refused.

  Attributes:
    name: of the method.
    data: it was trained on.
    scheme: of training: 'SSL'.
    networks: that were used.
    link: to the paper or project.
    description: of the method.
  """

  name: str = 'PASS'
  data: str = ''
  scheme: str = 'SSL'
  networks: str = ''
  link: str = ''
  description: str = ''


def label_map_function(
  look: short_side.LabelMaps,
  state: train_state.TrainState,
  batch_size: int,
  mesh: Mesh,
  reading: loader_lib.ReadOptions,
) -> label_folders.LabelMapFunction:
  """Label maps by the scores of a network."""

  def maps(split: datasets.Split) -> Iterable:
    predictions = evaluator.Predictions(
      split, look, batch_size, mesh, (), reading
    )
    return predictions(state)

  return maps


def match_categories(
  split: datasets.Split, folder: files.Path, num_generated: int
) -> matching.Match:
  """The matching of a split's files with its masks; the same on every host."""
  counts = matching.Cooccurrence.empty(num_generated, _num_classes(split))
  pairs = threads.ordered_map(
    lambda i: matching.present_ids(*_pair(split, folder, i, num_generated)[:2]),
    _mine(split),
  )
  return metrics_lib.merge_across_hosts(counts.update_all(pairs)).match()


def score(
  split: datasets.Split,
  folder: files.Path,
  num_generated: int,
  match: matching.Match | None,
) -> metrics_lib.Values:
  """What a split's files are worth, matched or as they are; on every host."""
  num_classes = _num_classes(split)

  def count(i: int) -> metrics.ImageNetS:
    found, label, name = _pair(split, folder, i, num_generated)
    if match is not None:
      found = match.apply(found)
    return metrics.count_image(found, label, name, num_classes)

  total = metrics.ImageNetS.empty(num_classes)
  for counted in threads.ordered_map(count, _mine(split)):
    total = total.merge(counted)
  return metrics_lib.merge_across_hosts(total).compute()


def draw_panel(
  split: datasets.Split,
  folder: files.Path,
  num_generated: int,
  match: matching.Match | None,
) -> np.ndarray:
  """Image, mask, label map and error of some images."""
  drawn = []
  for i in splits.evenly_spaced(len(split), context.NUM_PICTURES):
    found, label, _ = _pair(split, folder, i, num_generated)
    if match is not None:
      found = match.apply(found)
    image = records.decode_image(split.records[i]['image'])
    drawn.append(panels.Example(image, label, found))
  return panels.draw_panels(drawn, split.classes, split.palette)


def write_submission(
  split: datasets.Split,
  folder: files.Path,
  match: files.Path | None,
  about: SubmissionInfo,
) -> files.Path:
  """Packs a split's files, the matching and method.txt; from host 0.

  Args:
    split: whose label maps they are.
    folder: with <wnid>/<name>.png.
    match: match.json; None where nothing is matched.
    about: what is said of the method.

  Returns:
    The path of the zip, beside the folder.
  """
  path = folder.with_name(f'{folder.name}_submission.zip')
  if jax.process_index() != 0:
    return path
  values = dataclasses.astuple(about)
  lines = [f'{name}: {v}' for name, v in zip(_METHOD, values, strict=True)]
  with (
    files.atomic_file(path) as file,
    # PNGs are compressed already.
    zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive,
  ):
    for name in sorted(split.ids()):
      content = label_folders.label_path(folder, name).read_bytes()
      archive.writestr(f'{name}.png', content)
    if match is not None:
      archive.writestr('match.json', match.read_bytes())
    archive.writestr('method.txt', '\n'.join(lines) + '\n')
  return path


def log_scores(
  values: metrics_lib.Values, split: datasets.Split, name: str
) -> None:
  """Tells what was found of a split."""
  console.log(
    f'{name}: mIoU {values["miou"]:.4f}, boundary mIoU '
    f'{values["boundary_miou"]:.4f}, image accuracy '
    f'{values["image_accuracy"]:.4f}, F {values["f_beta"]:.4f} over '
    f'{len(split)} images'
  )


def _num_classes(split: datasets.Split) -> int:
  """Without 'other', which is class 0 of every data set here."""
  return len(split.classes) - 1


def _mine(split: datasets.Split) -> list[int]:
  """The images that this host counts."""
  return list(range(jax.process_index(), len(split), jax.process_count()))


def _pair(
  split: datasets.Split, folder: files.Path, i: int, num_generated: int
) -> tuple[Int[np.ndarray, 'H W'], Int[np.ndarray, 'H W'], str]:
  """Label map and mask of an image, and its name."""
  record = split.records[i]
  name = record['id'].decode()
  found = png_format.read(label_folders.label_path(folder, name), num_generated)
  return found, records.decode_label(record['label']), name


def resize_label_maps(
  grids: Iterator[tuple[np.ndarray, Mapping[str, Any]]],
) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
  """Labels of cells as label maps of the images, by the floor rule."""
  for labels, example in grids:
    size = tuple(example['size'].tolist())
    rounded = np.asarray(labels).astype(np.int16)
    yield short_side.resize_labels(rounded, size), example
