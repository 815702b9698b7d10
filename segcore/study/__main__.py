"""Runs a study from the command line; see `segcore.study.runner`."""

import sys

from runtime import exit_status
from segcore.study import runner

if __name__ == '__main__':
  exit_status.run(lambda: runner.main(sys.argv[1:]))
