"""Fake weight files: names of public ones, random values.

They are small by default, for the networks `HYBRID`, `RESNET` and `BIT`.
"""

import numpy as np

from segcore.models.encoders import bit, hybrid_vit, resnet_gn
from tests.transcriptions import ddep_checkpoints

GROUPS = 4

HYBRID = hybrid_vit.HybridViT(
  blocks=(2, 1, 1),
  width=8,
  hidden_size=16,
  num_layers=2,
  num_heads=2,
  mlp_dim=24,
  grid=(4, 4),
  num_groups=GROUPS,
)
RESNET = resnet_gn.ResNet(blocks=(2, 1, 1, 1), width=8, num_groups=GROUPS)
BIT = bit.BiT(blocks=(2, 1, 1, 1), width=8, num_groups=GROUPS)

SMALL_HYBRID = {
  'root': 8,
  'mids': (8, 16, 32),
  'blocks': (2, 1, 1),
  'hidden': 16,
  'heads': 2,
  'mlp': 24,
  'layers': 2,
  'grid': 4,
  'classes': 5,
}
_SMALL_BIT = {
  'root': 8,
  'mids': (8, 16, 32, 64),
  'blocks': (2, 1, 1, 1),
  'classes': 5,
}
_FOUR_BLOCKS = {'mids': (8, 16, 32, 64), 'blocks': (2, 1, 1, 1)}


def hybrid(full: bool = False, **variant) -> dict[str, np.ndarray]:
  """Returns weights as of `R50+ViT-B_16.npz`; of full size they are zeros."""
  return _make(
    ddep_checkpoints.hybrid_vit_checkpoint, SMALL_HYBRID, full, variant
  )


def hybrid_of_four_blocks() -> dict[str, np.ndarray]:
  """Returns weights as of AugReg's `R50_L_32`, with four ResNet blocks."""
  return hybrid(**_FOUR_BLOCKS, pre_logits=False)


def bit_m(full: bool = False, **variant) -> dict[str, np.ndarray]:
  """Returns weights as of `BiT-M-R50x1.npz`."""
  return _make(ddep_checkpoints.bit_checkpoint, _SMALL_BIT, full, variant)


def _make(make, small, full, variant):
  # Zeros of full size take no memory until they are written to.
  fields = {'std_scale': 0.0} if full else small
  return make(np.random.default_rng(0), **{**fields, **variant})
