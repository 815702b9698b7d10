"""The head that predicts the pixels of each cell: their order and number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import errors
from segcore.models import heads, network, network_options, segmenter
from segcore.models.decoders import unet
from segcore.models.encoders import resnet_gn


def apply_head(kernel, x, size):
  params = {'conv': {'kernel': kernel, 'bias': np.zeros(kernel.shape[-1])}}
  head = heads.SubpixelHead(3)
  return np.asarray(head.apply({'params': params}, jnp.asarray(x), False, size))


def test_a_head_that_copies_channels_reproduces_the_image():
  image = np.float32(np.random.default_rng(0).normal(size=(1, 12, 8, 3)))
  cells = np.empty((1, 3, 2, 48), np.float32)
  for y in range(12):
    for x in range(8):
      first = 3 * (4 * (y % 4) + x % 4)
      cells[:, y // 4, x // 4, first : first + 3] = image[:, y, x]
  kernel = np.zeros((3, 3, 48, 48), np.float32)
  kernel[1, 1] = np.eye(48)
  np.testing.assert_array_equal(apply_head(kernel, cells, (12, 8)), image)


@pytest.mark.parametrize('shift', [(1, 0), (0, 1), (2, -1)])
def test_a_shift_by_cells_is_a_shift_by_their_pixels(shift):
  rng = np.random.default_rng(0)
  x = np.zeros((1, 8, 9, 5), np.float32)
  x[:, 3:5, 3:6] = rng.normal(size=(1, 2, 3, 5))
  kernel = np.float32(rng.normal(size=(3, 3, 5, 48)))
  whole = apply_head(kernel, x, (32, 36))
  shifted = apply_head(kernel, np.roll(x, shift, (1, 2)), (32, 36))
  pixels = tuple(4 * n for n in shift)
  np.testing.assert_allclose(shifted, np.roll(whole, pixels, (1, 2)), atol=1e-5)
  assert np.abs(whole).max() > 1


def _unet(head, **decoder):
  return segmenter.Segmenter(
    resnet_gn.ResNet((1, 1), width=4, num_groups=2),
    unet.UNetDecoder(num_groups=2, **decoder),
    {'noise': head},
  )


def test_at_stride_1_it_is_a_convolution_to_the_bit():
  x = jax.random.normal(jax.random.key(1), (1, 4, 4, 8))
  key = jax.random.key(0)
  expected = heads.ConvHead(3).init_with_output(key, x)
  actual = heads.SubpixelHead(3).init_with_output(key, x, False, (4, 4))
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_decoder_that_ends_at_stride_4_predicts_all_pixels():
  net = _unet(heads.SubpixelHead(3), widths=(4,), output_stride=4)
  output, variables = jax.eval_shape(
    net.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3))
  )
  assert output['noise'].shape == (2, 32, 48, 3)
  kernel = variables['params']['heads']['noise']['conv']['kernel']
  assert kernel.shape == (3, 3, 4, 48)


def test_a_stride_that_is_no_whole_number_of_pixels_is_refused():
  encoder = {'name': 'vit', 'patch_size': 14, 'grid': (2, 2), 'num_layers': 4}
  encoder['depths'] = (0, 1, 2, 3)
  encoder |= {'hidden_size': 16, 'num_heads': 1, 'mlp_dim': 16}
  decoder = {'name': 'dpt', 'widths': (4,) * 4, 'fusion_width': 4}
  net = network.build_network(
    network_options.NetworkOptions(encoder, decoder),
    {'noise': heads.SubpixelHead(3)},
    'here',
  )
  with pytest.raises(
    errors.UserError,
    match='same multiple of the 16x16 cells of its map, got 28',
  ):
    network.check_network_image_size(net, (28, 28), 'here')


def test_a_skip_finer_than_the_last_map_is_refused():
  net = _unet(heads.SubpixelHead(3), widths=(4,), output_stride=4, skips=(4, 2))
  with pytest.raises(
    errors.UserError, match='skips: expected strides from 4 on'
  ):
    network.check_network_image_size(net, (32, 32), 'here')
