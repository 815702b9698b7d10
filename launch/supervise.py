"""One job from asking for machines to deleting them, with all that may happen.

The order: what an earlier call has made is found again, or machines are asked
for; code is shipped and installed; the job is started, detached, and watched.
Status 75 of the workers starts it again, preemption makes new machines, both
after a pause that grows. Whatever happens, what was made is deleted at the end,
unless it is to be kept.
"""

import dataclasses
import math
import pathlib
import signal
import sys
import time
from collections.abc import Callable

from launch import backends, shell
from launch import job as jobs
from runtime import errors


@dataclasses.dataclass(frozen=True)
class Limits:
  """How patient to be.

  Attributes:
    retries: how often a job is started again.
    backoff: seconds before the first time; doubled each time.
    backoff_max: at most.
    poll: seconds between two looks.
    grace: seconds in which workers may save after they were asked to stop, or
      after another one has ended.
    keep: leave everything there at the end.
    settled: seconds that a job has run after which retries count anew.
  """

  retries: int = 50
  backoff: float = 30.0
  backoff_max: float = 600.0
  poll: float = 15.0
  grace: float = 120.0
  keep: bool = False
  settled: float = 3600.0

  def pause(self, attempt: int) -> float:
    """Seconds to wait before the n-th time, from 1.

    >>> [Limits().pause(n) for n in (1, 2, 9)]
    [30.0, 60.0, 600.0]
    """
    return min(self.backoff * 2 ** min(attempt - 1, 30), self.backoff_max)


# Looks without an answer after which people are told, and seconds until they
# are told again.
_SILENT_LOOKS = 3
_SILENT_SECONDS = 600.0
# How often deleting is tried, and seconds between two times at most: what is
# just being made, repaired or suspended may refuse it for minutes.
_DELETIONS = 12
_DELETION_PAUSE = 60.0


def say(text: str) -> None:
  """Tells people, apart from what the job prints."""
  print(f'launch: {text}', file=sys.stderr, flush=True)


@dataclasses.dataclass
class _Silence:
  """Tells people that nobody answers, once it is no accident."""

  _looks: int = 0
  _since: str = ''
  _told: float = 0.0

  def see(self, why: str) -> None:
    """Takes notice of a look.

    Args:
      why: nobody answered; '' if somebody did.
    """
    if not why:
      self._looks = 0
      return
    now = time.monotonic()
    self._looks += 1
    if self._looks == 1:
      self._since, self._told = time.strftime('%H:%M:%S'), -math.inf
    if self._looks >= _SILENT_LOOKS and now - self._told >= _SILENT_SECONDS:
      say(f'not reached since {self._since}: {why}')
      self._told = now


@dataclasses.dataclass
class Supervisor:
  """Runs one job in one place.

  Attributes:
    backend: the place.
    run: runs commands; knows when somebody asks to stop.
    limits: how patient to be.
    commit: the code to ship; asked only when something is made.
    archive: writes the archive of a commit, if it is not there.
    named: whether somebody named the commit.
  """

  backend: backends.Backend
  run: shell.Shell
  limits: Limits
  commit: Callable[[], str]
  archive: Callable[[str], pathlib.Path]
  named: bool = False
  _commit: str = ''
  _made: bool = False
  _running: bool = False
  _again: bool = False
  _hung: bool = False
  _began: float = math.inf
  _silence: _Silence = dataclasses.field(default_factory=_Silence)

  def __call__(self) -> int:
    """Runs the job to its end; returns its exit status.

    Raises:
      UserError: something the user can mend; what was made is deleted.
    """
    code = jobs.FAILED
    try:
      code = self._supervise()
    except shell.Interrupted:
      code = 130 if self.run.signal == signal.SIGINT else jobs.PREEMPTED
      self._let_save()
    except _TimedOut as late:
      say(f'{late}: given up; the same command tries again')
      code = jobs.PREEMPTED
    finally:
      code = self._end(code)
    return code

  def _supervise(self) -> int:
    found = self.backend.find()
    if found:
      self._attach(found)
    else:
      self._commit = self.commit()
    attempt = 0
    while True:
      self._began = math.inf
      try:
        if not self._made:
          self._create()
        self._await()
        code = self._once()
        if code != jobs.PREEMPTED or self.backend.restarts_itself:
          return code
        reason = (
          'a worker hung and was ended'
          if self._hung
          else 'saved and interrupted'
        )
      except backends.Unavailable as refusal:
        reason = f'there is no room now ({refusal})'
      except backends.Deleted as loss:
        say(f'somebody has deleted {self.backend.job.name} ({loss})')
        self._running = False
        return jobs.FAILED
      except backends.Gone as loss:
        reason = f'the machines are gone ({loss})'
        self._running = False
        if not self._delete():
          say(reason)
          return jobs.FAILED
      if time.monotonic() - self._began >= self.limits.settled:
        attempt = 0
      attempt += 1
      if attempt > self.limits.retries:
        say(f'{reason}; no retries are left: the same command goes on')
        return jobs.PREEMPTED
      pause = self.limits.pause(attempt)
      say(f'{reason}: retry {attempt} of {self.limits.retries} in {pause:g} s')
      self.run.sleep(pause)

  def _attach(self, found: backends.Found) -> None:
    """Takes over what an earlier call has made.

    Raises:
      UserError: it is of another job, commit or place.
    """
    job = self.backend.job
    other = ''
    if found.digest != job.digest:
      other = 'for another command or other machines'
    elif self.named and self.commit() != found.commit:
      other = f'with commit {found.commit}'
    if other:
      raise errors.UserError(
        f'--name: {job.name} is there already, {other}; choose another name, '
        'or delete it with --delete'
      )
    self._made, self._commit = True, found.commit
    say(f'{job.name} is there already, with commit {found.commit}: attached')
    if not self.limits.keep:
      say('Ctrl-C ends and deletes it; to look on only, give --keep')

  def _create(self) -> None:
    """Makes machines, or submits; remembers that they are to be deleted."""
    job = self.backend.job
    say(f'{job.name}: commit {self._commit}')
    archive = self.archive(self._commit)
    # From here on something may be there, whatever the answer is.
    self._made = True
    try:
      self.backend.create(self._commit, archive)
    except (backends.Unavailable, errors.UserError):
      found = self.backend.find()
      self._made = found is not None and found.digest == job.digest
      raise
    self._again = False

  def _once(self) -> int:
    """Runs the job once, or watches what runs already."""
    while (report := self._look()).started is None:
      self.run.sleep(self.limits.poll)
    if not report.started:
      say(f'installing commit {self._commit}')
      self.backend.prepare(self.archive(self._commit))
    if not report.started or self._again:
      self.backend.start()
      say('started; it goes on should this command be killed')
    _print(report.log)
    self._running, self._again = True, True
    self._began = time.monotonic()
    code = self._watch()
    self._running = False
    return code

  def _look(self) -> backends.Report:
    """How the job is; tells people if nobody answers."""
    report = self.backend.poll()
    self._silence.see(report.silence)
    return report

  def _await(self) -> None:
    """Waits until the job can start, or be watched."""
    start, told = time.monotonic(), ''
    while waiting := self.backend.pending():
      if waiting != told:
        say(f'waiting: {waiting}')
        told = waiting
      limit = self.backend.wait_seconds
      if limit and time.monotonic() - start > limit:
        raise _TimedOut(f'still {waiting} after {limit:g} s')
      self.run.sleep(self.limits.poll)

  def _watch(self) -> int:
    """Waits for the end of the job; returns its exit status.

    Raises:
      Gone: its machines were taken away.
      Deleted: somebody has deleted them.
    """
    first_end = None
    while True:
      report = self._look()
      _print(report.log)
      decided = self.backend.restarts_itself
      code = _over(report, decided)
      ended = any(code is not None for code in report.codes.values())
      if code is None and ended and not decided:
        first_end = first_end or time.monotonic()
        if time.monotonic() - first_end > self.limits.grace:
          say('one worker has ended, others have not: they are ended too')
          self.backend.stop(now=True)
          code = jobs.combine(report.codes)
      if code is not None:
        return self._ended(report, code)
      self.run.sleep(self.limits.poll)

  def _ended(self, report: backends.Report, code: int) -> int:
    say(f'exit status by worker: {jobs.told(report.codes) or code}')
    self._hung = code == jobs.PREEMPTED and None in report.codes.values()
    if self._hung:
      _print(self.backend.last_words())
    if code in (jobs.DONE, jobs.PREEMPTED):
      return code
    words = self.backend.last_words()
    if not self.backend.restarts_itself and code != jobs.USER_ERROR:
      # Workers notice the loss of another one before it is announced.
      for _ in range(2):
        waiting = self.backend.pending()
        if waiting and not waiting.startswith(backends.NO_ANSWER):
          raise backends.Gone(waiting)
        self.run.sleep(self.limits.poll)
    _print(words)
    return code

  def _let_save(self) -> None:
    """Lets the workers save; a second request to stop ends the patience."""
    if not self._running or self.limits.keep:
      return
    asked = self.run.requests
    end = time.monotonic() + self.limits.grace
    with self.run.undisturbed():
      try:
        if not self.backend.stop():
          say('deleting lets them save; Ctrl-C once more ends them at once')
          return
        say('the workers may save first; Ctrl-C once more ends them at once')
        while time.monotonic() < end and self.run.requests == asked:
          report = self._look()
          _print(report.log)
          if _over(report, self.backend.restarts_itself) is not None:
            say(f'exit status by worker: {jobs.told(report.codes)}')
            return
          self.run.sleep(min(self.limits.poll, 2.0))
        self.backend.stop(now=True)
      except (backends.Gone, backends.Deleted, errors.UserError) as error:
        say(f'the workers could not save: {error}')

  def _end(self, code: int) -> int:
    """Deletes what was made, unless it is to be kept."""
    if not self._made:
      return code
    if self.limits.keep:
      self.backend.leave()
      say(
        f'{self.backend.job.name} is kept, and costs what it costs: the same '
        'command attaches to it, with --delete it is deleted'
      )
      return code
    return code if self._delete() else code or jobs.FAILED

  def _delete(self) -> bool:
    """Deletes everything, whoever asks to stop; whether that worked."""
    name = self.backend.job.name
    with self.run.undisturbed():
      told = ''
      for attempt in range(1, _DELETIONS + 1):
        problem = self.backend.delete()
        if not problem:
          self._made = False
          say(f'deleted: {name}')
          return True
        if problem != told:
          say(f'{name} could not be deleted, which is tried again: {problem}')
          told = problem
        if attempt < _DELETIONS:
          self.run.sleep(min(self.limits.pause(attempt), _DELETION_PAUSE))
    say(f'{name} MAY STILL COST MONEY: run the same command with --delete')
    return False


class _TimedOut(Exception):
  """It took too long until the job could start; later it may not."""


def _over(report: backends.Report, decided: bool) -> int | None:
  """The exit status of a job, once all of it has ended.

  Args:
    report: of the job.
    decided: whether a scheduler decides that, which may start it again.
  """
  if report.over is not None or decided:
    return report.over
  if not report.codes or None in report.codes.values():
    return None
  return jobs.combine(report.codes)


def _print(text: str) -> None:
  """What the job has printed, byte for byte."""
  if text:
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors='surrogateescape'))
    sys.stdout.buffer.flush()
