"""Layouts of vision transformers: DINO, DINOv2, timm and Hugging Face.

  arrays = {'blocks.0.attn.qkv.weight': …, …}
  translate_vit_weights(arrays)['params']['encoder']['block0']

DINO and DINOv2 have timm's names; Hugging Face's are translated to these first.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Float, Shaped

from segcore.weights.layouts import huggingface, prefixes, renaming

Arrays = Mapping[str, Shaped[np.ndarray, '...']]

# Parts beside the encoder: classifiers, heads and decoders of pretraining, and
# tokens that replace masked patches in it.
_OTHER_PARTS = (
  *('head', 'fc_norm', 'pre_logits', 'pooler', 'classifier'),
  *('dino_head', 'ibot_head', 'decoder', 'mask_token', 'masked_embed'),
)
_TOP = {'reg_token': 'register_tokens'}
# Trainings of DINOv2 store blocks in chunks; the number of the block is global.
_CHUNK = re.compile(r'^blocks\.\d+\.(\d+)\.')


def translate_vit_weights(flat: Arrays) -> dict[str, Any] | None:
  """Translates the weights of a plain ViT to the names of `vit.ViT`.

  Prefixes of wrappers, such as 'backbone.', are removed; if some names have a
  prefix, those without it are left out. So are heads and mask tokens. A line of
  the log names prefixes and what is left out. Where the position table has no
  row for the class token, as in timm's files with registers, a row of zeros is
  added: these files have added the position to the token. Names that no ViT has
  are kept, so that the comparison with the network lists them.

  Args:
    flat: array by name, as 'blocks.0.attn.qkv.weight' [3D, D].

  Returns:
    {'params': {'encoder': tree}} in float32; 'grid', height and width of the
    position table, if it is a square; and 'fields', the fields of the encoder
    that names determine and shapes do not. None if the names are those of no
    ViT.
  """
  unwrapped = prefixes.remove_prefixes(flat, huggingface.PREFIXES)
  arrays, fields = unwrapped.arrays, {}
  if huggingface.is_huggingface_vit(arrays):
    fields = {
      'position_rule': 'huggingface',
      'norm_epsilon': huggingface.norm_epsilon_of(arrays),
    }
    arrays = huggingface.rename_to_timm(arrays)
  else:
    unwrapped = prefixes.remove_prefixes(flat)
    arrays = unwrapped.arrays
    fields = {'position_rule': _rule_of(arrays)}
  arrays = {_CHUNK.sub(r'blocks.\1.', name): x for name, x in arrays.items()}
  if not any(name.startswith('blocks.0.attn.') for name in arrays):
    return None
  kept = {
    name: np.asarray(value, np.float32)
    for name, value in arrays.items()
    if not name.startswith(_OTHER_PARTS)
  }
  prefixes.log_unwrapping(
    unwrapped.removed, {*unwrapped.left_out, *(arrays.keys() - kept.keys())}
  )
  grid = _complete_table(kept)
  leaves = dict(_path_and_value(name, value) for name, value in kept.items())
  return {
    'params': {'encoder': traverse_util.unflatten_dict(leaves)},
    'fields': fields,
    **({'grid': grid} if grid else {}),
  }


def _rule_of(arrays: Arrays) -> str:
  """Returns the rule of position tables, as far as names show it."""
  tokens = ('reg_token', 'register_tokens')
  if any(name.startswith((*tokens, 'fc_norm.')) for name in arrays):
    return 'timm'  # Also DINOv2's, with registers.
  return 'dino'


def _complete_table(
  arrays: dict[str, Float[np.ndarray, '...']],
) -> tuple[int, int] | None:
  """Adds the row of the class token, if it lacks; returns the table's grid."""
  table = arrays.get('pos_embed')
  if table is None or table.ndim != 3:
    return None
  has_token = 'cls_token' in arrays
  num_rows = table.shape[1]
  if has_token and math.isqrt(num_rows) ** 2 == num_rows:
    zeros = np.zeros_like(table[:, :1])
    arrays['pos_embed'] = np.concatenate([zeros, table], axis=1)
  else:
    num_rows -= has_token
  side = math.isqrt(num_rows)
  return (side, side) if side * side == num_rows else None


def _path_and_value(
  name: str, value: Float[np.ndarray, '...']
) -> tuple[tuple[str, ...], Float[np.ndarray, '...']]:
  """Returns the path of an array in the encoder, and its value there."""
  name = re.sub(r'^blocks\.(\d+)\.', r'block\1.', name)
  *modules, leaf = name.replace('patch_embed.proj.', 'patch_embed.').split('.')
  leaf, value = renaming.convert_leaf(leaf, value)
  return (*modules, _TOP.get(leaf, leaf)), value
