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

from runtime import errors
from segcore.weights.layouts import prefixes, renaming

# Parts beside the encoder: classifiers (`last_linear` is older timm's), and the
# heads that pretraining adds: of SwAV and PASS, and of DINO; `layer5` is
# DeepLabv2's classifier.
_OTHER_PARTS = (
  *('fc', 'last_linear', 'classifier', 'head', 'layer5'),
  *('projection_head', 'prototypes', 'predictor', 'projector'),
)
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


def translate_torchvision_weights(
  flat: Mapping[str, Shaped[np.ndarray, '...']],
) -> dict[str, Any] | None:
  """Translates the weights of a torch ResNet to the names of `DilatedResNet`.

  Classifiers and heads of pretraining, and what has none of the prefixes (see
  `prefixes`) if others have, are left out; a line of the log names them, and
  the prefixes.
  Names that no such network has are kept, so that the comparison with the
  network lists them.

  Args:
    flat: array by name, as 'layer1.0.conv1.weight' [O,I,h,w] or 'bn1.bias'.

  Returns:
    {'params': {'encoder': tree}, 'batch_stats': {'encoder': tree}} in float32,
    or None if the names are not those of a torch ResNet.

  Raises:
    UserError: shortcuts average before their convolution (ResNet-D).
  """
  unwrapped = prefixes.remove_prefixes(flat)
  flat, left_out = unwrapped.arrays, set(unwrapped.left_out)
  if not any(name.startswith('layer1.0.') for name in flat):
    return None
  _check_shortcuts(flat)
  leaves: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  for name, value in flat.items():
    if name.split('.')[0].startswith(_OTHER_PARTS):
      left_out.add(name)
    elif not name.endswith('.num_batches_tracked'):
      collection, path = _path_of(name)
      if path[-1] == 'kernel' and value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)  # [O,I,h,w] to [h,w,I,O].
      leaves[collection][path] = np.asarray(value, np.float32)
  prefixes.log_unwrapping(unwrapped.removed, left_out)
  return {
    collection: {'encoder': traverse_util.unflatten_dict(tree)}
    for collection, tree in leaves.items()
  }


def _check_shortcuts(flat: Mapping[str, Shaped[np.ndarray, '...']]) -> None:
  """Raises UserError if shortcuts are those of timm's resnet50d and others."""
  for name, value in flat.items():
    if name.endswith('.downsample.1.weight') and value.ndim == 4:
      raise errors.UserError(
        f'{name}: expected a norm [D] after the convolution of a shortcut, got '
        f'a convolution {value.shape}: shortcuts of this ResNet (ResNet-D) '
        'average first, which is another network; use a ResNet without them, '
        "as timm's resnet50 or torchvision's"
      )


def _path_of(name: str) -> tuple[str, tuple[str, ...]]:
  """Returns the collection and the path of an array."""
  module, _, leaf = name.rpartition('.')
  unit = _UNIT.fullmatch(module)
  if unit:
    inner = _PROJECTION.get(unit[3], unit[3])
    path = (f'block{unit[1]}', f'unit{int(unit[2]) + 1}', inner)
  else:
    path = (_STEM.get(module, module),)
  if leaf not in renaming.NORM_LEAVES:
    return 'params', (*path, leaf)
  if path[-1].startswith('conv') and leaf == 'weight':
    return 'params', (*path, 'kernel')
  collection, leaf = renaming.NORM_LEAVES[leaf]
  return collection, (*path, leaf)
