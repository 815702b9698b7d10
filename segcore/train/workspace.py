"""The folders of a running stage, and the agreement of all hosts to stop."""

import dataclasses
from collections.abc import Mapping

import jax
from jax.experimental import multihost_utils

from runtime import files


class Preempted(Exception):
  """The machine asked to stop; everything needed to go on is saved."""


class Preemption:
  """Whether the machine has asked to stop, agreed on by all hosts.

  Hosts call `reached` equally often. After the request (SIGTERM on any of them)
  it returns True at one and the same call on all.
  """

  def __init__(self):
    # Not a training step: calls are counted on from stage to stage.
    self._calls = 0

  def reached(self) -> bool:
    """True at the call at which everyone is to save and stop."""
    if not jax.distributed.is_initialized():
      return False
    self._calls += 1
    return multihost_utils.reached_preemption_sync_point(self._calls)


@dataclasses.dataclass(frozen=True)
class Workspace:
  """Where a stage runs, and where the stages it needs have left their work.

  Attributes:
    directory: the stage's own folder.
    needed: folder of each stage it needs.
    digest: of everything that decides the result, stages before included.
    preemption: to be asked after every step.
  """

  directory: files.Path
  needed: Mapping[str, files.Path]
  digest: str
  preemption: Preemption = dataclasses.field(default_factory=Preemption)
