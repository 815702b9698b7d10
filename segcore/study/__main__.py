"""Runs the command line of studies, `segcore.study.cli`."""

import sys

from runtime import exit_status
from segcore.study import cli

if __name__ == '__main__':
  exit_status.run(lambda: cli.main(sys.argv[1:]))
