"""Runs the command line of studies, `segcore.study.cli`."""

import sys

from runtime import exit_status
from segcore.study import cli

if __name__ == '__main__':
  exit_status.exit_with_status(lambda: cli.run_study_command(sys.argv[1:]))
