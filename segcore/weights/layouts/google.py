"""Layouts of Google's public weight files: R50+ViT (and AugReg), and BiT.

A table of layouts, each for a family of files. Names are replaced by those of
this project, and stacked blocks are taken apart. No parameter is dropped: the
layers of a classifier become parts beside the encoder.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float, Shaped

from runtime import console

# Prefix of the parameters in a training's checkpoint, and its other arrays.
_PREFIXES = ('opt/target/', 'params/')
_NOT_PARAMETERS = re.compile('(opt/(?!target/)|extra/)')


@dataclasses.dataclass(frozen=True)
class Layout:
  """The names in a family of files.

  Attributes:
    family: name of the family, for messages.
    marker: a name that all files of this family have, and no others.
    rules: (pattern, replacement), applied to each name one after the other.
  """

  family: str
  marker: str
  rules: tuple[tuple[str, str], ...]


LAYOUTS = (
  # The hybrids of the ViT release and of AugReg: a post-activation ResNet and a
  # transformer. A block's modules are numbered through (LayerNorm_0,
  # MultiHeadDotProductAttention_1, …), or for each class apart.
  Layout(
    'R50+ViT',
    'conv_root/kernel',
    (
      ('^pos_embedding$', 'Transformer/posembed_input/pos_embedding'),
      ('/MultiHeadDotProductAttention_1/', '/MultiHeadDotProductAttention_0/'),
      ('/LayerNorm_2/', '/LayerNorm_1/'),
      ('/MlpBlock_3/', '/MlpBlock_0/'),
      ('^(?!head/|pre_logits/)', 'encoder/'),
    ),
  ),
  # BiT: a pre-activation ResNet.
  Layout(
    'BiT',
    'resnet/root_block/standardized_conv2d/kernel',
    (
      ('^resnet/head/conv2d/', 'head/'),
      ('^resnet/root_block/standardized_conv2d/', 'encoder/conv_root/'),
      ('^resnet/group_norm/', 'encoder/gn_last/'),
      ('^resnet/', 'encoder/'),
      ('/unit0*', '/unit'),
      ('/a/proj/standardized_conv2d/', '/conv_proj/'),
      ('/([abc])/standardized_conv2d/', r'/conv_\1/'),
      ('/([abc])/group_norm/', r'/gn_\1/'),
      ('/gamma$', '/scale'),
      ('/beta$', '/bias'),
    ),
  ),
)


def translate_google_weights(
  flat: Mapping[str, Shaped[np.ndarray, '...']],
) -> dict[str, Any] | None:
  """Translates the weights of a known family to the names of this project.

  Args:
    flat: array by name.

  Returns:
    {'params': {'encoder': tree, 'head': tree}} in float32; None if the names
    are of none of the families.
  """
  params = _without_prefix(flat)
  for layout in LAYOUTS:
    if layout.marker in params:
      renamed = {_rename(name, layout): x for name, x in params.items()}
      console.print_line(f'read public weights of the family {layout.family}')
      leaves = _normalize_shapes(renamed)
      return {'params': traverse_util.unflatten_dict(leaves, sep='/')}
  return None


def _without_prefix(
  flat: Mapping[str, Shaped[np.ndarray, '...']],
) -> dict[str, Shaped[np.ndarray, '...']]:
  """Returns the parameters of a training's checkpoint, or all arrays."""
  for prefix in _PREFIXES:
    if any(name.startswith(prefix) for name in flat):
      return {
        name.removeprefix(prefix): x
        for name, x in flat.items()
        if not _NOT_PARAMETERS.match(name)
      }
  return dict(flat)


def _rename(name: str, layout: Layout) -> str:
  for pattern, replacement in layout.rules:
    name = re.sub(pattern, replacement, name)
  return name


def _normalize_shapes(
  flat: Mapping[str, Shaped[np.ndarray, '...']],
) -> dict[str, Float[np.ndarray, '...']]:
  """Takes stacked blocks apart, and flattens vectors of norms; in float32."""
  leaves = {}
  for name, x in flat.items():
    if x.dtype.kind == 'V':  # In .npz, bfloat16 is a type of two raw bytes.
      x = x.view(jnp.bfloat16)
    x = x.astype(np.float32, copy=False)
    if re.search('/gn[^/]*/(scale|bias)$', name):
      x = x.reshape(-1)  # [1, 1, 1, D] in some files.
    if '/encoderblock/' in name:
      for i, layer in enumerate(x):
        leaves[name.replace('/encoderblock/', f'/encoderblock_{i}/')] = layer
    else:
      leaves[name] = x
  return leaves
