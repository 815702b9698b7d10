"""The U-Net decoder against reference code in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models.decoders import unet
from segcore.models.encoders import resnet_gn
from tests.support import reference_networks


@pytest.mark.parametrize('keep_first', [True, False])
@pytest.mark.parametrize('conditional', [False, True])
def test_unet_equals_the_reference(keep_first, conditional):
  # Two maps at the deepest stride and two at stride 4: the last ones count.
  inputs = reference_networks.draw_maps((2, 3), (4, 2), (4, 5), (8, 4), (8, 6))
  widths = (16, 8, 4, 4) if keep_first else (16, 8, 4)
  module = unet.UNetDecoder(widths, num_groups=2, conditional=conditional)
  params = reference_networks.draw_params(module, inputs)
  condition = jnp.array([0.5, 1.0]) if conditional else None
  maps = jax.jit(module.apply)({'params': params}, inputs, condition)

  embedding = None
  if conditional:
    angles = np.outer(condition, 1000 * 1e4 ** -(np.arange(128) / 128))
    embedding = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    for name in ('dense1', 'dense2'):
      p = params['embedding'][name]
      embedding = embedding @ np.float64(p['kernel']) + np.asarray(p['bias'])
      embedding = embedding / (1 + np.exp(-embedding))
  by_name = {s.name: np.float64(s.array) for s in inputs.maps}
  skips = [by_name['map2'], by_name['map0'], None]
  skips = [None, *skips] if keep_first else skips
  expected = reference_networks.unet(
    by_name['map4'], skips, params, 2, keep_first, embedding
  )

  strides = (8, 4, 2, 1) if keep_first else (4, 2, 1)
  # The sinusoids of a level up to 1000 are good to 1e-4 in float32.
  reference_networks.assert_maps_equal(
    maps,
    {f'up{i}': x for i, x in enumerate(expected)},
    {f'up{i}': stride for i, stride in enumerate(strides)},
  )


def test_conditional_decoder_assumes_clean_images_without_a_condition():
  maps = reference_networks.draw_maps((2, 3), (4, 4))
  module = unet.UNetDecoder((8, 4), num_groups=2, conditional=True)
  variables = {'params': reference_networks.draw_params(module, maps)}
  run = jax.jit(module.apply)
  clean = run(variables, maps, jnp.ones(2)).deepest.array
  np.testing.assert_array_equal(run(variables, maps).deepest.array, clean)
  noisy = run(variables, maps, jnp.full(2, 0.5)).deepest.array
  assert not np.allclose(noisy, clean)


def test_condition_of_an_unconditional_decoder_is_refused():
  with pytest.raises(ValueError, match='conditional=False'):
    jax.eval_shape(
      unet.UNetDecoder((8, 4)).init,
      jax.random.key(0),
      reference_networks.draw_maps((2, 3), (4, 4)),
      jnp.ones(2),
    )


@pytest.mark.parametrize(
  ('maps', 'fields', 'message'),
  [
    (
      ((2, 3), (8, 4)),
      {'widths': (8, 8, 8)},
      'expected maps at strides 2, 4, 8, got strides 2, 8',
    ),
    (
      ((2, 3), (4, 3), (8, 4)),
      {'widths': (8, 8)},
      'widths: expected 3 or 4 from stride 8 to 1, got 2',
    ),
    (
      ((2, 3), (4, 3), (8, 4)),
      {'widths': (8, 8, 8, 8, 8)},
      'widths: expected 3 or 4 from stride 8 to 1, got 5',
    ),
    (
      ((1, 3), (8, 4)),
      {'widths': (8, 8, 8), 'skips': (2,)},
      'expected maps at strides 2, 8, got strides 1, 8',
    ),
    (
      ((2, 3), (4, 3), (8, 4)),
      {'widths': (8, 8, 8), 'layout': 'B'},
      'layout: expected A, since all 3 blocks upsample from stride 8, got B',
    ),
    (
      ((4, 3), (8, 4)),
      {'widths': (8,), 'output_stride': 4, 'shown_skips': (2,)},
      'shown_skips: expected strides from 4 on, that of the last map, got 2',
    ),
    (
      ((8, 4),),
      {'widths': (8, 8, 8), 'skips': False, 'norm': 'layer'},
      "norm: expected group or batch, got 'layer'",
    ),
  ],
)
def test_encoder_that_does_not_fit_is_refused(maps, fields, message):
  module = unet.UNetDecoder(num_groups=4, **fields)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      module.init, jax.random.key(0), reference_networks.draw_maps(*maps)
    )


def test_skip_of_another_size_is_refused():
  images = jnp.zeros((1, 40, 40, 3))
  encoder = resnet_gn.ResNet((1, 1, 1), width=4, num_groups=2)
  maps, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
  with pytest.raises(
    ValueError, match=r"'block2': expected 6x6 cells, got 5x5: .* of 16"
  ):
    jax.eval_shape(unet.UNetDecoder((8, 8, 8, 8)).init, jax.random.key(0), maps)


def test_skips_are_joined_as_configured():
  maps = reference_networks.draw_maps((2, 3), (4, 5), (8, 4))
  for skips, channels in {False: (8, 8, 8), (4,): (13, 8, 8)}.items():
    module = unet.UNetDecoder((8, 8, 8, 8), num_groups=4, skips=skips)
    params = jax.eval_shape(module.init, jax.random.key(0), maps)['params']
    in_channels = tuple(
      params[f'block{i}']['conv1']['kernel'].shape[2] for i in (1, 2, 3)
    )
    assert in_channels == channels


@pytest.mark.parametrize(
  ('shown', 'zeroed'), [(False, (2, 4)), ((4,), (2,)), ((), (2, 4))]
)
def test_hidden_skips_are_zeros_for_the_same_parameters(shown, zeroed):
  maps = reference_networks.draw_maps((2, 3), (4, 5), (8, 4))
  seeing = unet.UNetDecoder((8, 8, 8), num_groups=4)
  params = reference_networks.draw_params(seeing, maps)
  without = maps.replace(
    maps=tuple(
      each.replace(array=each.array * (each.stride not in zeroed))
      for each in maps.maps
    )
  )
  hiding = unet.UNetDecoder((8, 8, 8), num_groups=4, shown_skips=shown)
  run = [jax.jit(module.apply) for module in (seeing, hiding)]
  variables = {'params': params}
  expected, hidden = (
    apply(variables, given).at_stride(1).array
    for apply, given in zip(run, (without, maps), strict=True)
  )
  np.testing.assert_allclose(hidden, expected, atol=1e-6)
  seen = run[0](variables, maps).at_stride(1).array
  assert not np.allclose(seen, expected)


def test_layouts_differ_in_the_block_that_keeps_the_resolution():
  maps = reference_networks.draw_maps((2, 3), (4, 5), (8, 4))
  for layout, strides, convs in (
    ('A', [8, 4, 2, 1], 2),
    ('A1', [8, 4, 2, 1], 1),
    ('B', [4, 2, 1, 1], 2),
  ):
    module = unet.UNetDecoder((8, 6, 4, 2), layout=layout, num_groups=2)
    maps, variables = jax.eval_shape(
      module.init_with_output, jax.random.key(0), maps
    )
    assert [stage.stride for stage in maps.maps] == strides
    assert maps.at_stride(1).name == 'up3'
    blocks = [sorted(variables['params'][f'block{i}']) for i in range(4)]
    counts = [sum(name.startswith('conv') for name in b) for b in blocks]
    assert counts == [convs, 2, 2, 2]


def test_a_width_multiplier_multiplies_every_width():
  maps = reference_networks.draw_maps((2, 3), (4, 4))
  module = unet.UNetDecoder((8, 6, 4), width_multiplier=3, num_groups=2)
  maps, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), maps)
  assert [s.array.shape[-1] for s in maps.maps] == [24, 18, 12]


def test_a_batch_normed_decoder_keeps_running_statistics():
  maps = reference_networks.draw_maps((2, 3), (4, 4))
  module = unet.UNetDecoder((8, 4), norm='batch')
  params = reference_networks.draw_params(module, maps)
  stats = {
    f'block{i}': {
      f'norm{j}': {'mean': jnp.zeros(size), 'var': jnp.ones(size)}
      for j in (1, 2)
    }
    for i, size in enumerate((8, 4))
  }

  @jax.jit
  def step(params, stats):
    return module.apply(
      {'params': params, 'batch_stats': stats},
      maps,
      train=True,
      mutable=['batch_stats'],
    )[1]

  updated = step(params, stats)
  x = reference_networks.upsample2x(np.float64(maps.by_name('map1').array))
  x = np.concatenate([x, maps.by_name('map0').array], -1)
  x = reference_networks.conv(x, params['block0']['conv1']['kernel'])
  np.testing.assert_allclose(
    updated['batch_stats']['block0']['norm1']['mean'],
    0.01 * x.mean((0, 1, 2)),
    atol=1e-6,
  )


def test_remat_of_a_unet_changes_neither_values_nor_gradients():
  module = unet.UNetDecoder((8, 4), num_groups=2)
  reference_networks.assert_same_with_remat(
    module, reference_networks.draw_maps((2, 3), (4, 4)), None, True
  )
