"""The ResNets with group norm against reference code in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models.encoders import bit, resnet_gn
from tests.support import reference_networks


@pytest.mark.parametrize('size', [(32, 32), (37, 50)])
def test_resnet_equals_the_reference(size):
  module = resnet_gn.ResNet((2, 1), width=8, num_groups=4, conv_epsilon=1e-2)
  images = reference_networks.draw_images(*size)
  params = reference_networks.draw_params(module, images)
  maps = jax.jit(module.apply)({'params': params}, images)
  expected = reference_networks.resnet(
    images, params, (2, 1), 4, conv_epsilon=1e-2
  )
  reference_networks.assert_maps_equal(
    maps, expected, {'root': 2, 'block1': 4, 'block2': 8}
  )


def test_standardized_convolution_ignores_an_offset_of_its_kernel():
  conv = resnet_gn.StdConv(4, kernel=3)
  x = reference_networks.draw_images(8, 8)
  params = reference_networks.draw_params(conv, x)
  shifted = jax.tree.map(lambda kernel: kernel + 1.5, params)
  np.testing.assert_allclose(
    conv.apply({'params': params}, x),
    conv.apply({'params': shifted}, x),
    atol=1e-4,
  )


@pytest.mark.parametrize('zero_init', [True, False])
def test_zero_init_makes_units_start_as_their_shortcut(zero_init):
  module = resnet_gn.ResNet((1,), width=4, num_groups=2, zero_init=zero_init)

  @jax.jit  # Computes these parameters only.
  def start():
    params = module.init(
      jax.random.key(0), reference_networks.draw_images(16, 16)
    )['params']
    unit = params['block1']['unit1']
    return {name: unit[name]['scale'] for name in ('gn3', 'gn_proj')}

  scales = start()
  expected = 0.0 if zero_init else 1.0
  np.testing.assert_array_equal(scales['gn3'], np.full(16, expected))
  np.testing.assert_array_equal(scales['gn_proj'], np.ones(16))


def test_resnet_50_has_the_published_size_and_shapes():
  images = jnp.zeros((1, 64, 96, 3))
  maps, variables = jax.eval_shape(
    resnet_gn.ResNet((3, 4, 6, 3)).init_with_output, jax.random.key(0), images
  )
  assert reference_networks.count_parameters(variables) == 23_508_032
  assert {s.name: (s.stride, *s.array.shape) for s in maps.maps} == {
    'root': (2, 1, 32, 48, 64),
    'block1': (4, 1, 16, 24, 256),
    'block2': (8, 1, 8, 12, 512),
    'block3': (16, 1, 4, 6, 1024),
    'block4': (32, 1, 2, 3, 2048),
  }


def test_remat_of_a_resnet_changes_neither_values_nor_gradients():
  module = resnet_gn.ResNet((1,), width=4, num_groups=2)
  reference_networks.assert_same_with_remat(
    module, reference_networks.draw_images(16, 16, batch=1)
  )


def test_remat_of_a_bit_changes_neither_values_nor_gradients():
  module = bit.BiT((1,), width=4, num_groups=2)
  reference_networks.assert_same_with_remat(
    module, reference_networks.draw_images(16, 16, batch=1)
  )
