"""Name and fields of an encoder follow from its weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import errors
from segcore.models.encoders import resnet_gn
from segcore.weights import describe, load
from tests.support import vit_states


def test_the_encoder_of_a_file_is_that_of_its_shapes(tmp_path):
  state = vit_states.dino(registers=2, layer_scale=True)
  path = tmp_path / 'dino.npz'
  np.savez(path, **state)
  variables = load.read_weight_variables(path)
  encoder = describe.encoder_of_weights(path, variables)
  assert encoder == {
    'name': 'vit',
    'hidden_size': 12,
    'num_layers': 2,
    'num_heads': 1,
    'mlp_dim': 48,
    'patch_size': 4,
    'num_registers': 2,
    'layer_scale': True,
    'position_rule': 'timm',
    'grid': (3, 3),
  }


def test_the_encoder_of_a_stage_is_that_of_its_settings(tmp_path):
  settings = {'network': {'encoder': {'name': 'resnet', 'blocks': [1, 2]}}}
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'settings.json').write_text(json.dumps({'settings': settings}))
  for path in (tmp_path, tmp_path / 'checkpoints'):
    assert describe.encoder_of_weights(path, {}) == {
      'name': 'resnet',
      'blocks': (1, 2),
    }


def test_an_encoder_that_shapes_do_not_tell_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='names and shapes of none: set c'):
    describe.encoder_of_weights(tmp_path / 'x.npz', {'params': {}})
  small = resnet_gn.ResNet(blocks=(1,), width=8, num_groups=4)
  shapes = jax.eval_shape(
    small.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )
  variables = {'params': {'encoder': shapes['params']}}
  with pytest.raises(errors.UserError, match='not tell its num_groups, got wi'):
    describe.encoder_of_weights(tmp_path / 'x.npz', variables)
