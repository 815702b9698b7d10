"""The places where a job can run: one module each, behind one protocol."""

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from launch import job as jobs


class NoCapacityError(Exception):
  """Machines were refused for lack of capacity; a later request may succeed."""


class MachinesLostError(Exception):
  """The machines were taken away, or will never become ready."""


class JobDeletedError(Exception):
  """Another user or command deleted the job, which is not to be recreated."""


# Prefix of the result of `Backend.waiting_for` if the service did not answer.
NO_ANSWER = 'no answer'


@dataclasses.dataclass(frozen=True)
class Existing:
  """Describes what an earlier command created under the name of a job.

  Attributes:
    digest: `Job.digest` of the job at that time; '' if another program has
      created what exists.
    commit: hash of the commit that was shipped.
  """

  digest: str
  commit: str


@dataclasses.dataclass(frozen=True)
class Report:
  """The state of a job at one poll.

  Attributes:
    exit_codes: exit status of each worker; None while it has none.
    started: whether the job was ever started; None if that is unknown.
    outage: reason why not all workers answered; '' if all did.
    log: text that the job has printed since the last poll.
    final_code: exit status of the whole job, if a scheduler has decided it.
  """

  exit_codes: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
  started: bool | None = None
  outage: str = ''
  log: str = ''
  final_code: int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
  """A step of the plan that --dry_run prints.

  Attributes:
    title: purpose of the step.
    text: a command line, or the content of a file.
  """

  title: str
  text: str


def build_launch_steps(commands: Mapping[str, Sequence[str]]) -> list[Step]:
  """Builds the steps of a launch from shell commands by their titles."""
  return [
    Step(title, shlex.join(command)) for title, command in commands.items()
  ]


@runtime_checkable
class Backend(Protocol):
  """A place where a job can run.

  Attributes:
    job: the job to run.
    restarts_itself: whether its scheduler restarts the job after status 75 and
      after preemption.
    wait_seconds: limit of the time until the job can start; 0 for none.
  """

  job: jobs.Job
  restarts_itself: bool
  wait_seconds: float

  @property
  def location(self) -> str:
    """Describes where jobs of this name are searched for, in words."""

  def steps(self, commit: str) -> Sequence[Step]:
    """Returns all steps of a launch, in order and exactly as they are run."""

  def deletion_steps(self, commit: str) -> Sequence[Step]:
    """Returns the last of these steps: those that delete the job."""

  def find(self) -> Existing | None:
    """Returns what an earlier command created under this name, if anything."""

  def create(self, commit: str, archive: pathlib.Path) -> None:
    """Requests machines, or submits the job; does not wait for them.

    Args:
      commit: hash of the commit that the workers run.
      archive: local archive of the code of this commit.

    Raises:
      UserError: the request was refused, for a reason that persists.
      NoCapacityError: the request was refused for now.
    """

  def waiting_for(self) -> str:
    """Returns what the job waits for; '' once it can be started or polled.

    Raises:
      MachinesLostError: the machines will never become ready.
      JobDeletedError: the job does not exist any more.
    """

  def install(self, archive: pathlib.Path) -> None:
    """Copies the code to all workers and installs its requirements."""

  def start(self) -> None:
    """Starts the job, detached from this process."""

  def poll(self) -> Report:
    """Returns the current state of the job.

    Raises:
      MachinesLostError: the machines were taken away.
      JobDeletedError: the job does not exist any more.
    """

  def failure_log(self) -> str:
    """Returns the last lines of the workers that failed."""

  def stop(self, force: bool = False) -> bool:
    """Asks the workers to save and stop, or kills them.

    Returns:
      Whether to wait for them; False if deleting the job lets them save.
    """

  def detach(self) -> None:
    """Ends local processes that follow the job, which itself goes on."""

  def delete(self) -> str:
    """Deletes all that was created; returns the problem, '' if none."""
