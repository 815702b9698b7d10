"""Checkpoints of a stage: the latest and the best, apart from each other.

Saving is asynchronous and atomic: a step's folder gets its name only when it is
complete. The folder `checkpoints` holds the latest two steps, `best` the one
with the best value so far.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from runtime import errors, files, progress
from segcore.weights import checkpoint_reader

_STATE, _META = checkpoint_reader.STATE, 'meta'


class Checkpoints:
  """Saves and restores the training state of one stage.

  with Checkpoints(directory) as checkpoints:
    found = checkpoints.restore(abstract_state)
    checkpoints.save(100, state)
  """

  def __init__(self, directory: files.Path, keep: int = 2):
    self.directory = directory
    self._latest = _manager(directory / 'checkpoints', keep)
    self._best = _manager(directory / 'best', 1)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exception) -> None:
    with _disk(self.directory):
      self._latest.close()
      self._best.close()

  def save(self, step: int, state: Any) -> None:
    """Starts to save; returns before the state is on disk.

    Raises:
      UserError: the disk is full; the checkpoints before are kept.
    """
    with _disk(self.directory):
      self._latest.save(step, args=_save_args(state, {}))
    progress.record_activity(f'saving step {step} of {self.directory.name}')

  def save_best(self, step: int, state: Any, value: float) -> None:
    """Keeps this state as the best one; returns when it is on disk."""
    with _disk(self.directory):
      # A run that was set back comes by the same steps again.
      for later in self._best.all_steps():
        if later >= step or self.best_value(before=step) is None:
          self._best.delete(later)
      self._best.save(step, args=_save_args(state, {'value': value}))
      self._best.wait_until_finished()

  def best_value(self, before: int) -> float | None:
    """Value of the best state of the steps before the given one.

    A run that was set back may find a best state of its own future: it is left
    out, and will be found again.
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
        *(self.directory, str(error).splitlines()[0]),
      )
      return None

  def wait(self) -> None:
    """Returns when everything saved is on disk."""
    with _disk(self.directory):
      self._latest.wait_until_finished()
      self._best.wait_until_finished()
    progress.record_activity(f'all of {self.directory.name} was saved')

  def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
    """The latest state that can be read, placed as `abstract_state` says.

    A damaged checkpoint is set aside and the one before is taken.

    Returns:
      Step and state, or None if nothing was saved yet.

    Raises:
      UserError: there are checkpoints, and all of them are damaged, or they
        hold a state of another make.
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
      if _all_hosts(not reason):
        self._set_aside(damaged)
        return step, state
      logging.warning(
        'checkpoint %d in %s is damaged (%s): going back to the one before',
        *(step, self.directory, reason or 'on another host'),
      )
      damaged.append(step)
    if damaged:
      raise errors.UserError(
        f'all checkpoints in {self.directory} are damaged: restore them from a '
        'copy, or remove the folder to train this stage again'
      )
    return None

  def _check_layout(self, step: int, abstract_state: Any) -> None:
    """Raises UserError if the names or shapes are not those expected."""
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
        f'{folder} holds another kind of state ({name} found '
        f'{saved.get(name, "nothing")}, expected '
        f'{expected.get(name, "nothing")}; {len(different)} differ): go on '
        'with the version that wrote it, or choose another --workdir'
      )

  def _set_aside(self, steps: Sequence[int]) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again."""
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        aside = self.directory / f'damaged-{step}'
        files.remove_folder(aside)
        (self.directory / 'checkpoints' / str(step)).rename(aside)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('damaged checkpoints set aside')
    self._latest.reload()


class _Manager(ocp.CheckpointManager):
  """Leaves preemption to the loop.

  Orbax would ask jax whether to stop, with a count of its own: the answer comes
  once, and the loop would not hear it.
  """

  def reached_preemption(self, step: int) -> bool:
    return False


def _manager(directory: files.Path, keep: int) -> _Manager:
  return _Manager(
    files.absolute(directory),
    options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
  )


def _layout(tree: Any) -> dict[str, tuple[int, ...]]:
  """Shape of each leaf by its path."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path): tuple(leaf.shape)
    for path, leaf in leaves
    if hasattr(leaf, 'shape')
  }


def _save_args(state: Any, meta: Mapping[str, Any]) -> ocp.args.Composite:
  return ocp.args.Composite(
    **{
      _STATE: ocp.args.StandardSave(state),
      _META: ocp.args.JsonSave(dict(meta)),
    }
  )


def _all_hosts(good: bool) -> bool:
  """Whether it is good on every host."""
  if jax.process_count() == 1:
    return good
  return bool(multihost_utils.process_allgather(np.int32(good)).all())


@contextlib.contextmanager
def _disk(directory: files.Path) -> Iterator[None]:
  """Says in one line that the disk is full, however Orbax puts it."""
  try:
    yield
  except Exception as error:
    full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
    if full or os.strerror(errno.ENOSPC) in str(error):
      raise errors.UserError(
        f'the disk of {directory} is full: the checkpoints before are kept; '
        'free some space and run the same command again'
      ) from error
    raise
