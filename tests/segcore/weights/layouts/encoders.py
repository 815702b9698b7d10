"""Small encoders, and their parameters from weight files."""

import jax
import numpy as np

from segcore.models import heads, segmenter
from segcore.models.encoders import vit
from segcore.weights import load
from tests.support import mit_states

# Fields of the MiT of `mit_states.SMALL`.
SMALL_MIT = {
  'hidden_sizes': mit_states.SMALL['sizes'],
  'num_layers': mit_states.SMALL['layers'],
  'num_heads': (1, 2, 3, 2),
}
_SIZE = {'hidden_size': 12, 'num_layers': 2, 'num_heads': 3, 'mlp_dim': 48}


def small_vit(**fields):
  """Builds the encoder of the files that `vit_states` makes."""
  return vit.ViT(patch_size=4, grid=(3, 3), **_SIZE, **fields)


def load_encoder(path, encoder, side):
  """Loads the parameters of an encoder, for images of a side."""
  head = heads.ConvHead(3, reads='encoder', stride=None)
  module = segmenter.Segmenter(encoder, None, {'logits': head})
  shape = (1, side, side, 3)
  variables = load.load_weight_parts(path, ('encoder',), module, shape)
  return variables['params']['encoder']


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)
