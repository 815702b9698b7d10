"""The manifest of a checkpoint: shape, type and checksum of every array.

  meta = manifest.make_manifest(state, {'value': 0.7})  # For the item `meta`.
  saved = manifest.read_manifest(folder)  # None in older checkpoints.
  saved.check(arrays)

Orbax keeps no checksums: a flipped bit would be restored as another number, and
a lost chunk as zeros. The manifest is an item of the checkpoint, so that it
appears together with the arrays, when their folder is renamed into place.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epy

from runtime import files
from segcore.weights import checksums

with epy.lazy_imports():
  import orbax.checkpoint as ocp

# Names of the items of a checkpoint.
STATE, META = 'state', 'meta'
_ARRAYS, _DIGEST = 'arrays', 'digest'


class Layout(NamedTuple):
  """The shape and the type of an array.

  Attributes:
    shape: shape of the whole array.
    dtype: name of the type: 'float32'.
  """

  shape: tuple[int, ...]
  dtype: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """Layouts, checksums and values of a checkpoint when it was saved.

  Attributes:
    layout: shape and type of each array, by its path.
    checksums: checksum of each array, by its path.
    values: JSON values saved with the state, such as its metric.
  """

  layout: Mapping[str, Layout]
  checksums: Mapping[str, int]
  values: Mapping[str, Any]

  def check(self, arrays: Mapping[str, Any]) -> None:
    """Checks arrays against what was saved; all hosts must call it together.

    Args:
      arrays: some of those of the manifest, by path.

    Raises:
      ValueError: an array differs; the message names the first one.
    """
    actual = checksums.array_checksums(dict(arrays))
    different = [
      name for name, value in actual.items() if value != self.checksums[name]
    ]
    if different:
      more = f' and {len(different) - 1} more' if len(different) > 1 else ''
      raise ValueError(
        f'{different[0]}{more}: the checksum differs from that of the array '
        'when it was saved'
      )


def manifest_arrays_by_path(tree: Any) -> dict[str, Any]:
  """Returns the arrays of a state, or of a part of it, by path."""
  serialized = ocp.tree.serialize_tree(tree, keep_empty_nodes=True)
  leaves, _ = jax.tree_util.tree_flatten_with_path(serialized)
  return {
    jax.tree_util.keystr(path): leaf
    for path, leaf in leaves
    if hasattr(leaf, 'shape')
  }


def manifest_array_layouts(arrays: Mapping[str, Any]) -> dict[str, Layout]:
  """Returns shape and type of arrays, or of descriptions of them."""
  return {
    name: Layout(tuple(x.shape), str(x.dtype)) for name, x in arrays.items()
  }


def make_manifest(state: Any, values: Mapping[str, Any]) -> dict[str, Any]:
  """Makes the content of a manifest; all hosts must call it together.

  Args:
    state: the training state.
    values: JSON values to save with it.

  Returns:
    A mapping for JSON.
  """
  arrays = manifest_arrays_by_path(state)
  sums = checksums.array_checksums(arrays)
  content = {
    **values,
    _ARRAYS: {
      name: [list(layout.shape), layout.dtype, f'{sums[name]:016x}']
      for name, layout in manifest_array_layouts(arrays).items()
    },
  }
  return {**content, _DIGEST: _digest(content)}


def read_manifest(folder: files.Path) -> Manifest | None:
  """Reads the manifest of a checkpoint.

  Args:
    folder: folder of the checkpoint of one step.

  Returns:
    The manifest; None if the checkpoint is of a version that wrote none.

  Raises:
    Exception: it is damaged (Orbax has no class for damaged files).
  """
  content = ocp.JsonCheckpointHandler().restore(folder / META)
  # Versions without checksums wrote this and nothing else.
  if content == {} or [*content] == ['value']:
    return None
  content = dict(content)
  if content.pop(_DIGEST, None) != _digest(content):
    raise ValueError(f'the manifest {folder / META} is damaged')
  arrays = content.pop(_ARRAYS)
  return Manifest(
    {name: Layout(tuple(x[0]), x[1]) for name, x in arrays.items()},
    {name: int(x[2], 16) for name, x in arrays.items()},
    content,
  )


def read_manifest_best_value(folder: files.Path) -> float:
  """Reads the value by which a state was the best one.

  Raises:
    Exception: it is damaged.
  """
  manifest = read_manifest(folder)
  if manifest is None:
    return ocp.JsonCheckpointHandler().restore(folder / META)['value']
  return manifest.values['value']


def _digest(content: Mapping[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
