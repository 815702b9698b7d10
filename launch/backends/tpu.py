"""TPU VMs of the Cloud TPU API, which are controlled over ssh."""

import dataclasses
import json
import pathlib
import re
from typing import Any

from launch import backends, shell, source, worker
from launch import job as jobs
from launch.backends import tpu_api
from runtime import errors

_QUOTA = re.compile(r'quota', re.IGNORECASE)
_NO_CAPACITY = re.compile(
  r'no more capacity|not enough|stockout|RESOURCE_EXHAUSTED|UNAVAILABLE',
  re.IGNORECASE,
)
_NOT_FOUND = re.compile(r'NOT_FOUND|not found', re.IGNORECASE)
_READY_STATES = ('READY', 'ACTIVE')
# States from which machines may still become ready.
_WAITING_STATES = (
  'ACCEPTED',
  'CREATING',
  'PROVISIONING',
  'REIMAGING',
  'REPAIRING',
  'RESTARTING',
  'STARTING',
  'WAITING_FOR_RESOURCES',
  '',
)
# Consecutive polls at which only some workers answer before the machines count
# as lost, and attempts to connect to new ones; gcloud retries for a minute in
# each.
_MAX_UNREACHABLE = 20
# Attempts at a script that fails.
_MAX_FAILURES = 3
# Exit status of ssh without a connection.
_NO_CONNECTION = 255
# Consecutive polls without machines before they count as absent: the API may
# not list those that were requested a moment ago.
_ABSENT_POLLS = 4


@dataclasses.dataclass
class Tpu:
  """The TPU VMs of a slice.

  Attributes:
    api: the commands for the machines.
    run: shell that runs the commands.
    is_mounted: whether all machines mount the work folder.
    wait_seconds: limit of the time until the machines are ready.
    pause: seconds before a failed command is repeated.
  """

  api: tpu_api.TpuApi
  run: shell.Shell
  is_mounted: bool = False
  wait_seconds: float = 1800.0
  pause: float = 10.0
  restarts_itself: bool = False
  _log_offset: int = 0
  _unreachable_polls: int = 0
  _absent_polls: int = 0
  _was_seen: bool = False
  _was_ready: bool = False

  def __post_init__(self):
    workdir = self.job.workdir
    if workdir and not self.is_mounted and not workdir.startswith('gs://'):
      raise errors.UserError(
        f'--workdir: expected gs://…, got {workdir}: the disks of the machines '
        'are deleted with them; --mounted states that all machines mount it'
      )

  @property
  def job(self) -> jobs.Job:
    """Returns the job to run."""
    return self.api.job

  @property
  def location(self) -> str:
    """Returns zone and project of the machines."""
    return f'zone {self.api.zone} of project {self.api.project}'

  @property
  def _workers(self) -> tpu_api.WorkerCommands:
    return tpu_api.WorkerCommands(self.api)

  def steps(self, commit: str) -> list[backends.Step]:
    """Returns the gcloud commands from creating the machines to deleting."""
    archive = source.code_archive_path(self.job.name, commit)
    commands = {
      'check whether they exist': self.api.describe_command(),
      'pack the code': source.code_archive_command(commit, archive),
      'create': self.api.create_command(commit),
      'wait until they are ready': self.api.describe_command(),
      'copy the code': self._workers.copy_code(archive),
      'unpack': self._workers.unpack(),
      'install': self._workers.install(),
      'start, detached': self._workers.start(),
      'poll: the log': self._workers.print_log(self._log_offset),
      'poll: exit status of each worker': self._workers.print_state(),
      'the last lines of failed workers': self._workers.print_failure_log(),
      'on Ctrl-C: let the job save': self._workers.stop(),
    }
    return [
      *backends.build_launch_steps(commands),
      *self.deletion_steps(commit),
    ]

  def deletion_steps(self, commit: str) -> list[backends.Step]:
    """Returns the command that deletes the machines."""
    return backends.build_launch_steps(
      {'at the end, whatever happened': self.api.delete_command()}
    )

  def _describe(self) -> dict[str, Any] | None:
    """Returns the description of the machines; None if there are none."""
    result = self.run(self.api.describe_command())
    if result.code:
      if _NOT_FOUND.search(result.err):
        return None
      raise errors.UserError(f'gcloud: {result.error_line}')
    self._was_seen = True
    return json.loads(result.out)

  def find(self) -> backends.Existing | None:
    """Reads digest and commit from the labels of the machines."""
    described = self._describe()
    if described is None:
      return None
    labels = self.api.parse_description(described).labels
    return backends.Existing(
      labels.get('launch-job', ''), labels.get('launch-commit', '')
    )

  def create(self, commit: str, archive: pathlib.Path) -> None:
    """Requests the machines from the API."""
    self._log_offset = self._unreachable_polls = self._absent_polls = 0
    self._was_seen = self._was_ready = False
    result = self.run(self.api.create_command(commit), creates=True)
    if result.code:
      _raise_refusal(result.err, result.error_line)

  def waiting_for(self) -> str:
    """Returns the state of machines that are not ready yet."""
    try:
      described = self._describe()
    except errors.UserError as error:
      return f'{backends.NO_ANSWER} ({error})'
    if described is None:
      return self._handle_absence()
    self._absent_polls = 0
    description = self.api.parse_description(described)
    if description.state in _READY_STATES:
      self._was_ready = True
      return ''
    if description.state in _WAITING_STATES:
      return description.state
    if _QUOTA.search(description.message):
      _raise_refusal(description.message, description.message)
    separator = ': ' if description.message else ''
    raise backends.MachinesLostError(
      f'{description.state}{separator}{description.message}'
    )

  def _handle_absence(self) -> str:
    """Returns what to wait for although no machines of this name exist.

    Preempted machines continue to exist, in another state: machines that were
    ready and are absent have been deleted.
    """
    self._absent_polls += 1
    nothing = 'there is nothing of this name'
    if self._absent_polls < _ABSENT_POLLS:
      return f'{backends.NO_ANSWER} ({nothing})'
    if self._was_ready:
      raise backends.JobDeletedError(nothing)
    raise backends.MachinesLostError(nothing)

  def install(self, archive: pathlib.Path) -> None:
    """Copies the code to all workers and creates their environments."""
    self._run_reliably(self._workers.copy_code(archive), 'copying the code')
    self._run_reliably(self._workers.unpack(), 'unpack')
    self._run_reliably(self._workers.install(), 'install')

  def start(self) -> None:
    """Starts the job on all workers that do not run it yet."""
    self._run_reliably(self._workers.start(), 'starting')

  def _run_reliably(self, command: list[str], title: str) -> None:
    """Runs a command, with retries: new machines do not answer at once.

    Raises:
      MachinesLostError: the machines are gone.
      UserError: the command failed on machines that exist.
    """
    failures = unreachable = 0
    while failures < _MAX_FAILURES and unreachable < _MAX_UNREACHABLE:
      if failures or unreachable:
        self.run.sleep(self.pause)
      result = self.run(command)
      if not result.code:
        return
      self.waiting_for()  # Raises if the machines are lost.
      if result.code == _NO_CONNECTION:
        unreachable += 1
      else:
        failures += 1
    raise errors.UserError(
      f'{title} failed on {self.job.name}: {result.error_line}'
    )

  def poll(self) -> backends.Report:
    """Asks all workers for their state, and the first for its log."""
    result = self.run(self._workers.print_state())
    states = worker.parse_worker_states(result.out)
    if len(states) < self.api.accelerator.hosts:
      outage = self._handle_outage(len(states), result.error_line)
      return backends.Report(outage=outage)
    self._unreachable_polls = 0
    log = worker.parse_worker_log(
      self.run(self._workers.print_log(self._log_offset)).out
    )
    self._log_offset += len(log.encode(errors='surrogateescape'))
    return backends.Report(
      worker.worker_exit_codes(states), 'absent' not in states.values(), log=log
    )

  def _handle_outage(self, num_answers: int, error: str) -> str:
    """Returns why not all workers answer.

    Args:
      num_answers: number of workers that answer.
      error: the error of the command that asked them.

    Raises:
      MachinesLostError: the machines are gone, by their state or because for
        long only some answered. If none answers, this machine may be offline.
      JobDeletedError: they were deleted.
    """
    if waiting := self.waiting_for():
      return waiting
    hosts = self.api.accelerator.hosts
    answers = f'{num_answers} of {hosts} workers answer ({error})'
    if not num_answers:
      return f'{answers}, but they exist: this machine may be offline'
    self._unreachable_polls += 1
    if self._unreachable_polls >= _MAX_UNREACHABLE:
      raise backends.MachinesLostError(answers)
    return answers

  def failure_log(self) -> str:
    """Returns the last lines of the workers that failed."""
    return self.run(self._workers.print_failure_log()).out

  def stop(self, force: bool = False) -> bool:
    """Signals the processes; returns whether all workers were reached."""
    return not self.run(self._workers.stop(force)).code

  def detach(self) -> None:
    """Does nothing: no local process follows the job."""

  def delete(self) -> str:
    """Deletes the machines and waits until they are gone."""
    # Machines that were requested and never seen may appear a little later.
    attempts = 1 if self._was_seen else _ABSENT_POLLS
    while True:
      result = self.run(self.api.delete_command())
      if not result.code:
        return ''
      if not _NOT_FOUND.search(result.err):
        return result.error_line
      attempts -= 1
      if not attempts:
        return ''
      self.run.sleep(self.pause)


def _raise_refusal(text: str, line: str) -> None:
  """Raises the error of a refused request.

  Args:
    text: everything that was printed about it.
    line: the summary to show.
  """
  if _QUOTA.search(text):
    raise errors.UserError(
      f'gcloud: {line}; request more quota, or choose another --zone, '
      '--accelerator or --provisioning'
    )
  if _NO_CAPACITY.search(text):
    raise backends.NoCapacityError(line)
  raise errors.UserError(f'gcloud: {line}')
