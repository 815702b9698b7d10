"""Processes of a study: run several at once, in the order of their needs."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from runtime import console
from segcore.train import workspace as workspace_lib

_POLL_SECONDS = 0.2
# Between lines with the progress of the running processes.
_STATUS_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """A process to run.

  Attributes:
    name: unique name, for messages.
    command: command line of the process.
    log: file of its output.
    needs: names of the jobs that must succeed before this one starts.
    prepare: function that is called right before the start.
    finish: function of the duration in seconds, called after the process
      succeeded.
  """

  name: str
  command: tuple[str, ...]
  log: pathlib.Path
  needs: tuple[str, ...] = ()
  prepare: Callable[[], None] = lambda: None
  finish: Callable[[float], None] = lambda seconds: None


@dataclasses.dataclass
class Workers:
  """Runs jobs, several at once.

  Attributes:
    environments: environment variables of each worker, one item per worker.
    lock: file descriptor that every process inherits, or -1. The lock is held
      as long as one of them lives.
    stopping: exit status of the study once a signal asked it to stop, else 0.
    failed: last line of the output of each failed job, by name.
  """

  environments: Sequence[Mapping[str, str]]
  lock: int = -1
  stopping: int = 0
  failed: dict[str, str] = dataclasses.field(default_factory=dict)

  def run(self, jobs: Sequence[Job]) -> None:
    """Runs the jobs in their order, each after the jobs that it needs.

    When `stopping` is set, running processes are asked to save and stop.

    Raises:
      Preempted: the study was asked to stop.
    """
    running: dict[int, tuple[Job, subprocess.Popen, float]] = {}
    try:
      self._run(list(jobs), running)
    finally:  # After any error no process is left running.
      for _, process, _ in running.values():
        process.terminate()
      for _, process, _ in running.values():
        process.wait()

  def _run(
    self,
    waiting: list[Job],
    running: dict[int, tuple[Job, subprocess.Popen, float]],
  ) -> None:
    done: set[str] = set()
    interrupted = 0
    asked_to_stop, last_status = False, time.monotonic()
    while waiting or running:
      if self.stopping and not asked_to_stop:
        asked_to_stop = True
        for _, process, _ in running.values():
          process.send_signal(signal.SIGTERM)
        console.print_line(f'stopping: {len(running)} run(s) save first')
      if self.stopping and not running:
        left = len(waiting) + interrupted
        raise workspace_lib.Preempted(f'{left} run(s) are left')
      for worker in range(len(self.environments)):
        if worker in running or self.stopping:
          continue
        if job := self._next(waiting, done):
          waiting.remove(job)
          job.prepare()
          process = self._start(job, worker)
          running[worker] = (job, process, time.monotonic())
      if not running and not self.stopping:
        return  # The jobs that are left need one that failed.
      time.sleep(_POLL_SECONDS)
      if time.monotonic() - last_status > _STATUS_SECONDS:
        last_status = time.monotonic()
        for job, _, _ in running.values():
          console.print_line(f'  {job.name}: {_last_line(job.log)}')
      for worker, (job, process, start) in list(running.items()):
        if process.poll() is None:
          continue
        del running[worker]
        if process.returncode == 0:
          done.add(job.name)
          job.finish(time.monotonic() - start)
        elif self.stopping:
          interrupted += 1
        else:
          self._fail(job, process.returncode)

  def _next(self, waiting: list[Job], done: set[str]) -> Job | None:
    """Returns the first job that can start; drops those that never can."""
    for job in list(waiting):
      failed = [name for name in job.needs if name in self.failed]
      if failed:
        waiting.remove(job)
        self.failed[job.name] = f'needs {failed[0]}, which failed'
      elif set(job.needs) <= done:
        return job
    return None

  def _start(self, job: Job, worker: int) -> subprocess.Popen:
    with open(job.log, 'a') as log:
      process = subprocess.Popen(
        job.command,
        env={**os.environ, **self.environments[worker]},
        stdout=log,
        stderr=subprocess.STDOUT,
        # Ctrl-C is for the study, which asks its runs to save.
        start_new_session=True,
        pass_fds=() if self.lock < 0 else (self.lock,),
      )
    count = len(self.environments)
    if count > 1 and hasattr(os, 'sched_setaffinity'):  # Linux.
      cores = sorted(os.sched_getaffinity(0))
      if len(cores) >= count:
        os.sched_setaffinity(process.pid, cores[worker::count])
    return process

  def _fail(self, job: Job, status: int) -> None:
    self.failed[job.name] = f'{_last_line(job.log)}; see {job.log}'
    console.print_line(f'{job.name} failed ({status}): {self.failed[job.name]}')


def _last_line(log: pathlib.Path) -> str:
  """Returns the last line of a process's output.

  Progress bars overwrite their own line with escape sequences.
  """
  text = re.sub(r'\x1b\[\w', '\n', log.read_text())
  return (text.strip().splitlines() or ['starting'])[-1].strip()
