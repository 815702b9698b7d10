"""The exit status of a SLURM job."""

import subprocess

import pytest

from launch import job as jobs
from launch.backends import slurm_scripts


@pytest.mark.parametrize(
  'exit_codes',
  [
    (0, 0),
    (0, 75),
    (75, 1),
    (1, 2),
    (2, 75),
    (137, 0),
    (75, None),
    (0, None),
    (1, None),
    (2, None),
  ],
)
def test_the_batch_script_combines_exit_codes_as_the_launcher_does(
  tmp_path, exit_codes
):
  for i, code in enumerate(exit_codes):
    if code is not None:
      (tmp_path / f'exit.{i}').write_text(f'{code}\n')
  script = slurm_scripts.COMBINE_EXIT_CODES.format(last=len(exit_codes) - 1)
  printed = subprocess.run(
    ['bash', '-c', f'root={tmp_path}\n{script}echo "$result"'],
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  expected = {str(i): code for i, code in enumerate(exit_codes)}
  assert int(printed) == jobs.combine_worker_exit_codes(expected)
