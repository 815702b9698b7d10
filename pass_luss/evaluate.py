"""Command line that scores a folder of predictions as ImageNet-S does.

  python -m pass_luss.evaluate --gt=ImageNetS50/validation-segmentation \
      --pred=run/segment/val --num_classes=50 --match=run/segment/match.json
  python -m pass_luss.evaluate --gt=… --pred=… --num_classes=50 \
      --rematch --write_match=match.json

Both folders hold SPLIT/WNID/NAME.png or WNID/NAME.png, with the same paths and
sizes. Predictions are classes, unless --match gives the class of each predicted
id, or --rematch computes that from these files by the Hungarian method.

Prints a table and, as the last line, the same values as JSON, in percent. Exits
with status 2 and a line that begins with 'error: ' on a user error.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from pass_luss.benchmark import evaluate, matching, png_format
from runtime import errors, exit_status

INTERRUPTED = 75


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  try:
    _run(_parser().parse_args(argv))
  except errors.UserError as error:
    errors.print_user_error(errors.format_on_one_line(str(error)))
    return exit_status.USER_ERROR
  except KeyboardInterrupt:
    print('interrupted: nothing was scored', file=sys.stderr)
    return INTERRUPTED
  return 0


def _run(arguments: argparse.Namespace) -> None:
  """Matches, scores and prints."""
  _check(arguments)
  num_classes, match = arguments.num_classes, None
  num_generated = arguments.num_generated or num_classes
  advice = ': check --num_classes'
  if arguments.match:
    match = matching.Match.read(arguments.match, num_classes)
    num_generated = match.num_generated
    advice = (
      f': the largest key of --match={arguments.match} is {num_generated}; add '
      "the missing ids to it, with 0 for 'other'"
    )
  elif arguments.rematch:
    advice = ': set --num_generated to the number of predicted ids'
  folders = evaluate.FolderPair.from_folders(
    arguments.gt, arguments.pred, num_classes, num_generated, advice
  )
  if arguments.rematch:
    match = evaluate.match_category_folders(folders)
    if arguments.write_match:
      match.write(arguments.write_match)
      print(f'wrote the matching to {arguments.write_match}')
  start = time.perf_counter()
  metric, num_pixels = evaluate.score_category_folders(folders, match)
  seconds = time.perf_counter() - start
  megapixels = num_pixels / 1e6
  print(
    f'{metric.images:,} images, {megapixels:,.1f} megapixels in {seconds:.1f} '
    f's: {megapixels / seconds:.1f} megapixels/s'
  )
  absent = np.count_nonzero(metric.regions[0, 2, 1:] == 0)
  if absent:
    print(
      f'{absent} of {num_classes} classes are absent from the ground truth and '
      'count as 0: check --num_classes'
    )
  values = evaluate.benchmark_scores_to_json(metric.compute())
  print(evaluate.format_benchmark_table(values))
  print(json.dumps(values, allow_nan=False))


def _check(arguments: argparse.Namespace) -> None:
  """Raises UserError if a flag is out of range or contradicts another one."""
  for flag, value in (
    ('num_classes', arguments.num_classes),
    ('num_generated', arguments.num_generated),
  ):
    if value is not None and not 1 <= value <= png_format.MAX_CLASSES:
      raise errors.UserError(
        f"--{flag}: expected 1 to {png_format.MAX_CLASSES}, without 'other', "
        f'got {value}'
      )
  if arguments.rematch and arguments.match:
    raise errors.UserError(
      'expected one of --rematch and --match, got both: remove one of them'
    )
  for flag, value in (
    ('write_match', arguments.write_match),
    ('num_generated', arguments.num_generated),
  ):
    if value is not None and not arguments.rematch:
      raise errors.UserError(
        f'--{flag}: expected together with --rematch: add that'
      )


class _Parser(argparse.ArgumentParser):
  """Parser that raises UserError instead of printing the usage."""

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
    help='folder of the predictions, with the same paths',
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
    help='match predicted ids with classes on these files first',
  )
  parser.add_argument(
    '--write_match', type=pathlib.Path, help='with --rematch: path to write to'
  )
  parser.add_argument(
    '--num_generated',
    type=int,
    help='with --rematch: number of predicted ids, if not --num_classes; '
    "surplus ids become 'other'",
  )
  return parser


if __name__ == '__main__':
  exit_status.exit_with_status(main)
