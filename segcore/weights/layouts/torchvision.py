"""Layout of torch's ResNet weights, as torchvision and others publish them.

  arrays = {'layer1.0.conv1.weight': …, …}
  translate_torchvision_weights(arrays)['params']['encoder']['block1']

Files are torch's own, `.npz` or `.safetensors`.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Shaped

from runtime import console

# Prefixes of wrappers, from the outside in; names without are other networks.
# `encoder_q` is MoCo's, beside the momentum encoder `encoder_k`.
_PREFIXES = ('module.', 'encoder_q.', 'encoder.', 'backbone.')
_UNIT = re.compile(r'layer(\d+)\.(\d+)\.(.+)')
_STEM = {
  'conv1': 'conv_root',
  'conv1.0': 'conv_stem1',
  'conv1.1': 'bn_stem1',
  'conv1.3': 'conv_stem2',
  'conv1.4': 'bn_stem2',
  'conv1.6': 'conv_root',
  'bn1': 'bn_root',
}
_PROJECTION = {'downsample.0': 'conv_proj', 'downsample.1': 'bn_proj'}
_LEAVES = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}


def translate_torchvision_weights(
  flat: Mapping[str, Shaped[np.ndarray, '...']],
) -> dict[str, Any] | None:
  """Translates the weights of a torch ResNet to the names of `DilatedResNet`.

  The classifier `fc`, and what has none of the prefixes 'module.',
  'encoder_q.', 'encoder.' and 'backbone.' if others have, are left out; a line
  of the log names them, and the prefixes.
  Names that no such network has are kept, so that the comparison with the
  network lists them.

  Args:
    flat: array by name, as 'layer1.0.conv1.weight' [O,I,h,w] or 'bn1.bias'.

  Returns:
    {'params': {'encoder': tree}, 'batch_stats': {'encoder': tree}} in float32,
    or None if the names are not those of a torch ResNet.
  """
  left_out, removed = set(), ''
  for prefix in _PREFIXES:
    inside = [name for name in flat if name.startswith(prefix)]
    if inside:
      left_out.update(flat.keys() - inside)
      flat = {name.removeprefix(prefix): flat[name] for name in inside}
      removed += prefix
  if not any(name.startswith('layer1.0.') for name in flat):
    return None
  leaves: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  for name, value in flat.items():
    if name.startswith('fc.'):
      left_out.add(name)
    elif not name.endswith('.num_batches_tracked'):
      collection, path = _path_of(name)
      if path[-1] == 'kernel' and value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)  # [O,I,h,w] to [h,w,I,O].
      leaves[collection][path] = np.asarray(value, np.float32)
  notes = [f'removed the prefix {removed}'] if removed else []
  if left_out:
    modules = sorted({name.split('.')[0] for name in left_out})
    notes.append(f'left out {", ".join(modules)}')
  if notes:
    console.print_line(f"torch's weights: {'; '.join(notes)}")
  return {
    collection: {'encoder': traverse_util.unflatten_dict(tree)}
    for collection, tree in leaves.items()
  }


def _path_of(name: str) -> tuple[str, tuple[str, ...]]:
  """Returns the collection and the path of an array."""
  module, _, leaf = name.rpartition('.')
  unit = _UNIT.fullmatch(module)
  if unit:
    inner = _PROJECTION.get(unit[3], unit[3])
    path = (f'block{unit[1]}', f'unit{int(unit[2]) + 1}', inner)
  else:
    path = (_STEM.get(module, module),)
  if leaf not in _LEAVES:
    return 'params', (*path, leaf)
  if path[-1].startswith('conv') and leaf == 'weight':
    return 'params', (*path, 'kernel')
  collection, leaf = _LEAVES[leaf]
  return collection, (*path, leaf)
