"""Checkpoints of a stage: the latest ones and the best one.

Saving is asynchronous and atomic: the folder of a step is renamed into place
when it is complete. The folder `checkpoints` holds the latest two steps, `best`
the step with the best value so far.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epy
from jax.experimental import multihost_utils

from runtime import errors, files, progress
from segcore.weights import checkpoint_reader

with epy.lazy_imports():
  import orbax.checkpoint as ocp

_STATE, _META = checkpoint_reader.STATE, 'meta'


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
      # A run that resumed from an earlier checkpoint repeats these steps.
      for later in self._best.all_steps():
        if later >= step or self.best_value(before=step) is None:
          self._best.delete(later)
      self._best.save(step, args=_save_args(state, {'value': value}))
      self._best.wait_until_finished()

  def best_value(self, before: int) -> float | None:
    """Returns the value of the best state of earlier steps, or None.

    A run that resumed from an earlier checkpoint may have saved a best state of
    a later step. It is ignored, since the run will compute it again.
    """
    step = self._best.latest_step()
    if step is None or step >= before:
      return None
    meta = ocp.args.Composite(**{_META: ocp.args.JsonRestore()})
    try:
      return self._best.restore(step, args=meta)[_META]['value']
    except Exception as error:  # Orbax has no class for damaged files.
      logging.warning(
        'the best state in %s is damaged (%s): the next evaluation replaces it',
        self.directory,
        str(error).splitlines()[0],
      )
      return None

  def wait(self) -> None:
    """Returns when all saved states are on disk."""
    with _explaining_full_disk(self.directory):
      self._latest.wait_until_finished()
      self._best.wait_until_finished()
    progress.record_activity(f'all states of {self.directory.name} were saved')

  def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
    """Restores the latest state that can be read on all hosts.

    A damaged checkpoint is renamed, and the one before it is restored.

    Args:
      abstract_state: shapes, types and shardings of the state.

    Returns:
      Step and state, or None if nothing was saved yet.

    Raises:
      UserError: all checkpoints are damaged, or they hold a state of other
        names or shapes.
    """
    args = ocp.args.Composite(
      **{_STATE: ocp.args.StandardRestore(abstract_state)}
    )
    damaged = []
    for step in sorted(self._latest.all_steps(), reverse=True):
      reason, state = '', None
      try:
        self._check_layout(step, abstract_state)
        state = self._latest.restore(step, args=args)[_STATE]
        progress.record_activity(
          f'restoring step {step} of {self.directory.name}'
        )
      except errors.UserError:
        raise
      except Exception as error:  # Orbax has no class for damaged files.
        reason = str(error).splitlines()[0]
      if _on_all_hosts(not reason):
        self._rename_damaged(damaged)
        return step, state
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

  def _check_layout(self, step: int, abstract_state: Any) -> None:
    """Raises UserError unless names and shapes are those of the state."""
    folder = self.directory / 'checkpoints' / str(step) / _STATE
    saved = _layout(ocp.PyTreeCheckpointHandler().metadata(folder).tree)
    expected = _layout(
      ocp.tree.serialize_tree(abstract_state, keep_empty_nodes=True)
    )
    different = sorted(
      name
      for name in {*saved, *expected}
      if saved.get(name) != expected.get(name)
    )
    if different:
      name = different[0]
      raise errors.UserError(
        f'{folder} holds another kind of state: {name}: expected '
        f'{expected.get(name, "nothing")}, got {saved.get(name, "nothing")} '
        f'({len(different)} arrays differ): resume with the version that wrote '
        'it, or choose another --workdir'
      )

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


def _layout(tree: Any) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each array by its path."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path): tuple(leaf.shape)
    for path, leaf in leaves
    if hasattr(leaf, 'shape')
  }


def _save_args(state: Any, meta: Mapping[str, Any]) -> 'ocp.args.Composite':
  return ocp.args.Composite(
    **{
      _STATE: ocp.args.StandardSave(state),
      _META: ocp.args.JsonSave(dict(meta)),
    }
  )


def _on_all_hosts(condition: bool) -> bool:
  """Returns whether a condition is true on every host."""
  if jax.process_count() == 1:
    return condition
  return bool(multihost_utils.process_allgather(np.int32(condition)).all())


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
