"""Jobs from command lines, and combined exit statuses."""

import pytest

from launch import job as jobs
from runtime import errors


@pytest.mark.parametrize(
  ('command', 'message'),
  [
    ([], "expected -m MODULE and its flags after --, .* got ''$"),
    (['python', '-m', 'a'], "expected -m MODULE .* got 'python -m a'$"),
    (['-m', 'a', '--workdir=b'], '--workdir: expected before --, got it after'),
  ],
)
def test_malformed_commands_are_refused(command, message):
  with pytest.raises(errors.UserError, match=message):
    jobs.job_from_command(command, 'runs/a')


def test_the_same_command_has_the_same_name():
  command = ['-m', 'ddep.main', '--config=configs/a.py:x', 'b']
  job = jobs.job_from_command(command, 'runs/a')
  other = jobs.job_from_command([*command, '--more'], 'runs/a')
  assert jobs.job_from_command(command, 'runs/a') == job
  assert job.name != other.name
  assert job.name.startswith('a-')


@pytest.mark.parametrize(
  ('exit_codes', 'combined'),
  [
    ([0, 0], 0),
    ([0, 75], 75),
    ([75, 75], 75),
    ([75, 1], 1),
    ([0, 137], 137),
    ([1, 2], 2),
    ([0, None], 1),
    ([0, jobs.LOST], 75),
    ([jobs.LOST, 1], 1),
  ],
)
def test_combined_exit_codes(exit_codes, combined):
  by_worker = dict(zip('ab', exit_codes, strict=True))
  assert jobs.combine_worker_exit_codes(by_worker) == combined


def test_memory_is_kept_from_growing_unless_the_user_decides():
  command = ['-m', 'ddep.main']
  job = jobs.job_from_command(command, 'r', ['A=1'])
  assert job.environment == (('MALLOC_ARENA_MAX', '2'), ('A', '1'))
  job = jobs.job_from_command(command, 'r', ['MALLOC_ARENA_MAX=5'])
  assert job.environment == (('MALLOC_ARENA_MAX', '5'),)
