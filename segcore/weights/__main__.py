"""Describes weight files: `python -m segcore.weights FILE…`.

Prints what each file holds, its encoder, what it lacks, and how to use it; with
--torchvision=FILE or --detectron2=FILE writes the encoder of one as a state
dict of that library.
"""

import argparse
import sys
from collections.abc import Sequence

from runtime import errors, exit_status, files
from segcore.weights import describe, export_torch


def describe_weight_files(argv: Sequence[str]) -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m segcore.weights', description=__doc__
  )
  parser.add_argument('paths', nargs='+', metavar='FILE')
  for library, suffixes in export_torch.SUFFIXES.items():
    parser.add_argument(
      f'--{library}',
      metavar='FILE',
      help=f'{" or ".join(suffixes)} that the encoder is written to',
    )
  arguments, status = parser.parse_args(argv), 0
  targets = {
    library: target
    for library in export_torch.SUFFIXES
    if (target := getattr(arguments, library)) is not None
  }
  if targets and len(arguments.paths) > 1:
    parser.error(f'--{min(targets)}: expected one FILE to write the encoder of')
  for text in arguments.paths:
    try:
      path = files.parse_file_path(text, 'FILE')
      for library, target in targets.items():
        _export(path, target, library)
      if not targets:
        print('\n'.join(describe.describe_weights(path)))
    except errors.UserError as error:
      errors.print_user_error(error)
      status = exit_status.USER_ERROR
  return status


def _export(path: files.Path, text: str, library: str) -> None:
  """Writes the encoder of a run or a file for a library, and prints so."""
  target = files.parse_file_path(text, f'--{library}')
  count = export_torch.write_encoder(path, target, library)
  expects = export_torch.INPUT
  print(
    f'{target}: {count} arrays with the names of {library}; the network '
    f'expects {expects["channels"]} in {expects["range"]}, minus '
    f'({expects["mean"]}), divided by ({expects["std"]})'
  )


if __name__ == '__main__':
  exit_status.exit_with_status(lambda: describe_weight_files(sys.argv[1:]))
