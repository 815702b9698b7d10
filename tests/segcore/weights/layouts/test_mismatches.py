"""Files whose arrays are not those of the encoder: a diff of both."""

import numpy as np
import pytest

from runtime import errors
from segcore.models.encoders import mit
from tests.segcore.weights.layouts import encoders
from tests.support import mit_states, vit_states


def _state_and_encoder(name):
  if name == 'mit':
    state = mit_states.official(**mit_states.SMALL)
    return state, mit.MiT(**encoders.SMALL_MIT), 32
  return vit_states.dino(), encoders.small_vit(), 12


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    (
      'mit',
      lambda state: state.pop('block2.1.mlp.dwconv.dwconv.bias'),
      '- stage2/block1/mlp/dwconv/bias: expected (64,), got nothing',
    ),
    (
      'mit',
      lambda state: state.update({'block1.1.norm1.bias': np.ones(8)}),
      '- stage1/block1/norm1/bias: expected nothing, got (8,)',
    ),
    (
      'mit',
      lambda state: state.update({'pos_embed1': np.ones((1, 4, 8))}),
      '- pos_embed1: expected nothing, got (1, 4, 8)',
    ),
    (
      'mit',
      lambda state: state.update({'norm4.weight': np.ones(17)}),
      '- stage4/norm/scale: expected (16,), got (17,)',
    ),
    (
      'vit',
      lambda state: state.pop('blocks.1.norm2.bias'),
      '- block1/norm2/bias: expected (12,), got nothing',
    ),
    (
      'vit',
      lambda state: state.update({'blocks.0.ls1.gamma': np.ones(12)}),
      '- block0/ls1/gamma: expected nothing, got (12,)',
    ),
    (
      'vit',
      lambda state: state.update({'dist_token': np.ones((1, 1, 12))}),
      '- dist_token: expected nothing, got (1, 1, 12)',
    ),
    (
      'vit',
      lambda state: state.update({'pos_embed': np.ones((1, 17, 12))}),
      '- pos_embed: expected (1, 10, 12), got (1, 17, 12)',
    ),
  ],
)
def test_mismatch_is_refused(tmp_path, name, change, message):
  state, encoder, side = _state_and_encoder(name)
  change(state)
  np.savez(tmp_path / 'w.npz', **state)
  with pytest.raises(errors.UserError) as caught:
    encoders.load_encoder(tmp_path / 'w.npz', encoder, side)
  assert message in str(caught.value)
