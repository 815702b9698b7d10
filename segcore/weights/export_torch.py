"""A ResNet encoder as a state dict of torchvision, for other libraries.

  python -m segcore.weights runs/moco/represent --torchvision=moco.safetensors

The inverse of `layouts.torchvision`: names of `torchvision.models.resnet50`
without `fc`. The first convolution expects RGB in [0, 1] of which ImageNet's
mean was subtracted and which was divided by its deviation, as torchvision's.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Shaped

from runtime import errors, files
from segcore.weights import load
from segcore.weights.layouts import renaming

# Endings of the files that are written.
SUFFIXES = ('.safetensors', '.npz')
_STEM = {'conv_root': 'conv1', 'bn_root': 'bn1'}
_SHORTCUT = {'conv_proj': 'downsample.0', 'bn_proj': 'downsample.1'}
_LAYER = re.compile(r'(conv|bn)\d')
_UNIT = re.compile(r'block(\d+)/unit(\d+)/(\w+)')
# Leaf of torch by collection and leaf of flax; convolutions have a kernel.
_LEAVES = {names: leaf for leaf, names in renaming.NORM_LEAVES.items()}
_LEAVES['params', 'kernel'] = 'weight'


def make_torchvision_state_dict(
  variables: Mapping[str, Any],
) -> dict[str, Shaped[np.ndarray, '...']]:
  """Renames the encoder's arrays to those of torchvision's ResNets.

  Running variances stay as they are, averages of biased ones.

  Args:
    variables: 'params' and 'batch_stats', each with the tree 'encoder' of a
      `DilatedResNet` with the plain stem.

  Returns:
    Array by name, in float32: convolutions [O, I, h, w], batch norms [D], and
    `num_batches_tracked`, int64 0, of each norm.

  Raises:
    UserError: the encoder is none of torchvision's.
  """
  state = {}
  for collection in ('params', 'batch_stats'):
    tree = variables.get(collection, {}).get('encoder', {})
    for path, value in traverse_util.flatten_dict(tree, sep='/').items():
      module, _, leaf = path.rpartition('/')
      name = _module_name(module)
      if name is None or (collection, leaf) not in _LEAVES:
        raise errors.UserError(
          f'{collection}/encoder/{path}: expected the encoder dilated_resnet '
          "with stem='plain', which torchvision's ResNets equal, got an array "
          'that they do not have'
        )
      array = np.asarray(value, np.float32)
      if leaf == 'kernel':
        array = array.transpose(3, 2, 0, 1)
      # Contiguous: safetensors writes the memory as it is.
      state[f'{name}.{_LEAVES[collection, leaf]}'] = np.ascontiguousarray(array)
      if leaf == 'var':
        state[f'{name}.num_batches_tracked'] = np.zeros((), np.int64)
  root = state.get('conv1.weight')
  if root is None or root.shape[2:] != (7, 7):
    raise errors.UserError(
      'params/encoder/conv_root/kernel: expected the first convolution of 7x7 '
      "of dilated_resnet with stem='plain', got "
      f'{"none" if root is None else root.shape}'
    )
  return state


def _module_name(path: str) -> str | None:
  """Returns torchvision's name of a module; None if it has no such module."""
  if path in _STEM:
    return _STEM[path]
  unit = _UNIT.fullmatch(path)
  if not unit:
    return None
  inner = _SHORTCUT.get(unit[3], unit[3])
  if inner == unit[3] and not _LAYER.fullmatch(inner):
    return None
  return f'layer{unit[1]}.{int(unit[2]) - 1}.{inner}'


def write_torchvision_encoder(source: files.Path, target: files.Path) -> int:
  """Writes the encoder of a run or of a weight file for torchvision.

  Args:
    source: folder of a stage, or a weight file.
    target: file that is written, `.safetensors` or `.npz`.

  Returns:
    The number of arrays.

  Raises:
    UserError: the ending is another one, the encoder is none of torchvision's,
      or the file cannot be written.
  """
  if target.suffix not in SUFFIXES:
    raise errors.UserError(
      f'--torchvision={target}: expected a file {" or ".join(SUFFIXES)}'
    )
  state = make_torchvision_state_dict(load.read_weight_variables(source))
  try:
    if target.suffix == '.npz':
      with target.open('wb') as file:
        np.savez(file, **state)
    else:
      target.write_bytes(safetensors.numpy.save(state))
  except OSError as error:
    raise errors.UserError(
      f'--torchvision={target}: expected a file that can be written, got '
      f'{error.strerror or error}: make the folder, or give another one'
    ) from error
  return len(state)
