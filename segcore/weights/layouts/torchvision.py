"""Weights of ResNets by the names that torch gives them.

  translate({'layer1.0.conv1.weight': …, …})['params']['encoder']['block1']

Files are `.npz` or `.safetensors`. Torch's own are pickles, which are not
opened; where torch is installed, a `.pth` becomes the latter by

  weights = torch.load('w.pth', weights_only=True)
  safetensors.torch.save_file(weights, 'w.safetensors')
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from runtime import console

# Wrappers, from the outside in; what stands beside them is other networks.
_PREFIXES = ('module.', 'encoder.', 'backbone.')
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


def translate(flat: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
  """The encoder that a torch ResNet's weights are, named for `DilatedResNet`.

  The classifier `fc` and what stands beside the prefixes 'module.', 'encoder.'
  and 'backbone.' are left out, and said. A name that this kind of network has
  not keeps its name, so that the comparison with the network shows it.

  Args:
    flat: array by name, as 'layer1.0.conv1.weight' [O,I,h,w] or 'bn1.bias'.

  Returns:
    {'params': {'encoder': tree}, 'batch_stats': {'encoder': tree}} in float32,
    or None if the names are not of this kind.
  """
  left = set()
  for prefix in _PREFIXES:
    inside = [name for name in flat if name.startswith(prefix)]
    if inside:
      left.update(flat.keys() - inside)
      flat = {name.removeprefix(prefix): flat[name] for name in inside}
  if not any(name.startswith('layer1.0.') for name in flat):
    return None
  found: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  for name, value in flat.items():
    if name.startswith('fc.'):
      left.add(name)
    elif not name.endswith('.num_batches_tracked'):
      kind, path = _place(name)
      if path[-1] == 'kernel' and value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
      found[kind][path] = np.asarray(value, np.float32)
  if left:
    tops = sorted({name.split('.')[0] for name in left})
    console.log(f"torch's weights: left {', '.join(tops)}")
  return {
    kind: {'encoder': traverse_util.unflatten_dict(leaves)}
    for kind, leaves in found.items()
  }


def _place(name: str) -> tuple[str, tuple[str, ...]]:
  """The collection and the path of an array."""
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
  kind, leaf = _LEAVES[leaf]
  return kind, (*path, leaf)
