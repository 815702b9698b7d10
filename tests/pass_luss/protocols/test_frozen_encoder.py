"""Features of frozen encoders: their maps, sizes and normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.protocols import frozen_encoder
from segcore.models import segmenter
from segcore.models.encoders import resnet, vit
from tests.pass_luss import support


@pytest.fixture(scope='module')
def build():
  net = support.build_network({})
  state = support.random_state(net)
  return lambda **fields: frozen_encoder.FrozenEncoder.build(
    net, state, **fields
  )


def test_the_deepest_map_and_the_size_follow_from_the_encoder(build):
  encoder = build()
  assert (encoder.stride, encoder.channels, encoder.short_side) == (8, 32, 224)
  # 375 / 500 * 224 = 298.7 wide, of which 296 is the nearest multiple of 8.
  assert encoder.input_size((375, 500)) == (224, 296)
  assert encoder.count_cells((375, 500)) == 28 * 37
  assert build(short_side=60).input_size((10, 30)) == (64, 192)


def test_a_vit_of_patch_14_sees_448_pixels():
  net = segmenter.Segmenter(vit.ViT(14, 16, 1, 2, 32, grid=(4, 4)), None, {})
  state = jax.eval_shape(
    lambda: support.train_state.TrainState(
      0,
      net.init(jax.random.key(0), jnp.zeros((1, 70, 70, 3)))['params'],
      {},
      (),
      0,
    )
  )
  encoder = frozen_encoder.FrozenEncoder.build(net, state)
  assert (encoder.stride, encoder.channels, encoder.short_side) == (14, 16, 448)
  assert encoder.input_size((360, 480)) == (448, 602)


def test_features_are_those_of_the_map_of_the_stride(build):
  encoder = build(stride=4, short_side=32)
  images = support.random_images(2, (32, 40))
  x = support.to_symmetric(images)
  maps = encoder.segmenter.apply(
    {
      'params': encoder.state.params,
      'batch_stats': encoder.state.batch_stats,
    },
    x,
    decode=False,
    method='features',
  )['encoder']
  expected = np.asarray(maps.at_stride(4).array, np.float64)
  actual = encoder.features(encoder.state, x)
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  unit = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
  np.testing.assert_allclose(
    encoder.normalized_features(encoder.state, x), unit, atol=1e-5
  )
  enlarged = encoder.enlarged_features(encoder.state, x, factor=2)
  assert enlarged.shape == (2, 16, 20, encoder.channels)


def test_a_stride_without_map_is_refused(build):
  with pytest.raises(ValueError, match='no map at stride 3; there are maps'):
    build(stride=3)


def test_sides_that_an_encoder_accepts():
  assert frozen_encoder.probe_side(vit.ViT(patch_size=14)) == 70
  assert frozen_encoder.probe_side(resnet.DilatedResNet()) == 64
