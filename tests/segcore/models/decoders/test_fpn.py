"""The top-down pathway against a slow numpy transcription."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models import features
from segcore.models.decoders import fpn
from tests.transcriptions import luss_dense as reference

CHANNELS = {2: 3, 4: 3, 8: 5, 16: 6}


def draw_maps(strides):
  rng = np.random.default_rng(0)
  return features.Features(
    tuple(
      features.FeatureMap(
        f'x{stride}',
        stride,
        rng.normal(size=(2, 32 // stride, 48 // stride, CHANNELS[stride])),
      )
      for stride in strides
    )
  )


def test_sums_of_all_maps():
  maps, decoder = draw_maps((2, 4, 8, 16)), fpn.FPN(4, dtype=jnp.float64)

  @jax.jit
  def decode(maps):
    return decoder.init_with_output(jax.random.PRNGKey(0), maps)

  with jax.enable_x64():
    decoded, variables = jax.device_get(decode(maps))
  params = variables['params']
  assert {*params} == {'lateral16', 'lateral8', 'lateral4'}
  layers = [params[f'lateral{stride}'] for stride in (4, 8, 16)]
  for b in range(2):
    expected = reference.fpn(
      [maps.at_stride(stride).array[b] for stride in (4, 8, 16)],
      [layer['kernel'][0, 0] for layer in layers],
      [layer['bias'] for layer in layers],
    )
    np.testing.assert_allclose(
      decoded.at_stride(4).array[b], expected, rtol=1e-5, atol=1e-6
    )


def test_a_map_at_stride_4_is_needed():
  with pytest.raises(features.MissingMapError, match='a map at stride 4, got'):
    fpn.FPN(4).init(jax.random.PRNGKey(0), draw_maps((8, 16)))
