"""Where jobs run: one module a kind of place, all with the same few verbs."""

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from launch import job as jobs


class Unavailable(Exception):
  """There is no room now; later there may be."""


class Gone(Exception):
  """The machines were taken away while the job ran, or before."""


class Deleted(Exception):
  """Somebody has deleted what was made: it is not to be made again."""


# How what `Backend.pending` says begins where nobody answered.
NO_ANSWER = 'no answer'


@dataclasses.dataclass(frozen=True)
class Found:
  """What an earlier call of the same name has made.

  Attributes:
    digest: of the job it was made for.
    commit: of the code that was shipped.
  """

  digest: str
  commit: str


@dataclasses.dataclass(frozen=True)
class Report:
  """How a job is.

  Attributes:
    codes: exit status of each worker; None of those that have not ended.
    started: whether it was started at all; None if nobody answered.
    silence: why nobody answered, if so.
    log: what it printed since the last report.
    over: exit status of the whole, once a scheduler has decided it.
  """

  codes: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
  started: bool | None = None
  silence: str = ''
  log: str = ''
  over: int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
  """One thing that is done, for people to read before.

  Attributes:
    title: what it is for.
    text: a command line, or the content of a file.
  """

  title: str
  text: str


def steps(commands: Mapping[str, Sequence[str]]) -> list[Step]:
  """Steps that are a command each, by their titles."""
  return [
    Step(title, shlex.join(command)) for title, command in commands.items()
  ]


@runtime_checkable
class Backend(Protocol):
  """A place to run a job.

  Attributes:
    job: what is run.
    restarts_itself: whether its scheduler starts the job again after status 75
      and preemption.
    wait_seconds: for how long it may take until the job can start.
  """

  job: jobs.Job
  restarts_itself: bool
  wait_seconds: float

  @property
  def where(self) -> str:
    """Where it looks, in words."""

  def steps(self, commit: str) -> Sequence[Step]:
    """Everything that would be done, in order, exactly as it would be."""

  def deletion(self, commit: str) -> Sequence[Step]:
    """The last of these: how all that was made is deleted."""

  def find(self) -> Found | None:
    """What an earlier call has made, if anything."""

  def create(self, commit: str, archive: pathlib.Path) -> None:
    """Asks for machines, or submits; returns at once.

    Raises:
      UserError: refused, for a reason that stays.
      Unavailable: refused for now.
    """

  def pending(self) -> str:
    """What it still waits for; '' once the job can be started or watched.

    Raises:
      Gone: it waits in vain.
      Deleted: there is nothing any more.
    """

  def prepare(self, archive: pathlib.Path) -> None:
    """Brings the code there and installs what it needs."""

  def start(self) -> None:
    """Starts the job, detached."""

  def poll(self) -> Report:
    """How the job is.

    Raises:
      Gone: its machines were taken away.
      Deleted: there is nothing any more.
    """

  def last_words(self) -> str:
    """The last lines of the workers that failed."""

  def stop(self, now: bool = False) -> bool:
    """Asks the workers to save and stop, or ends them.

    Returns whether there is something to wait for; where deleting lets the
    workers save, there is not.
    """

  def leave(self) -> None:
    """Ends what follows the job on this machine; the job goes on."""

  def delete(self) -> str:
    """Deletes all that was made; returns what went wrong, '' if nothing."""
