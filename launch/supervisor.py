"""Runs one job from requesting machines to deleting them, whatever happens.

What an earlier command created is attached to, or else machines are requested;
the code is shipped and installed; the job is started, detached, and polled.
Status 75 of the workers restarts it, preemption replaces the machines, both
after a pause that grows. At the end all that was created is deleted, unless it
is to be kept.
"""

import dataclasses
import math
import pathlib
import signal
import time
from collections.abc import Callable

from launch import backends, console, shell
from launch import job as jobs
from runtime import errors, exit_status

# Attempts at a deletion, and the longest pause between two, in seconds:
# machines that are being created, repaired or suspended may refuse it for
# minutes.
_MAX_DELETIONS = 12
_MAX_DELETION_PAUSE = 60.0
# Longest pause between two polls while the workers save, in seconds.
_SAVING_POLL = 2.0


@dataclasses.dataclass(frozen=True)
class Limits:
  """Holds the numbers of retries and the waiting times.

  Attributes:
    retries: number of restarts.
    backoff: seconds before the first restart; doubled for each further one.
    backoff_max: upper bound of these seconds.
    poll: seconds between two polls.
    grace: seconds that workers have for saving after they were asked to stop,
      or after another one has ended.
    keep: whether nothing is deleted at the end.
    reset_after: seconds of running after which retries are counted anew.
  """

  retries: int = 50
  backoff: float = 30.0
  backoff_max: float = 10 * 60.0
  poll: float = 15.0
  grace: float = 120.0
  keep: bool = False
  reset_after: float = 60 * 60.0

  def pause(self, attempt: int) -> float:
    """Returns the seconds before a restart, counted from 1.

    >>> [Limits().pause(n) for n in (1, 2, 9)]
    [30.0, 60.0, 600.0]
    """
    return min(self.backoff * 2 ** min(attempt - 1, 30), self.backoff_max)


@dataclasses.dataclass
class Supervisor:
  """Runs one job in one place.

  Attributes:
    backend: place in which the job runs.
    run: shell that runs commands and counts requests to stop.
    limits: numbers of retries and waiting times.
    resolve_commit: function that returns the hash of the commit to ship; called
      only when needed.
    pack: function that writes the archive of a commit, if it is missing, and
      returns its path.
    is_commit_named: whether the user named the commit.
  """

  backend: backends.Backend
  run: shell.Shell
  limits: Limits
  resolve_commit: Callable[[], str]
  pack: Callable[[str], pathlib.Path]
  is_commit_named: bool = False
  _commit: str = ''
  _exists: bool = False
  _is_running: bool = False
  _is_restart: bool = False
  _hung: bool = False
  _start_time: float = math.inf
  _outages: console.OutageNotifier = dataclasses.field(
    default_factory=console.OutageNotifier
  )

  def __call__(self) -> int:
    """Runs the job to its end; returns its exit status.

    Raises:
      UserError: the user has to correct something; all is deleted before.
    """
    code = exit_status.FAILURE
    try:
      code = self._run_with_retries()
    except shell.Interrupted:
      is_sigint = self.run.last_signal == signal.SIGINT
      code = exit_status.INTERRUPTED if is_sigint else exit_status.PREEMPTED
      if self._is_running and not self.limits.keep:
        _let_workers_save(self.backend, self.run, self.limits, self._poll)
    except _StartTimeout as timeout:
      console.print_launcher_message(
        f'{timeout}: given up; run the same command to retry'
      )
      code = exit_status.PREEMPTED
    finally:
      code = self._clean_up(code)
    return code

  def _run_with_retries(self) -> int:
    existing = self.backend.find()
    if existing:
      self._attach(existing)
    else:
      self._commit = self.resolve_commit()
    attempt = 0
    while True:
      self._start_time = math.inf
      try:
        if not self._exists:
          self._create()
        _wait_until_ready(self.backend, self.run, self.limits.poll)
        code = self._run_once()
        if code != exit_status.PREEMPTED or self.backend.restarts_itself:
          return code
        reason = (
          'a worker hung and was killed'
          if self._hung
          else 'saved and interrupted'
        )
      except backends.NoCapacityError as refusal:
        reason = f'no capacity at present ({refusal})'
      except backends.JobDeletedError as error:
        name = self.backend.job.name
        console.print_launcher_message(
          f'{name} was deleted by another command ({error})'
        )
        self._is_running = False
        return exit_status.FAILURE
      except backends.MachinesLostError as error:
        reason = f'the machines are lost ({error})'
        self._is_running = False
        if not self._delete():
          console.print_launcher_message(reason)
          return exit_status.FAILURE
      if time.monotonic() - self._start_time >= self.limits.reset_after:
        attempt = 0
      attempt += 1
      if attempt > self.limits.retries:
        console.print_launcher_message(
          f'{reason}; no retries left: run the same command to go on'
        )
        return exit_status.PREEMPTED
      pause = self.limits.pause(attempt)
      console.print_launcher_message(
        f'{reason}: retry {attempt} of {self.limits.retries} in {pause:g} s'
      )
      self.run.sleep(pause)

  def _attach(self, existing: backends.Existing) -> None:
    """Takes over what an earlier command created.

    Raises:
      UserError: the name belongs to another job, commit or kind of machines.
    """
    job = self.backend.job
    difference = ''
    if existing.digest != job.digest:
      difference = 'for another command or other machines'
    elif self.is_commit_named and self.resolve_commit() != existing.commit:
      difference = f'with commit {existing.commit}'
    if difference:
      raise errors.UserError(
        f'--name: {job.name} exists already, {difference}; choose another '
        'name, or delete it with --delete'
      )
    self._exists, self._commit = True, existing.commit
    console.print_launcher_message(
      f'attached to {job.name} with commit {existing.commit}'
    )
    if not self.limits.keep:
      console.print_launcher_message(
        'Ctrl-C stops and deletes it; to follow it only, add --keep'
      )

  def _create(self) -> None:
    """Requests machines, or submits the job."""
    job = self.backend.job
    console.print_launcher_message(f'{job.name}: commit {self._commit}')
    archive = self.pack(self._commit)
    # From here on something may exist, whatever the answer is.
    self._exists = True
    try:
      self.backend.create(self._commit, archive)
    except (backends.NoCapacityError, errors.UserError):
      existing = self.backend.find()
      self._exists = existing is not None and existing.digest == job.digest
      raise
    self._is_restart = False

  def _run_once(self) -> int:
    """Runs the job once, or follows it if it runs already."""
    while (report := self._poll()).started is None:
      self.run.sleep(self.limits.poll)
    if not report.started:
      console.print_launcher_message(f'installing commit {self._commit}')
      self.backend.install(self.pack(self._commit))
    if not report.started or self._is_restart:
      self.backend.start()
      console.print_launcher_message(
        'started; it continues if this command is killed'
      )
    console.print_job_log(report.log)
    self._is_running, self._is_restart = True, True
    self._start_time = time.monotonic()
    code = self._wait_for_end()
    self._is_running = False
    return code

  def _poll(self) -> backends.Report:
    report = self.backend.poll()
    self._outages.record_poll(report.outage)
    return report

  def _wait_for_end(self) -> int:
    """Polls the job until it ends; returns its exit status.

    Raises:
      MachinesLostError: the machines were taken away.
      JobDeletedError: another command deleted them.
    """
    first_end = None
    while True:
      report = self._poll()
      console.print_job_log(report.log)
      has_scheduler = self.backend.restarts_itself
      code = _exit_code(report, has_scheduler)
      has_ended = any(code is not None for code in report.exit_codes.values())
      if code is None and has_ended and not has_scheduler:
        first_end = first_end or time.monotonic()
        if time.monotonic() - first_end > self.limits.grace:
          console.print_launcher_message(
            'one worker has ended; killing the others'
          )
          self.backend.stop(force=True)
          code = jobs.combine_worker_exit_codes(report.exit_codes)
      if code is not None:
        return self._handle_end(report, code)
      self.run.sleep(self.limits.poll)

  def _handle_end(self, report: backends.Report, code: int) -> int:
    """Shows how the workers ended; returns the exit status of the job."""
    shown = jobs.format_worker_exit_codes(report.exit_codes) or code
    console.print_launcher_message(f'exit status by worker: {shown}')
    is_interrupted = code == exit_status.PREEMPTED
    self._hung = is_interrupted and None in report.exit_codes.values()
    if self._hung:
      console.print_job_log(self.backend.failure_log())
    if code == exit_status.SUCCESS or is_interrupted:
      return code
    log = self.backend.failure_log()
    if not self.backend.restarts_itself and code != exit_status.USER_ERROR:
      # Workers fail when they lose another one, before the API reports the
      # preemption that is the reason.
      for _ in range(2):
        waiting = self.backend.waiting_for()
        if waiting and not waiting.startswith(backends.NO_ANSWER):
          raise backends.MachinesLostError(waiting)
        self.run.sleep(self.limits.poll)
    console.print_job_log(log)
    return code

  def _clean_up(self, code: int) -> int:
    """Deletes what was created, unless it is to be kept."""
    if not self._exists:
      return code
    if self.limits.keep:
      self.backend.detach()
      console.print_launcher_message(
        f'{self.backend.job.name} is kept and may cost money: the same command '
        'attaches to it, with --delete it is deleted'
      )
      return code
    return code if self._delete() else code or exit_status.FAILURE

  def _delete(self) -> bool:
    self._exists = not delete_job_with_retries(
      self.backend, self.run, self.limits
    )
    return not self._exists


def _let_workers_save(
  backend: backends.Backend,
  run: shell.Shell,
  limits: Limits,
  poll: Callable[[], backends.Report],
) -> None:
  """Lets the workers save, until another request to stop or the limit.

  Args:
    backend: place in which the job runs.
    run: shell that counts requests to stop.
    limits: waiting times.
    poll: function that returns the state of the job.
  """
  requests = run.stop_requests
  end = time.monotonic() + limits.grace
  with run.deferring_stop():
    try:
      if not backend.stop():
        console.print_launcher_message(
          'the workers may save while they are deleted; Ctrl-C once more '
          'kills them'
        )
        return
      console.print_launcher_message(
        'the workers may save; Ctrl-C once more kills them'
      )
      while time.monotonic() < end and run.stop_requests == requests:
        report = poll()
        console.print_job_log(report.log)
        if _exit_code(report, backend.restarts_itself) is not None:
          codes = jobs.format_worker_exit_codes(report.exit_codes)
          console.print_launcher_message(f'exit status by worker: {codes}')
          return
        run.sleep(min(limits.poll, _SAVING_POLL))
      backend.stop(force=True)
    except (
      backends.MachinesLostError,
      backends.JobDeletedError,
      errors.UserError,
    ) as error:
      console.print_launcher_message(f'the workers could not save: {error}')


def _wait_until_ready(
  backend: backends.Backend, run: shell.Shell, poll: float
) -> None:
  """Waits until the job can be started or polled.

  Args:
    backend: place in which the job runs.
    run: shell, whose sleep ends when the user asks to stop.
    poll: seconds between two polls.

  Raises:
    _StartTimeout: the wait took longer than the backend allows.
  """
  start, shown = time.monotonic(), ''
  while waiting := backend.waiting_for():
    if waiting != shown:
      console.print_launcher_message(f'waiting: {waiting}')
      shown = waiting
    limit = backend.wait_seconds
    if limit and time.monotonic() - start > limit:
      raise _StartTimeout(f'still {waiting} after {limit:g} s')
    run.sleep(poll)


def delete_job_with_retries(
  backend: backends.Backend, run: shell.Shell, limits: Limits
) -> bool:
  """Deletes everything of a job, and retries; returns whether that worked.

  Requests to stop are deferred until the end.

  Args:
    backend: place in which the job runs.
    run: shell that counts requests to stop.
    limits: waiting times between retries.
  """
  name = backend.job.name
  with run.deferring_stop():
    shown = ''
    for attempt in range(1, _MAX_DELETIONS + 1):
      problem = backend.delete()
      if not problem:
        console.print_launcher_message(f'deleted: {name}')
        return True
      if problem != shown:
        console.print_launcher_message(
          f'deleting {name} failed and is retried: {problem}'
        )
        shown = problem
      if attempt < _MAX_DELETIONS:
        run.sleep(min(limits.pause(attempt), _MAX_DELETION_PAUSE))
  console.print_launcher_message(
    f'{name} MAY STILL COST MONEY: run the same command with --delete'
  )
  return False


class _StartTimeout(Exception):
  """The job could not start within the limit; a later attempt may succeed."""


def _exit_code(report: backends.Report, has_scheduler: bool) -> int | None:
  """Returns the exit status of a job, None while it has not ended.

  Args:
    report: the state of the job.
    has_scheduler: whether a scheduler decides when it has ended, and may
      restart it.
  """
  if report.final_code is not None or has_scheduler:
    return report.final_code
  if not report.exit_codes or None in report.exit_codes.values():
    return None
  return jobs.combine_worker_exit_codes(report.exit_codes)
