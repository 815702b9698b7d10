"""Scores a folder of predictions against a folder of ground truth.

folders = FolderPair.from_folders(gt, pred, num_classes=50, num_generated=50)
match = match_category_folders(folders)
metric, num_pixels = score_category_folders(folders, match)
values = benchmark_scores_to_json(metric.compute())
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from pass_luss.benchmark import matching, metrics, png_format
from runtime import errors, progress, threads
from segcore.eval import metrics as metrics_lib

_MAX_NAMED = 3  # Files that an error names.
_METRICS = (
  'miou',
  'miou_without_other',
  'boundary_miou',
  'image_accuracy',
  'f_beta',
)
_METRICS_BY_SIZE = ('miou', 'boundary_miou')
_COLUMNS = ('', 'all', *metrics.SIZES)

Result = TypeVar('Result')


@dataclasses.dataclass(frozen=True)
class FolderPair:
  """Label maps of the same images in two folders.

  Attributes:
    gt: folder of the ground truth.
    pred: folder of the predictions.
    files: files of the ground truth and of the prediction, by the name of the
      image.
    num_classes: number of classes of the ground truth, without 'other'.
    num_generated: number of categories of the predictions, without 'other'.
    advice: end of the error message where a prediction has a larger id.
  """

  gt: pathlib.Path
  pred: pathlib.Path
  files: Mapping[str, tuple[pathlib.Path, pathlib.Path]]
  num_classes: int
  num_generated: int
  advice: str = ''

  @classmethod
  def from_folders(
    cls,
    gt: pathlib.Path,
    pred: pathlib.Path,
    num_classes: int,
    num_generated: int,
    advice: str = '',
  ) -> 'FolderPair':
    """Lists the files of two folders, which must have the same paths.

    Args:
      gt: folder of the ground truth.
      pred: folder of the predictions.
      num_classes: number of classes of the ground truth, without 'other'.
      num_generated: number of categories of the predictions, without 'other'.
      advice: end of the error message where a prediction has a larger id.

    Raises:
      UserError: a folder is missing or empty, or a file is in one folder only.
    """
    names = png_format.find_imagenet_s_pngs(gt)
    predicted = png_format.find_imagenet_s_pngs(pred)
    if not names.keys() & predicted.keys():
      raise errors.UserError(
        errors.format_on_one_line(
          f'{gt} and {pred}: expected the same paths in both, got '
          f'{next(iter(names))} and {next(iter(predicted))}: is one of the '
          'folders a level deeper?'
        )
      )
    problems = []
    for listed, others, folder, other_folder in (
      (names, predicted, gt, pred),
      (predicted, names, pred, gt),
    ):
      missing = sorted(set(listed) - set(others))
      if missing:
        named = ', '.join(missing[:_MAX_NAMED])
        more = ', …' if len(missing) > _MAX_NAMED else ''
        problems.append(
          f'{len(missing):,} of {len(listed):,} files of {folder} are missing '
          f'in {other_folder}: {named}{more}'
        )
    if problems:
      raise errors.UserError(
        errors.format_on_one_line(
          f'{"; ".join(problems)}; expected the same paths below both folders'
        )
      )
    pairs = {name: (path, predicted[name]) for name, path in names.items()}
    return cls(gt, pred, pairs, num_classes, num_generated, advice)

  def map(
    self,
    function: Callable[[np.ndarray, np.ndarray, str], Result],
    description: str,
  ) -> Iterator[Result]:
    """Yields function(prediction, label, name) of each image, in order.

    The function runs in threads, and a progress bar is shown.

    Raises:
      BadFile: a file cannot be used, or the sizes of two differ.
    """
    results = threads.map_in_threads(
      lambda name: function(*self._read(name), name), self.files
    )
    yield from progress.progress_bar(
      results, desc=description, total=len(self.files)
    )

  def _read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the prediction and the label of an image, and checks them."""
    label_path, path = self.files[name]
    label = png_format.read_imagenet_s_png(label_path, self.num_classes)
    # All ids are read, so that the message below can give advice.
    prediction = png_format.read_imagenet_s_png(path, png_format.MAX_CLASSES)
    if ignored := np.count_nonzero(prediction < 0):
      raise errors.BadFile(
        path,
        f'expected ids 0…{self.num_generated} in a prediction, got '
        f'{png_format.IGNORED}, which ground truth ignores (pixels: '
        f"{ignored:,}): write 0 for 'other'",
      )
    if (too_large := prediction > self.num_generated).any():
      raise errors.BadFile(
        path,
        f'expected ids 0…{self.num_generated}, got {prediction.max()} (pixels '
        f'out of range: {np.count_nonzero(too_large):,}){self.advice}',
      )
    if prediction.shape != label.shape:
      raise errors.BadFile(
        path,
        f'expected the size of its ground truth, {_size(label)}, got '
        f'{_size(prediction)}: predict at the original size',
      )
    return prediction, label


def match_category_folders(folders: FolderPair) -> matching.Match:
  """Matches generated categories with classes (Hungarian method).

  Raises:
    BadFile: as `FolderPair.map`.
  """
  counts = matching.Cooccurrence.empty(
    folders.num_generated, folders.num_classes
  )
  pairs = folders.map(
    lambda prediction, label, _: matching.present_category_ids(
      prediction, label
    ),
    'matching',
  )
  return counts.update_all(pairs).match()


def score_category_folders(
  folders: FolderPair, match: matching.Match | None = None
) -> tuple[metrics.ImageNetS, int]:
  """Counts all images; returns the metric and the number of pixels.

  Args:
    folders: predictions and ground truth.
    match: mapping from predicted categories to classes; None where predictions
      are classes.

  Raises:
    BadFile: as `FolderPair.map`, or a category has no class in the matching.
  """

  def count(
    prediction: np.ndarray, label: np.ndarray, name: str
  ) -> tuple[metrics.ImageNetS, int]:
    if match is not None:
      try:
        prediction = match.apply(prediction)
      except ValueError as error:
        reason = f'{error}{folders.advice}'
        raise errors.BadFile(folders.files[name][1], reason) from error
    counts = metrics.count_imagenet_s_image(
      prediction, label, name, folders.num_classes
    )
    return counts, label.size

  total, num_pixels = metrics.ImageNetS.empty(folders.num_classes), 0
  for counts, size in folders.map(count, 'scoring'):
    total, num_pixels = total.merge(counts), num_pixels + size
  return total, num_pixels


def benchmark_scores_to_json(
  values: metrics_lib.Values,
) -> Mapping[str, object]:
  """Converts values of `metrics.ImageNetS` to percent; NaN becomes None."""

  def percent(name: str) -> float | None:
    value = float(values[name])
    return None if math.isnan(value) else 100 * value

  return {
    **{name: percent(name) for name in _METRICS},
    **{
      f'{name}_by_size': {
        size: percent(f'{name}_{size}') for size in metrics.SIZES
      }
      for name in _METRICS_BY_SIZE
    },
  }


def format_benchmark_table(values: Mapping[str, object]) -> str:
  """Formats the result of `benchmark_scores_to_json` as lines of a table."""
  lines = [_COLUMNS]
  for name in _METRICS:
    row = values[name], *values.get(f'{name}_by_size', {}).values()
    lines.append((name, *map(_cell, row)))
  return '\n'.join(
    f'{name:20}' + ''.join(f'{cell:>8}' for cell in cells)
    for name, *cells in lines
  )


def _size(array: np.ndarray) -> str:
  height, width = array.shape
  return f'{width}x{height}'


def _cell(value: float | None) -> str:
  return '-' if value is None else f'{value:.2f}'
