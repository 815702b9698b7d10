"""Layouts of MiT, SegFormer's encoder: its authors' and Hugging Face's.

  arrays = {'block1.0.attn.q.weight': …, …}
  translate_mit_weights(arrays)['params']['encoder']['stage1']['block0']

Hugging Face's names are translated to the authors' first.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Float, Shaped

from segcore.weights.layouts import prefixes, renaming

Arrays = Mapping[str, Shaped[np.ndarray, '...']]

# Of wrappers, from the outside in: of mmsegmentation's segmenters, in which
# DAFormer's student is `model`; of Hugging Face; and of AFA's network.
_PREFIXES = ('module.', 'model.', 'backbone.', 'segformer.', 'encoder.')
# Parts beside the encoder: classifiers and decoders.
_OTHER_PARTS = ('head', 'classifier', 'decode_head')
# (pattern, replacement) from the authors' names to those of `MiT`.
_RULES = (
  (r'^patch_embed(\d+)\.proj\.', r'stage\1.patch_embed.'),
  (r'^patch_embed(\d+)\.norm\.', r'stage\1.patch_norm.'),
  (r'^block(\d+)\.(\d+)\.', r'stage\1.block\2.'),
  (r'^norm(\d+)\.', r'stage\1.norm.'),
  (r'\.dwconv\.dwconv\.', '.dwconv.'),
)
# Modules of stages by Hugging Face's names, which count stages from 0.
_HUGGINGFACE_STAGE = re.compile(r'^(patch_embeddings|block|layer_norm)\.(\d+)')
_STAGE_MODULES = {
  'patch_embeddings': 'patch_embed',
  'block': 'block',
  'layer_norm': 'norm',
}
_HUGGINGFACE_RULES = (
  (r'\.attention\.self\.query\.', '.attn.q.'),
  (r'\.attention\.self\.layer_norm\.', '.attn.norm.'),
  (r'\.attention\.self\.', '.attn.'),
  (r'\.attention\.output\.dense\.', '.attn.proj.'),
  (r'\.layer_norm_(\d)\.', r'.norm\1.'),
  (r'\.layer_norm\.', '.norm.'),
  (r'\.mlp\.dense(\d)\.', r'.mlp.fc\1.'),
)


def translate_mit_weights(flat: Arrays) -> dict[str, Any] | None:
  """Translates the weights of a MiT to the names of `mit.MiT`.

  Prefixes of wrappers, such as 'backbone.', are removed; if some names have a
  prefix, those without it are left out. So are classifiers and decoders. A line
  of the log names prefixes and what is left out. Names that no MiT has are
  kept, so that the comparison with the network lists them.

  Args:
    flat: array by name, as 'block1.0.attn.kv.weight' [2D, D].

  Returns:
    {'params': {'encoder': tree}} in float32; None if the names are those of no
    MiT.
  """
  unwrapped = prefixes.remove_prefixes(flat, _PREFIXES)
  arrays = unwrapped.arrays
  if any(name.startswith('block.0.0.attention.self.') for name in arrays):
    arrays = _rename_huggingface(arrays)
  elif not any(name.startswith('block1.0.attn.') for name in arrays):
    return None
  kept = {
    name: np.asarray(value, np.float32)
    for name, value in arrays.items()
    if name.split('.')[0] not in _OTHER_PARTS
  }
  prefixes.log_unwrapping(
    unwrapped.removed, {*unwrapped.left_out, *(arrays.keys() - kept.keys())}
  )
  leaves = dict(_path_and_value(name, value) for name, value in kept.items())
  return {'params': {'encoder': traverse_util.unflatten_dict(leaves)}}


def _rename_huggingface(arrays: Arrays) -> Arrays:
  """Renames arrays as the authors', and joins key and value to one matrix."""

  def rename(name: str) -> str:
    name = _HUGGINGFACE_STAGE.sub(
      lambda match: f'{_STAGE_MODULES[match[1]]}{int(match[2]) + 1}', name
    )
    return renaming.replace_patterns(name, _HUGGINGFACE_RULES)

  renamed = {rename(name): value for name, value in arrays.items()}
  return renaming.join_projections(renamed, ('key', 'value'), 'kv')


def _path_and_value(
  name: str, value: Float[np.ndarray, '...']
) -> tuple[tuple[str, ...], Float[np.ndarray, '...']]:
  """Returns the path of an array in the encoder, and its value there."""
  *modules, leaf = renaming.replace_patterns(name, _RULES).split('.')
  leaf, value = renaming.convert_leaf(leaf, value)
  return (*modules, leaf), value
