"""Retries, hung workers and failed deletions, with a backend in memory."""

import pathlib

import pytest

from launch import backends, shell, supervisor
from launch import job as jobs
from launch.backends import local


class FakeBackend(local.Local):
  """Two workers that end as planned.

  Attributes:
    runs: exit status of the workers in each run; None for one that hangs.
    deletions: problem of each deletion; '' for none.
    calls: names of the methods that were called.
  """

  def __init__(self, runs, deletions=()):
    super().__init__(jobs.job_from_command(['-m', 'a'], 'r'), shell.Shell())
    self.runs, self.deletions = list(runs), list(deletions)
    self.calls = []
    self.num_polls = 0

  def find(self):
    return None

  def create(self, commit, archive):
    self.calls.append('create')

  def install(self, archive):
    self.calls.append('install')

  def start(self):
    self.calls.append('start')
    self.num_polls = 0

  def poll(self):
    # A run is seen running at its first poll, and ended at the later ones.
    started = 'start' in self.calls
    if started:
      self.num_polls += 1
    codes = self.runs[self.calls.count('start') - 1]
    codes = codes if self.num_polls > 1 else (None, None)
    by_worker = {f'worker-{i}': code for i, code in enumerate(codes)}
    return backends.Report(by_worker, started)

  def failure_log(self):
    return ''

  def stop(self, force=False):
    self.calls.append('kill' if force else 'stop')
    return True

  def delete(self):
    self.calls.append('delete')
    return self.deletions.pop(0) if self.deletions else ''


def supervise(backend, **limits):
  limits = {'backoff': 0.0, 'poll': 0.0, 'grace': 0.0, **limits}
  return supervisor.Supervisor(
    backend,
    backend.run,
    supervisor.Limits(**limits),
    resolve_commit=lambda: 'commit',
    pack=lambda commit: pathlib.Path(commit),
  )()


def test_pauses_are_doubled_up_to_a_bound():
  limits = supervisor.Limits(backoff=1.0, backoff_max=5.0)
  assert [limits.pause(n) for n in (1, 2, 3, 4, 999)] == [1, 2, 4, 5, 5]


def test_status_75_restarts_the_job_on_the_same_machines():
  backend = FakeBackend([(75, 75), (0, 75), (0, 0)])
  assert supervise(backend) == 0
  assert backend.calls == [
    'create',
    'install',
    *['start'] * 3,
    'delete',
  ]


@pytest.mark.parametrize(('reset_after', 'code'), [(0.0, 0), (3600.0, 75)])
def test_retries_are_counted_anew_after_some_time(reset_after, code):
  backend = FakeBackend([(75, 75)] * 3 + [(0, 0)])
  assert supervise(backend, retries=1, reset_after=reset_after) == code
  assert backend.calls.count('start') == (4 if code == 0 else 2)


def test_a_hung_worker_is_killed_and_all_are_restarted(capfd):
  # The first notices that the other does not answer, and exits with 75.
  backend = FakeBackend([(75, None), (0, 0)])
  assert supervise(backend) == 0
  assert backend.calls[2:] == ['start', 'kill', 'start', 'delete']
  err = capfd.readouterr().err
  assert 'worker-0: 75; worker-1: killed' in err
  assert 'a worker hung and was killed: retry 1' in err


def test_the_other_workers_are_killed_after_a_failure(capfd):
  backend = FakeBackend([(1, None)])
  assert supervise(backend) == 1
  assert backend.calls[2:] == ['start', 'kill', 'delete']
  assert 'worker-0: 1; worker-1: killed' in capfd.readouterr().err


def test_a_failed_deletion_is_retried():
  backend = FakeBackend([(0, 0)], ['busy'] * 11)
  assert supervise(backend) == 0
  assert backend.calls.count('delete') == 12


def test_an_impossible_deletion_is_an_error(capfd):
  backend = FakeBackend([(0, 0)], ['busy'] * 12)
  assert supervise(backend) == 1
  assert backend.calls.count('delete') == 12
  last = capfd.readouterr().err.splitlines()[-1]
  assert 'MAY STILL COST MONEY' in last
