"""Describes weight files: `python -m segcore.weights FILE…`.

Prints what each file holds, its encoder, what it lacks, and how to use it.
"""

import argparse
import sys
from collections.abc import Sequence

from runtime import errors, exit_status, files
from segcore.weights import describe


def describe_weight_files(argv: Sequence[str]) -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m segcore.weights', description=__doc__
  )
  parser.add_argument('paths', nargs='+', metavar='FILE')
  status = 0
  for text in parser.parse_args(argv).paths:
    try:
      path = files.parse_file_path(text, 'FILE')
      print('\n'.join(describe.describe_weights(path)))
    except errors.UserError as error:
      errors.print_user_error(error)
      status = exit_status.USER_ERROR
  return status


if __name__ == '__main__':
  exit_status.exit_with_status(lambda: describe_weight_files(sys.argv[1:]))
