"""Public weight files: known by their names, and renamed to ours.

A table of layouts, each a family of files. What this project calls otherwise is
renamed, what a file stacks or pads is taken apart, and of the parameters none
is dropped: a classifier's layers become parts of their own beside the encoder.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from runtime import console

# Where checkpoints of a training keep the parameters, and what else they hold.
_PREFIXES = ('opt/target/', 'params/')
_NOT_PARAMETERS = re.compile('(opt/(?!target/)|extra/)')


@dataclasses.dataclass(frozen=True)
class Layout:
  """A family of files.

  Attributes:
    family: what it is called.
    sign: a name that files of this family have and no others.
    rules: (pattern, replacement), applied to each name one after the other.
  """

  family: str
  sign: str
  rules: tuple[tuple[str, str], ...]


LAYOUTS = (
  # The hybrids of the ViT release and of AugReg: a post-activation ResNet and a
  # transformer. Modules are counted in one row (LayerNorm_0,
  # MultiHeadDotProductAttention_1, …) or by their class.
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


def translate(flat: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
  """{'params': {'encoder': tree, 'head': tree}} in float32, by our names.

  None if the names are of none of the families.
  """
  found = _without_prefix(flat)
  for layout in LAYOUTS:
    if layout.sign in found:
      renamed = {_rename(name, layout): x for name, x in found.items()}
      console.log(f'these are public weights of the family {layout.family}')
      return {'params': traverse_util.unflatten_dict(_shaped(renamed), sep='/')}
  return None


def _without_prefix(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The parameters of a training's checkpoint, or all there is."""
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


def _shaped(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Stacked blocks apart, vectors of norms with one axis, all in float32."""
  found = {}
  for name, x in flat.items():
    if x.dtype.kind == 'V':  # numpy's files know bfloat16 by its size only.
      x = x.view(jnp.bfloat16)
    x = x.astype(np.float32, copy=False)
    if re.search('/gn[^/]*/(scale|bias)$', name):
      x = x.reshape(-1)
    if '/encoderblock/' in name:
      for i, layer in enumerate(x):
        one = name.replace('/encoderblock/', f'/encoderblock_{i}/')
        found[one] = layer
    else:
      found[name] = x
  return found
