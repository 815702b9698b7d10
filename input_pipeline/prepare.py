"""Prepares a data set, after an audit of its files.

  python -m input_pipeline.prepare shapes/scenes
  python -m input_pipeline.prepare camvid --source=~/camvid
  python -m input_pipeline.prepare image_folder --source=~/photos
  python -m input_pipeline.prepare image_mask_folder --source=~/roads \
      --images=images --masks=masks --classes=classes.txt --ignore=255

Prints what the audit found and where the records are. Exits with status 2 and
one line that begins with 'error: ' if something is to be mended first.
"""

import argparse
import sys
from collections.abc import Sequence

from absl import logging

from input_pipeline import audit, datasets, errors


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  arguments = vars(_parser().parse_args(argv))
  check = arguments.pop('check')
  data_dir = arguments.pop('data_dir')
  # TFDS tells of each of its steps.
  logging.set_verbosity(logging.ERROR)
  try:
    options = datasets.Options(**arguments)
    if check:
      _check(options, data_dir)
    else:
      builder = datasets.prepare(options, data_dir)
      print(f'records are in {builder.data_dir}')
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def _check(options: datasets.Options, data_dir: str) -> None:
  """Audits the files and leaves it at that."""
  logging.set_verbosity(logging.ERROR)  # TFDS tells of each of its steps.
  found = datasets.builder(options, data_dir).audit()
  print('nothing to check: no files' if found is None else found.report())


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m input_pipeline.prepare',
    description='Prepares a data set, after an audit of its files.',
    allow_abbrev=False,
  )
  parser.add_argument(
    'name',
    help='shapes/CONFIG, camvid, image_folder or image_mask_folder',
  )
  parser.add_argument('--source', default='', help='folder of its files')
  parser.add_argument('--data_dir', default='', help='where records are kept')
  parser.add_argument(
    '--images',
    default='',
    help='folder of the images in the source; {split} stands for each split',
  )
  parser.add_argument(
    '--masks', default='', help='folder of the masks in the source, likewise'
  )
  parser.add_argument(
    '--classes',
    default='',
    help='file in the source, a class a line: NAME, NAME R,G,B or NAME #rrggbb',
  )
  parser.add_argument(
    '--ignore',
    default='',
    help='value or colour of pixels without a class: 255 or 255,255,255',
  )
  parser.add_argument(
    '--val_fraction',
    default=0.0,
    type=float,
    help='part of the images that becomes the split val',
  )
  parser.add_argument('--split_seed', default=0, type=int, help='chooses which')
  parser.add_argument(
    '--on_bad_example',
    default='error',
    choices=audit.ON_BAD_EXAMPLE,
    help='refuse all for one bad file, or leave it out',
  )
  parser.add_argument(
    '--check', action='store_true', help='audit only, prepare nothing'
  )
  return parser


if __name__ == '__main__':
  sys.exit(main())
