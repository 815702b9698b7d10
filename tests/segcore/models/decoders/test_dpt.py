"""The DPT decoder against its transcription in numpy, and its size."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models import features
from segcore.models.decoders import dpt
from tests.support import reference_networks
from tests.transcriptions import dpt as transcription

_SMALL = dpt.DPT(widths=(2, 3, 4, 5), fusion_width=3)


def _maps(*grid, strides=(14,) * 4, channels=6):
  rng = np.random.default_rng(0)
  return features.Features(
    tuple(
      features.FeatureMap(
        f'block{i}', stride, jnp.asarray(rng.normal(size=(2, *grid, channels)))
      )
      for i, stride in enumerate(strides)
    )
  )


def _torch_weights(params):
  """Returns (weight, bias) of each layer, with torch's axes."""
  if 'kernel' not in params:
    return {name: _torch_weights(layer) for name, layer in params.items()}
  kernel = np.float64(params['kernel'])
  return kernel, np.float64(params.get('bias', 0.0))


def _transpose(weights, name=''):
  if isinstance(weights, dict):
    return {key: _transpose(value, key) for key, value in weights.items()}
  kernel, bias = weights
  # A transposed convolution has its inputs first.
  axes = (2, 3, 0, 1) if name in ('resize0', 'resize1') else (3, 2, 0, 1)
  return kernel.transpose(axes), bias


@pytest.mark.parametrize('grid', [(3, 4), (5, 3)])
def test_maps_equal_the_transcription(grid):
  with jax.enable_x64(True):
    maps, module = _maps(*grid), _SMALL.clone(dtype=jnp.float64)
    params = reference_networks.draw_params(module, maps)
    actual = jax.jit(module.apply)({'params': params}, maps)
    assert actual.deepest.array.dtype == np.float64
  weights = _transpose(_torch_weights(params))
  for b in range(2):
    expected = transcription.decode([x.array[b] for x in maps.maps], weights)
    for each, values in zip(actual.maps, expected, strict=True):
      np.testing.assert_allclose(each.array[b], values, rtol=1e-6, atol=1e-6)
  strides = {'fusion1': 14, 'fusion2': 7, 'fusion3': 3.5, 'fused': 1.75}
  assert {x.name: x.stride for x in actual.maps} == strides


@pytest.mark.parametrize(
  ('grid', 'patch_size', 'sizes', 'strides'),
  [
    # 518 pixels: ½ of 37 cells are 19.
    ((37, 37), 14, (37, 74, 148, 296), (14, 7, 3.5, 1.75)),
    ((37, 8), 16, (37, 74, 148, 296), (16, 8, 4, 2)),
    ((1, 1), 8, (1, 2, 4, 8), (8, 4, 2, 1)),
  ],
)
def test_grids_are_even_multiples_of_the_patches(
  grid, patch_size, sizes, strides
):
  maps = _maps(*grid, strides=(patch_size,) * 4)
  result, _ = jax.eval_shape(_SMALL.init_with_output, jax.random.key(0), maps)
  assert tuple(x.array.shape[1] for x in result.maps) == sizes
  assert tuple(x.array.shape[2] for x in result.maps) == tuple(
    n * grid[1] // grid[0] for n in sizes
  )
  assert tuple(x.stride for x in result.maps) == strides


def test_number_of_parameters():
  # Of ViT-S. Projections from 384 features; 4x4 and 2x2 transposed and a 3x3;
  # 3x3 without biases to 64.
  projections = 385 * (48 + 96 + 192 + 384)
  resizing = 16 * 48**2 + 48 + 4 * 96**2 + 96 + 9 * 384**2 + 384
  adapting = 9 * (48 + 96 + 192 + 384) * 64
  # Seven residual units of two 3x3, a 1x1 in each of four blocks, and a 3x3.
  conv3x3 = 9 * 64**2 + 64
  fusion = 7 * 2 * conv3x3 + 4 * 65 * 64 + conv3x3
  params = jax.eval_shape(
    dpt.DPT().init, jax.random.key(0), _maps(2, 2, channels=384)
  )
  assert reference_networks.count_parameters(params) == (
    projections + resizing + adapting + fusion
  )


def test_recomputation_changes_nothing():
  maps = _maps(2, 3)
  reference_networks.assert_same_with_remat(_SMALL, maps)


def test_activations_have_the_dtype_and_parameters_float32():
  module = _SMALL.clone(dtype=jnp.bfloat16)
  maps, variables = jax.eval_shape(
    module.init_with_output, jax.random.key(0), _maps(3, 3)
  )
  assert {x.array.dtype for x in maps.maps} == {jnp.dtype('bfloat16')}
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  ('strides', 'message'),
  [
    (
      (2, 4, 8, 16),
      'expected 4 maps of one stride, as those of a plain ViT, got strides 2, '
      '4, 8, 16; use decoder unet or deeplabv3plus',
    ),
    (
      (16,),
      'got 1 at stride 16 alone; choose four blocks, the last among them, in '
      'depths of the encoder',
    ),
    ((16,) * 5, 'got 5 at stride 16 alone; choose four'),
  ],
)
def test_other_maps_are_refused(strides, message):
  with pytest.raises(features.MissingMapError, match=re.escape(message)):
    jax.eval_shape(_SMALL.init, jax.random.key(0), _maps(2, 2, strides=strides))


def test_contradictory_fields_are_refused():
  with pytest.raises(ValueError, match='each of 4 maps, got'):
    dpt.DPT(widths=(8, 8))
  with pytest.raises(ValueError, match='condition: DPT has none'):
    jax.eval_shape(_SMALL.init, jax.random.key(0), _maps(2, 2), jnp.ones(2))
