"""Checkpoints of a stage: the latest ones and the best one.

Saving is asynchronous and atomic: the folder of a step is renamed into place
when it is complete. The folder `checkpoints` holds the latest two steps, `best`
the step with the best value so far. With each goes a manifest with the
checksums of its arrays, which are checked when it is restored.
"""

import contextlib
import errno
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epy
from jax.experimental import multihost_utils
from jaxtyping import Int32

from runtime import errors, files, memory, progress
from segcore.distributed import collectives
from segcore.weights import manifest

with epy.lazy_imports():
  import orbax.checkpoint as ocp

# Outcomes of an attempt to restore, as the hosts exchange them.
_RESTORED, _RESTORED_UNCHECKED, _OTHER_KIND, _DAMAGED = range(4)
# The most checkpoints that are tried.
_MAX_STEPS = 64
# Characters of the reason why a checkpoint is damaged.
_MAX_REASON = 240


class _Attempt(NamedTuple):
  """An attempt of this host to restore a checkpoint.

  Attributes:
    outcome: one of the constants above.
    reason: reason of a failure; empty if there was none.
    state: the state, if it was restored.
    saved: manifest of the checkpoint, if it has one.
  """

  outcome: int
  reason: str = ''
  state: Any = None
  saved: manifest.Manifest | None = None


class Checkpoints:
  """Saves and restores the training state of one stage.

  with Checkpoints(directory) as checkpoints:
    restored = checkpoints.restore(abstract_state)
    checkpoints.save(100, state)
  """

  def __init__(self, directory: files.Path, keep: int = 2):
    """Opens the checkpoints in the folder of a stage.

    Args:
      directory: folder of the stage.
      keep: number of latest checkpoints to keep.
    """
    self.directory = directory
    self._latest = _manager(directory / 'checkpoints', keep)
    self._best = _manager(directory / 'best', 1)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exception) -> None:
    with _explaining_full_disk(self.directory):
      self._latest.close()
      self._best.close()

  def save(self, step: int, state: Any) -> None:
    """Starts to save a state; returns before it is on disk.

    Raises:
      UserError: the disk is full; earlier checkpoints are kept.
    """
    with _explaining_full_disk(self.directory):
      # Until the one before is on disk, Orbax would wait anyway.
      self._latest.wait_until_finished()
      memory.return_freed_memory()
      self._latest.save(step, args=_save_args(state, {}))
    progress.record_activity(f'saving step {step} of {self.directory.name}')

  def save_best(self, step: int, state: Any, value: float) -> None:
    """Saves a state as the best one; returns when it is on disk.

    Args:
      step: step of the state.
      state: the training state.
      value: value by which it is the best.
    """
    with _explaining_full_disk(self.directory):
      # On several hosts both managers would meet at barriers of one name.
      self._latest.wait_until_finished()
      is_first = self.best_value(before=step) is None
      # A run that resumed from an earlier checkpoint repeats these steps.
      for later in self._best.all_steps():
        if later >= step or is_first:
          self._best.delete(later)
      self._best.save(step, args=_save_args(state, {'value': value}))
      self._best.wait_until_finished()

  def best_value(self, before: int) -> float | None:
    """Returns the value of the best state of earlier steps, or None.

    A run that resumed from an earlier checkpoint may have saved a best state of
    a later step. It is ignored, since the run will compute it again.
    """
    step, value = self._best.latest_step(), None
    if step is not None and step < before:
      folder = files.absolute_path(self.directory) / 'best' / str(step)
      try:
        value = manifest.read_manifest_best_value(folder)
      except Exception as error:  # Orbax has no class for damaged files.
        logging.warning(
          'the best state in %s is damaged (%s): the next evaluation replaces '
          'it',
          self.directory,
          _first_line(error),
        )
    return value if _on_all_hosts(value is not None) else None

  def wait(self) -> None:
    """Returns when all saved states are on disk."""
    with _explaining_full_disk(self.directory):
      self._latest.wait_until_finished()
      self._best.wait_until_finished()
    progress.record_activity(f'all states of {self.directory.name} were saved')

  def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
    """Restores the latest state that is whole on all hosts.

    The arrays are compared with the checksums of the manifest. A damaged
    checkpoint is renamed, and the one before it is restored; the hosts decide
    together, since a file may be damaged for one of them only.

    Args:
      abstract_state: shapes, types and shardings of the state.

    Returns:
      Step and state, or None if nothing was saved yet.

    Raises:
      UserError: all checkpoints are damaged, or they hold a state of other
        names or shapes.
    """
    damaged = []
    for step in self._steps():
      attempt = self._attempt(step, abstract_state)
      outcomes = _from_all_hosts(attempt.outcome)
      if (outcomes == _OTHER_KIND).all():
        raise errors.UserError(attempt.reason)
      reason = attempt.reason
      if (outcomes == _RESTORED).all():
        reason = _compare(attempt)
        if _on_all_hosts(not reason):
          self._rename_damaged(damaged)
          return step, attempt.state
      elif (outcomes == _RESTORED_UNCHECKED).all():
        logging.warning(
          'checkpoint %d in %s was saved without checksums, by an earlier '
          'version: it is restored unchecked',
          step,
          self.directory,
        )
        self._rename_damaged(damaged)
        return step, attempt.state
      logging.warning(
        'checkpoint %d in %s is damaged (%s): restoring the one before',
        step,
        self.directory,
        reason or 'on another host',
      )
      damaged.append(step)
    if damaged:
      raise errors.UserError(
        f'all checkpoints in {self.directory} are damaged: restore them from a '
        'copy, or remove the folder to train this stage again'
      )
    return None

  def _steps(self) -> list[int]:
    """Returns the saved steps, the latest first, as host 0 sees them."""
    steps = sorted(self._latest.all_steps(), reverse=True)[:_MAX_STEPS]
    padded = np.full(_MAX_STEPS, -1, np.int32)
    padded[: len(steps)] = steps
    return [int(x) for x in collectives.broadcast_from_host_0(padded) if x >= 0]

  def _attempt(self, step: int, abstract_state: Any) -> _Attempt:
    """Restores a checkpoint on this host, without waiting for the others.

    Orbax's manager would wait for all hosts after it has restored: for ever, if
    one of them cannot.
    """
    folder = files.absolute_path(self.directory) / 'checkpoints' / str(step)
    progress.record_activity(f'restoring step {step} of {self.directory.name}')
    try:
      saved = manifest.read_manifest(folder)
      problem = _layout_problem(folder, saved, abstract_state)
      if problem:
        return _Attempt(_OTHER_KIND, problem)
      state = ocp.StandardCheckpointHandler().restore(
        folder / manifest.STATE, args=ocp.args.StandardRestore(abstract_state)
      )
    except Exception as error:  # Orbax has no class for damaged files.
      return _Attempt(_DAMAGED, _first_line(error))
    outcome = _RESTORED_UNCHECKED if saved is None else _RESTORED
    return _Attempt(outcome, state=state, saved=saved)

  def _rename_damaged(self, steps: Sequence[int]) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again."""
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        target = self.directory / f'damaged-{step}'
        files.remove_folder(target)
        (self.directory / 'checkpoints' / str(step)).rename(target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('damaged checkpoints renamed')
    self._latest.reload()


def _manager(directory: files.Path, keep: int) -> 'ocp.CheckpointManager':
  """Creates a checkpoint manager that ignores preemption: the loop handles it.

  Orbax would query jax's preemption sync point with its own step count. jax
  answers a request only once, so the loop would miss it.
  """

  class Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
      return False

  return Manager(
    files.absolute_path(directory),
    options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
  )


def _layout_problem(
  folder: files.Path, saved: manifest.Manifest | None, abstract_state: Any
) -> str:
  """Describes how the saved names and shapes differ from those of the state.

  Raises:
    ValueError: Orbax's metadata are damaged: they contradict the manifest.
  """
  tree = ocp.PyTreeCheckpointHandler().metadata(folder / manifest.STATE).tree
  layout = manifest.manifest_array_layouts(
    manifest.manifest_arrays_by_path(tree)
  )
  if saved is not None and layout != saved.layout:
    name = _differences(layout, saved.layout)[0]
    raise ValueError(f'{name}: its metadata contradict the manifest')
  expected = manifest.manifest_array_layouts(
    manifest.manifest_arrays_by_path(abstract_state)
  )
  different = _differences(layout, expected)
  if not different:
    return ''
  name = different[0]
  wanted, got = _contrast(expected.get(name), layout.get(name))
  return (
    f'{folder / manifest.STATE} holds another kind of state: {name}: expected '
    f'{wanted}, got {got} '
    f'({len(different)} arrays differ): resume with the version that wrote it, '
    'or choose another --workdir'
  )


def _differences(
  one: Mapping[str, manifest.Layout], other: Mapping[str, manifest.Layout]
) -> list[str]:
  """Returns the names at which two layouts differ."""
  return sorted(n for n in {*one, *other} if one.get(n) != other.get(n))


def _contrast(
  one: manifest.Layout | None, other: manifest.Layout | None
) -> tuple[Any, Any]:
  """Returns that in which two layouts differ: their shapes, or their types."""
  if one and other and one.shape == other.shape:
    return one.dtype, other.dtype
  return one.shape if one else 'nothing', other.shape if other else 'nothing'


def _compare(attempt: _Attempt) -> str:
  """Describes how a restored state differs from the one that was saved."""
  try:
    attempt.saved.check(manifest.manifest_arrays_by_path(attempt.state))
  except ValueError as error:
    return _first_line(error)
  return ''


def _first_line(error: Exception) -> str:
  """Returns the beginning of a message; tensorstore's name all its options."""
  lines = str(error).splitlines() or [type(error).__name__]
  return textwrap.shorten(lines[0], _MAX_REASON, placeholder=' …')


def _save_args(state: Any, values: Mapping[str, Any]) -> 'ocp.args.Composite':
  return ocp.args.Composite(
    **{
      manifest.STATE: ocp.args.StandardSave(state),
      manifest.META: ocp.args.JsonSave(manifest.make_manifest(state, values)),
    }
  )


def _from_all_hosts(value: int) -> Int32[np.ndarray, 'hosts']:
  """Gathers the value of each host, in the order of processes."""
  if jax.process_count() == 1:
    return np.array([value], np.int32)
  return np.asarray(multihost_utils.process_allgather(np.int32(value)))


def _on_all_hosts(condition: bool) -> bool:
  """Returns whether a condition is true on every host."""
  return bool(_from_all_hosts(int(condition)).all())


@contextlib.contextmanager
def _explaining_full_disk(directory: files.Path) -> Iterator[None]:
  """Turns any error of Orbax about a full disk into a UserError."""
  try:
    yield
  except Exception as error:
    full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
    if full or os.strerror(errno.ENOSPC) in str(error):
      raise errors.UserError(
        f'the disk of {directory} is full: earlier checkpoints are kept; '
        'free some space and run the same command again'
      ) from error
    raise
