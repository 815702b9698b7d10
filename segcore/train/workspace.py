"""The folders of a running stage, and the detection of preemption."""

import dataclasses
import os
import signal
from collections.abc import Mapping

import jax
from jax.experimental import multihost_utils

from runtime import files


class Preempted(Exception):
  """Raised when the machine asks to stop; all that resuming needs is saved."""


class Preemption:
  """Detects a request to stop (SIGTERM, Ctrl-C), in agreement of all hosts.

  All hosts must call `reached` equally often. After a request to any host it
  returns True in the same call on all hosts.
  """

  def __init__(self):
    # jax needs a number that increases from stage to stage; steps do not.
    self._calls = 0
    self._requested = False

  def request(self) -> None:
    """Asks all hosts to stop."""
    if jax.distributed.is_initialized():
      # jax's handler of the signal informs the other hosts.
      os.kill(os.getpid(), signal.SIGTERM)
    self._requested = True

  def reached(self) -> bool:
    """Returns True in the call at which all hosts must save and stop."""
    if not jax.distributed.is_initialized():
      return self._requested
    self._calls += 1
    return multihost_utils.reached_preemption_sync_point(self._calls)


@dataclasses.dataclass(frozen=True)
class Workspace:
  """The folders of a running stage, and the detection of preemption.

  Attributes:
    directory: folder of the stage.
    needed: folder of each stage whose results the running stage reads, by name.
    digest: digest of all settings that decide the result, including those of
      needed stages.
    preemption: detection of a request to stop, polled after every step.
  """

  directory: files.Path
  needed: Mapping[str, files.Path]
  digest: str
  preemption: Preemption = dataclasses.field(default_factory=Preemption)
