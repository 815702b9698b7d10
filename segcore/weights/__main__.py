"""Describes weight files: `python -m segcore.weights FILE…`.

Prints what each file holds, its encoder, what it lacks, and how to use it; with
--torchvision=FILE writes the encoder of one as a state dict of torchvision.
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
  parser.add_argument('--torchvision', metavar='FILE')
  arguments, status = parser.parse_args(argv), 0
  if arguments.torchvision is not None and len(arguments.paths) > 1:
    parser.error('--torchvision: expected one FILE to write the encoder of')
  for text in arguments.paths:
    try:
      path = files.parse_file_path(text, 'FILE')
      if arguments.torchvision is not None:
        _export(path, arguments.torchvision)
      else:
        print('\n'.join(describe.describe_weights(path)))
    except errors.UserError as error:
      errors.print_user_error(error)
      status = exit_status.USER_ERROR
  return status


def _export(path: files.Path, text: str) -> None:
  """Writes the encoder of a run or a file as torchvision's, and prints so."""
  target = files.parse_file_path(text, '--torchvision')
  count = export_torch.write_torchvision_encoder(path, target)
  print(f'{target}: {count} arrays with the names of torchvision.models.resnet')


if __name__ == '__main__':
  exit_status.exit_with_status(lambda: describe_weight_files(sys.argv[1:]))
