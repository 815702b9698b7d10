"""Hugging Face's names of a vision transformer, in those of timm and DINO."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from segcore.weights.layouts import renaming

# Of wrappers, from the outside in; `encoder.` is a part of the names here.
PREFIXES = (
  *('module.', 'model.', 'backbone.'),
  *('vit.', 'deit.', 'dinov2.', 'dinov2_with_registers.'),
)
# (pattern, replacement), applied to each name one after the other.
_RULES = (
  (r'^embeddings\.position_embeddings$', 'pos_embed'),
  (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
  (r'^embeddings\.', ''),
  (r'^encoder\.layer\.(\d+)\.', r'blocks.\1.'),
  (r'\.attention\.output\.dense\.', '.attn.proj.'),
  (r'\.attention\.attention\.', '.attn.'),
  (r'\.layernorm_before\.', '.norm1.'),
  (r'\.layernorm_after\.', '.norm2.'),
  (r'\.intermediate\.dense\.', '.mlp.fc1.'),
  (r'\.output\.dense\.', '.mlp.fc2.'),
  (r'\.layer_scale(\d)\.lambda1$', r'.ls\1.gamma'),
  (r'^layernorm\.', 'norm.'),
)
Arrays = Mapping[str, Shaped[np.ndarray, '...']]


def is_huggingface_vit(arrays: Arrays) -> bool:
  """Returns whether names without prefixes are those of Hugging Face's ViT."""
  return any(
    name.startswith('encoder.layer.0.attention.attention.') for name in arrays
  )


def norm_epsilon_of(arrays: Arrays) -> float:
  """Returns the epsilon of the norms: 1e-12 for ViT, 1e-6 for Dinov2."""
  is_vit = any('.layernorm_before.' in name for name in arrays)
  return 1e-12 if is_vit else 1e-6


def rename_to_timm(arrays: Arrays) -> dict[str, Any]:
  """Renames arrays, and joins query, key and value to one matrix [3D, D].

  Names that no such network has are kept.
  """
  renamed = {
    renaming.replace_patterns(name, _RULES): value
    for name, value in arrays.items()
  }
  return renaming.join_projections(renamed, ('query', 'key', 'value'), 'qkv')
