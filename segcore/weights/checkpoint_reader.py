"""Reads fields of a saved training state, without the training that saved it.

fields = checkpoint_reader.read_checkpoint_fields(
  directory / 'checkpoints', ('params', 'batch_stats')
)
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epy

from runtime import errors, files
from segcore.weights import manifest

with epy.lazy_imports():
  import orbax.checkpoint as ocp


def read_checkpoint_fields(
  directory: files.Path, names: Sequence[str] = ('params', 'batch_stats')
) -> dict[str, Any]:
  """Reads fields of the latest state in a folder of checkpoints.

  Args:
    directory: a `checkpoints` or `best` folder.
    names: fields of the state; those that it lacks are left out.

  Returns:
    Trees of numpy arrays, by name.

  Raises:
    UserError: there is no checkpoint, it cannot be read, or its arrays differ
      from those that were saved.
  """
  steps = [int(p.name) for p in directory.glob('*') if p.name.isdigit()]
  if not steps:
    below = sorted(str(p.parent) for p in directory.glob('*/checkpoints'))
    advice = (
      f'did you mean {" or ".join(below)}?' if below else 'train it first'
    )
    raise errors.UserError(f'no checkpoint in {directory}: {advice}')
  folder = files.absolute_path(directory) / str(max(steps))
  try:
    saved = manifest.read_manifest(folder)
    fields = _restore(folder / manifest.STATE, names)
    if saved is not None:
      saved.check(manifest.manifest_arrays_by_path(fields))
    return fields
  except Exception as error:  # Orbax has no class for damaged files.
    lines = str(error).splitlines() or [type(error).__name__]
    raise errors.UserError(
      f'{folder} cannot be read ({lines[0]}): restore it from a copy or train '
      'again'
    ) from error


def _restore(folder: files.Path, names: Sequence[str]) -> dict[str, Any]:
  """Reads fields of a saved state as numpy arrays, unchecked."""
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata(folder).tree
  item = {name: tree[name] for name in names if name in tree}
  return handler.restore(
    folder,
    args=ocp.args.PyTreeRestore(
      item=item,
      partial_restore=True,
      # As numpy arrays: the devices that saved them may not exist here.
      restore_args=jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item
      ),
    ),
  )
