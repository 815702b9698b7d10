"""Periodic work between the steps of a training."""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from segcore import types
from segcore.distributed import collectives
from segcore.train import train_state


class StepResult(NamedTuple):
  """Outcome of a training step, as callbacks receive it.

  Attributes:
    step: number of finished steps.
    state: the state after the step.
    metrics: scalars of the step, on the devices.
  """

  step: int
  state: train_state.TrainState
  metrics: types.Metrics


class IntervalTimer:
  """Detects that some minutes have passed, at the same step on all hosts."""

  def __init__(self, minutes: float, compare_every: int):
    """Starts the clock.

    Args:
      minutes: length of the interval in minutes; 0 for an interval that never
        ends.
      compare_every: steps after which several hosts ask host 0, which makes
        them wait for each other; a single host checks after every step.
    """
    self._seconds = 60 * minutes
    self._compare_every = compare_every
    self.restart()

  def restart(self) -> None:
    """Begins a new interval."""
    self._start = time.monotonic()

  def is_over(self, step: int) -> bool:
    """Returns whether the interval is over; called after every step."""
    if not self._seconds:
      return False
    if jax.process_count() > 1 and step % self._compare_every:
      return False
    is_over = time.monotonic() - self._start >= self._seconds
    return bool(collectives.broadcast_from_host_0(is_over))


@dataclasses.dataclass(frozen=True)
class Callback:
  """Periodic work between steps; also due after the last step.

  Attributes:
    run: the work.
    every: steps between runs; 0: only after the last step.
    on_preemption: also due when the training is about to stop.
    timer: also due when its interval is over; None without one.
  """

  run: Callable[[StepResult], None]
  every: int
  on_preemption: bool = False
  timer: IntervalTimer | None = None

  def is_due(self, step: int, is_last: bool, stopping: bool) -> bool:
    """Returns whether the work is due after a step."""
    periodic = self.every > 0 and step % self.every == 0
    if is_last or periodic or (stopping and self.on_preemption):
      return True
    return self.timer is not None and self.timer.is_over(step)


@dataclasses.dataclass(frozen=True)
class Refresh:
  """Computes a part of the state anew, before steps at regular intervals.

  The result depends on the state alone: a run that was killed before the step
  repeats it when it resumes.

  Attributes:
    first: number of finished steps before which it does not run.
    every: number of steps between runs.
    compute: function from a state to one of equal shapes and shardings.
  """

  first: int
  every: int
  compute: Callable[[train_state.TrainState], train_state.TrainState]

  def is_due(self, num_finished: int) -> bool:
    """Returns whether it runs after this number of finished steps."""
    return num_finished >= self.first and num_finished % self.every == 0
