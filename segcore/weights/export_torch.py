"""A ResNet encoder as a state dict of torchvision or of detectron2.

  python -m segcore.weights runs/moco/represent --torchvision=moco.safetensors
  python -m segcore.weights runs/moco/represent --detectron2=moco.pkl

The inverse of `layouts.torchvision`: names of `torchvision.models.resnet50`
without `fc`, or those that detectron2 gives to the same arrays. What the first
convolution expects is `INPUT`, which is written into the files.
"""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Shaped

from runtime import errors, files
from segcore.weights import load
from segcore.weights.layouts import renaming

# Endings of the files that are written, by library.
SUFFIXES = {
  'torchvision': ('.safetensors', '.npz'),
  'detectron2': ('.pkl',),
}
# What the first convolution expects, and what the arrays are. Mean and
# deviation are torchvision's defaults.
INPUT = {
  'channels': 'RGB',
  'range': '[0, 1]',
  'mean': '0.485, 0.456, 0.406',
  'std': '0.229, 0.224, 0.225',
  'axes': 'convolutions [out, in, height, width]',
  'batch_norm': 'running variances are averages of biased ones; epsilon 1e-5',
}
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


def rename_for_detectron2(
  state: Mapping[str, Shaped[np.ndarray, '...']],
) -> dict[str, Shaped[np.ndarray, '...']]:
  """Renames a state dict of torchvision as the ResNets of detectron2.

  >>> [*rename_for_detectron2({'layer1.0.downsample.1.bias': np.zeros(4)})]
  ['res2.0.shortcut.norm.bias']

  Args:
    state: result of `make_torchvision_state_dict`.

  Returns:
    The arrays without `num_batches_tracked`.
  """
  renamed = {}
  for name, value in state.items():
    if name.endswith('num_batches_tracked'):
      continue
    if not name.startswith('layer'):
      name = f'stem.{name}'
    name = re.sub(r'^layer(\d)', lambda m: f'res{int(m[1]) + 1}', name)
    name = name.replace('downsample.0', 'shortcut')
    name = name.replace('downsample.1', 'shortcut.norm')
    renamed[re.sub(r'\bbn(\d)', r'conv\1.norm', name)] = value
  return renamed


def write_encoder(source: files.Path, target: files.Path, library: str) -> int:
  """Writes the encoder of a run or of a weight file for another library.

  Args:
    source: folder of a stage, or a weight file.
    target: file that is written, with one of the library's `SUFFIXES`.
    library: 'torchvision' or 'detectron2'.

  Returns:
    The number of arrays.

  Raises:
    UserError: the ending is another one, the encoder is none of torchvision's,
      or the file cannot be written.
  """
  if target.suffix not in SUFFIXES[library]:
    raise errors.UserError(
      f'--{library}={target}: expected a file {" or ".join(SUFFIXES[library])}'
    )
  state = make_torchvision_state_dict(load.read_weight_variables(source))
  if library == 'detectron2':
    state = rename_for_detectron2(state)
  try:
    target.write_bytes(_ENCODE[target.suffix](state))
  except OSError as error:
    raise errors.UserError(
      f'--{library}={target}: expected a file that can be written, got '
      f'{error.strerror or error}: make the folder, or give another one'
    ) from error
  return len(state)


def _encode_npz(state: Mapping[str, np.ndarray]) -> bytes:
  """Encodes arrays as numpy's archive, `INPUT` as its comment."""
  content = io.BytesIO()
  np.savez(content, **state)
  with zipfile.ZipFile(content, 'a') as archive:
    # Another array would not be one of the network's.
    archive.comment = json.dumps(INPUT).encode()
  return content.getvalue()


def _encode_detectron2(state: Mapping[str, np.ndarray]) -> bytes:
  """Encodes arrays as the pickle that detectron2's checkpointer reads."""
  content = io.BytesIO()
  pickler = pickle.Pickler(content, protocol=4)
  # Numpy's own form names modules that numpy before 1.26 does not have.
  pickler.dispatch_table = {
    np.ndarray: lambda x: (
      np.ndarray,
      (x.shape, x.dtype.str, bytearray(x.tobytes())),
    )
  }
  pickler.dump(
    {
      'model': dict(state),
      '__author__': 'segcore.weights',
      'matching_heuristics': True,
      'input': INPUT,
    }
  )
  return content.getvalue()


# Encoding of a state dict by the ending of the file.
_ENCODE = {
  '.safetensors': lambda state: safetensors.numpy.save(
    state, {'format': 'pt', **INPUT}
  ),
  '.npz': _encode_npz,
  '.pkl': _encode_detectron2,
}
