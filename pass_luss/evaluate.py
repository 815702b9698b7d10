"""Scores a folder of predictions in the PNG format of ImageNet-S.

  python -m pass_luss.evaluate --gt=ImageNetS50/validation-segmentation \
      --pred=found/val --num_classes=50 --match=found/match.json
  python -m pass_luss.evaluate --gt=… --pred=… --num_classes=50 \
      --rematch --write_match=match.json

Both folders hold SPLIT/WNID/NAME.png or WNID/NAME.png, at the same paths and at
the same sizes. Predictions are ids of classes, unless --match says which class
each of them is, or --rematch finds that out on these files first, by the
Hungarian method.

Prints a table and, as the last line, all of it as JSON, in percent. Exits with
status 2 and one line that begins with 'error: ' if something is to be mended.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn, TypeVar

import numpy as np

from pass_luss.benchmark import matching, metrics, png_format
from runtime import errors, exit_status, progress, threads
from segcore.eval import metrics as metrics_lib

INTERRUPTED = 75

_SHOWN = 3  # So many files are named in an error.
_WHOLES = (
  *('miou', 'miou_without_other', 'boundary_miou'),
  *('image_accuracy', 'f_beta'),
)
_BY_SIZE = ('miou', 'boundary_miou')
_HEADS = ('', 'all', *metrics.SIZES)

Result = TypeVar('Result')


@dataclasses.dataclass(frozen=True)
class Folders:
  """Label maps of the same images in two folders.

  Attributes:
    gt: folder of the ground truth.
    pred: folder of the predictions.
    names: paths of the files from either folder.
    num_classes: of the ground truth, without 'other'.
    num_generated: of the predictions, without 'other'.
    advice: what to do where a prediction has an id beyond.
  """

  gt: pathlib.Path
  pred: pathlib.Path
  names: tuple[str, ...]
  num_classes: int
  num_generated: int
  advice: str = ''

  @classmethod
  def find(
    cls,
    gt: pathlib.Path,
    pred: pathlib.Path,
    num_classes: int,
    num_generated: int,
    advice: str = '',
  ) -> 'Folders':
    """Lists both.

    Raises:
      UserError: a folder is missing or empty, or has what the other has not.
    """
    names = png_format.list_files(gt)
    predicted = png_format.list_files(pred)
    if not set(names) & set(predicted):
      raise errors.UserError(
        errors.one_line(
          f'{gt} and {pred} have no path in common ({names[0]} and '
          f'{predicted[0]}): paths below --gt and --pred have to agree, is one '
          'of the folders a level deeper?'
        )
      )
    problems = []
    for listed, others, there, absent in (
      (names, predicted, gt, pred),
      (predicted, names, pred, gt),
    ):
      lone = sorted(set(listed) - set(others))
      if lone:
        shown = ', '.join(lone[:_SHOWN]) + (', …' if lone[_SHOWN:] else '')
        problems.append(
          f'{len(lone):,} of {len(listed):,} files of {there} are missing in '
          f'{absent}: {shown}'
        )
    if problems:
      raise errors.UserError(
        errors.one_line(
          f'{"; ".join(problems)}; paths below --gt and --pred have to agree'
        )
      )
    return cls(gt, pred, tuple(names), num_classes, num_generated, advice)

  def each(
    self, work: Callable[[np.ndarray, np.ndarray, str], Result], what: str
  ) -> Iterator[Result]:
    """Does something with the prediction, label and name of each, in threads.

    Results come in the order of the names. A bar says what is being done.

    Raises:
      BadFile: a file cannot be used, or sizes differ.
    """
    results = threads.ordered_map(
      lambda name: work(*self._read(name), name), self.names
    )
    yield from progress.bar(results, desc=what, total=len(self.names))

  def _read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    label = png_format.read(self.gt / name, self.num_classes)
    prediction = png_format.read(self.pred / name, png_format.MAX_CLASSES)
    if ignored := np.count_nonzero(prediction < 0):
      raise errors.BadFile(
        self.pred / name,
        f'has id {png_format.IGNORED} (pixels: {ignored:,}), which is for '
        f'ground truth: expected predictions 0…{self.num_generated}, write 0 '
        "for 'other'",
      )
    if (beyond := prediction > self.num_generated).any():
      raise errors.BadFile(
        self.pred / name,
        f'has id {prediction.max()} (pixels out of range: '
        f'{np.count_nonzero(beyond):,}): expected 0…{self.num_generated}'
        f'{self.advice}',
      )
    if prediction.shape != label.shape:
      raise errors.BadFile(
        self.pred / name,
        f'is {_size(prediction)} pixels, its ground truth {_size(label)}: '
        'predict at the original size',
      )
    return prediction, label


def match_categories(folders: Folders) -> matching.Match:
  """The best matching on these files.

  Raises:
    BadFile: as `Folders.each`.
  """
  counts = matching.Cooccurrence.empty(
    folders.num_generated, folders.num_classes
  )
  pairs = folders.each(
    lambda prediction, label, _: matching.present_ids(prediction, label),
    'matching',
  )
  return counts.update_all(pairs).match()


def score(
  folders: Folders, match: matching.Match | None = None
) -> tuple[metrics.ImageNetS, int]:
  """Counts all images; returns the counts and the number of pixels.

  Raises:
    BadFile: as `Folders.each`, or the matching says nothing of an id.
  """

  def count(
    prediction: np.ndarray, label: np.ndarray, name: str
  ) -> tuple[metrics.ImageNetS, int]:
    if match is not None:
      try:
        prediction = match.apply(prediction)
      except ValueError as error:
        reason = f'{error}{folders.advice}'
        raise errors.BadFile(folders.pred / name, reason) from error
    return (
      metrics.count_image(prediction, label, name, folders.num_classes),
      label.size,
    )

  total, pixels = metrics.ImageNetS.empty(folders.num_classes), 0
  for counted, size in folders.each(count, 'scoring'):
    total, pixels = total.merge(counted), pixels + size
  return total, pixels


def to_json(values: metrics_lib.Values) -> Mapping[str, object]:
  """The values in percent, as the last line has them; NaN becomes None."""

  def percent(name: str) -> float | None:
    value = float(values[name])
    return None if math.isnan(value) else 100 * value

  return {
    **{name: percent(name) for name in _WHOLES},
    **{
      f'{name}_by_size': {
        size: percent(f'{name}_{size}') for size in metrics.SIZES
      }
      for name in _BY_SIZE
    },
  }


def table(found: Mapping[str, object]) -> str:
  """The values of `to_json` for people; several lines of text."""
  lines = [_HEADS]
  for name in _WHOLES:
    values = found[name], *found.get(f'{name}_by_size', {}).values()
    lines.append((name, *map(_shown, values)))
  return '\n'.join(
    f'{name:20}' + ''.join(f'{cell:>8}' for cell in cells)
    for name, *cells in lines
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  try:
    _run(_parser().parse_args(argv))
  except errors.UserError as error:
    print(f'error: {errors.one_line(str(error))}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted: nothing was scored', file=sys.stderr)
    return INTERRUPTED
  return 0


def _run(arguments: argparse.Namespace) -> None:
  num_classes, match = arguments.num_classes, None
  num_generated = arguments.num_generated
  if num_generated is None:
    num_generated = num_classes
  for flag, value in (
    ('num_classes', num_classes),
    ('num_generated', num_generated),
  ):
    if not 1 <= value <= png_format.MAX_CLASSES:
      raise errors.UserError(
        f'--{flag}={value}: expected 1 to {png_format.MAX_CLASSES}, without '
        "'other'"
      )
  if arguments.rematch and arguments.match:
    raise errors.UserError(
      '--rematch contradicts --match, which is a matching already: leave out '
      'one of them'
    )
  for flag in ('write_match', 'num_generated'):
    if getattr(arguments, flag) is not None and not arguments.rematch:
      raise errors.UserError(f'--{flag} is for --rematch only: add that')
  advice = '; is it of another number of classes?'
  if arguments.match:
    match = matching.Match.read(arguments.match, num_classes)
    num_generated = match.num_generated
    advice = (
      f'; the largest key of --match={arguments.match} is {num_generated}: add '
      "what is missing there, with 0 for 'other'"
    )
  elif arguments.rematch:
    advice = ': say by --num_generated how many ids there are'
  folders = Folders.find(
    *(arguments.gt, arguments.pred, num_classes, num_generated, advice)
  )
  if arguments.rematch:
    match = match_categories(folders)
    if arguments.write_match:
      match.write(arguments.write_match)
      print(f'the matching is in {arguments.write_match}')
  start = time.perf_counter()
  counted, pixels = score(folders, match)
  seconds = time.perf_counter() - start
  found = to_json(counted.compute())
  print(
    f'{counted.images:,} images, {pixels / 1e6:,.1f} megapixels in '
    f'{seconds:.1f} s: {pixels / 1e6 / seconds:.1f} megapixels/s'
  )
  absent = np.count_nonzero(counted.regions[0, 2, 1:] == 0)
  if absent:
    print(
      f'{absent} of {num_classes} classes occur in no ground truth, and count '
      '0: is --num_classes right?'
    )
  print(table(found))
  print(json.dumps(found, allow_nan=False))


def _size(array: np.ndarray) -> str:
  height, width = array.shape
  return f'{width}x{height}'


def _shown(value: float | None) -> str:
  return '-' if value is None else f'{value:.2f}'


class _Parser(argparse.ArgumentParser):
  """Says in one line what is wrong."""

  def error(self, message: str) -> NoReturn:
    raise errors.UserError(f'{message}; {self.prog} --help lists the flags')


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='python -m pass_luss.evaluate',
    description='Scores a folder of predictions as ImageNet-S does.',
    allow_abbrev=False,
  )
  parser.add_argument(
    '--gt',
    type=pathlib.Path,
    required=True,
    help='folder of the ground truth: SPLIT/WNID/NAME.png or WNID/NAME.png',
  )
  parser.add_argument(
    '--pred',
    type=pathlib.Path,
    required=True,
    help='folder of the predictions, likewise',
  )
  parser.add_argument(
    '--num_classes',
    type=int,
    required=True,
    help="classes of the ground truth without 'other': 50, 300 or 919",
  )
  parser.add_argument(
    '--match',
    type=pathlib.Path,
    help='match.json: the class of each predicted id',
  )
  parser.add_argument(
    '--rematch',
    action='store_true',
    help='find the best matching on these files first',
  )
  parser.add_argument(
    '--write_match', type=pathlib.Path, help='where to write it'
  )
  parser.add_argument(
    '--num_generated',
    type=int,
    help='with --rematch: number of predicted ids, if it is not that of the '
    'classes; those left over become other',
  )
  return parser


if __name__ == '__main__':
  exit_status.run(main)
