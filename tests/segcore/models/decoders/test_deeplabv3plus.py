"""The decoder of DeepLabv3+ and the heads on it, against torch's arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runtime import errors
from segcore.models import heads as heads_lib
from segcore.models import network, network_options, segmenter
from segcore.models.decoders import deeplabv3plus
from segcore.models.encoders import hybrid_vit, resnet_gn
from segcore.models.encoders import resnet as resnet_lib
from segcore.models.layers import conv_block
from tests.support import decoder_cases, recomputation, torch_arithmetic

DeepLabV3Plus = deeplabv3plus.DeepLabV3Plus


@pytest.mark.parametrize('train', [False, True])
def test_decoder_equals_the_reference(train):
  # Two maps at each stride: the last ones count. Odd sides, as of 65x49.
  maps = decoder_cases.draw_maps(
    (4, 17, 13, 3), (4, 17, 13, 6), (8, 9, 7, 5), (8, 9, 7, 10)
  )
  module = DeepLabV3Plus(8, dilations=(2, 3, 5), dropout_rate=0.0)
  variables = decoder_cases.draw_variables(module, maps)
  outputs, updated = jax.jit(
    lambda v: module.apply(v, maps, None, train, mutable=['batch_stats'])
  )(variables)

  layers = torch_arithmetic.Layers(
    decoder_cases.to_torch_state(variables), train
  )
  deep, low = (
    decoder_cases.to_nchw(maps.by_name(name).array) for name in ('map3', 'map1')
  )
  pooled = layers.block(
    deep.mean((2, 3), keepdims=True), 'pool.conv', 'pool.bn'
  )
  branches = [
    np.broadcast_to(pooled, (*pooled.shape[:2], 9, 7)),
    layers.block(deep, 'conv1x1.conv', 'conv1x1.bn'),
  ]
  for i, dilation in enumerate((2, 3, 5), 1):
    name = f'dilated{i}'
    branches.append(
      layers.block(deep, f'{name}.conv', f'{name}.bn', dilation=dilation)
    )
  fused = layers.block(np.concatenate(branches, 1), 'fuse.conv', 'fuse.bn')
  fused = torch_arithmetic.resize(fused, (17, 13))
  low = layers.block(low, 'low.conv', 'low.bn')
  expected = np.concatenate([low, fused], 1)

  [fused_map] = outputs.maps
  assert (fused_map.name, fused_map.stride) == ('fused', 4)
  np.testing.assert_allclose(
    decoder_cases.to_nchw(fused_map.array), expected, atol=2e-4
  )
  if train:
    decoder_cases.assert_statistics(updated['batch_stats'], layers)


def test_separable_decoder_equals_the_reference():
  maps = decoder_cases.draw_maps((4, 17, 13, 6), (8, 9, 7, 10))
  module = DeepLabV3Plus(
    8,
    dilations=(2, 3),
    low_width=5,
    dropout_rate=0.0,
    num_refinements=2,
    separable=True,
    align_corners=False,
  )
  variables = decoder_cases.draw_variables(module, maps)
  [fused_map] = jax.jit(lambda v: module.apply(v, maps, None, False))(
    variables
  ).maps

  layers = torch_arithmetic.Layers(
    decoder_cases.to_torch_state(variables), False
  )

  def separable(x, name, dilation=1):
    weight = layers.state[f'{name}.depthwise.weight']
    x = torch_arithmetic.depthwise_conv(x, weight, dilation)
    x = np.maximum(layers.norm(x, f'{name}.bn'), 0)
    return layers.block(x, f'{name}.pointwise.conv', f'{name}.pointwise.bn')

  low, deep = (decoder_cases.to_nchw(each.array) for each in maps.maps)
  pooled = layers.block(
    deep.mean((2, 3), keepdims=True), 'pool.conv', 'pool.bn'
  )
  branches = [
    np.broadcast_to(pooled, (*pooled.shape[:2], 9, 7)),
    layers.block(deep, 'conv1x1.conv', 'conv1x1.bn'),
    separable(deep, 'dilated1', 2),
    separable(deep, 'dilated2', 3),
  ]
  fused = separable(np.concatenate(branches, 1), 'fuse')
  fused = torch_arithmetic.resize(fused, (17, 13), align_corners=False)
  low = layers.block(low, 'low.conv', 'low.bn')
  expected = separable(np.concatenate([low, fused], 1), 'refine1')
  expected = separable(expected, 'refine2')
  np.testing.assert_allclose(
    decoder_cases.to_nchw(fused_map.array), expected, atol=2e-4
  )


@pytest.mark.parametrize('train', [False, True])
def test_head_of_blocks_equals_the_reference(train):
  x = decoder_cases.draw_maps((4, 9, 7, 6)).deepest.array
  head = heads_lib.ConvBlocksHead(5, width=4, dropout_rate=0.0)
  variables = decoder_cases.draw_variables(head, x)
  outputs, updated = jax.jit(
    lambda v: head.apply(v, x, train, mutable=['batch_stats'])
  )(variables)
  layers = torch_arithmetic.Layers(
    decoder_cases.to_torch_state(variables), train
  )
  y = layers.block(decoder_cases.to_nchw(x), 'block1.conv', 'block1.bn')
  y = layers.block(y, 'block2.conv', 'block2.bn')
  y = layers.conv(y, 'conv')
  np.testing.assert_allclose(decoder_cases.to_nchw(outputs), y, atol=2e-4)
  if train:
    decoder_cases.assert_statistics(updated['batch_stats'], layers)


def test_networks_of_u2pl_have_the_published_sizes_and_shapes():
  module = segmenter.Segmenter(
    resnet_lib.DilatedResNet(),
    DeepLabV3Plus(),
    {
      'logits': heads_lib.ConvBlocksHead(19),
      'rep': heads_lib.ConvBlocksHead(256),
      'aux': heads_lib.ConvBlocksHead(
        19, num_blocks=1, reads='encoder', map_name='x3'
      ),
    },
  )
  outputs, variables = jax.eval_shape(
    module.init_with_output, jax.random.key(0), jnp.zeros((1, 769, 769, 3))
  )
  assert {name: x.shape for name, x in outputs.items()} == {
    'logits': (1, 193, 193, 19),
    'rep': (1, 193, 193, 256),
    'aux': (1, 97, 97, 19),
  }

  def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

  params, norm = variables['params'], 2 * 256
  branches = 2 * (2048 * 256 + norm) + 3 * (9 * 2048 * 256 + norm)
  fuse = 9 * 1280 * 256 + norm
  low = 256 * 256 + 256 + norm
  assert count(params['decoder']) == branches + fuse + low == 18_222_848
  block = 9 * 256 * 256 + 256 + norm
  halving = 9 * 512 * 256 + 256 + norm
  heads = params['heads']
  assert count(heads['logits']) == halving + block + 257 * 19
  assert count(heads['rep']) == halving + block + 257 * 256
  assert count(heads['aux']) == 9 * 1024 * 256 + 256 + norm + 257 * 19


@pytest.mark.parametrize(
  ('encoder', 'side'),
  [
    (resnet_gn.ResNet((1, 1), width=4, num_groups=2), 37),
    (
      hybrid_vit.HybridViT(
        (1, 1, 1), 4, 2, hidden_size=8, num_layers=1, num_heads=2, mlp_dim=8
      ),
      64,
    ),
    (resnet_lib.DilatedResNet((1, 1), 4, 'plain', 8, (1,)), 42),
  ],
)
def test_other_encoders_fit(encoder, side):
  module = segmenter.Segmenter(
    encoder, DeepLabV3Plus(8), {'rep': heads_lib.ConvBlocksHead(5, width=4)}
  )
  outputs, _ = jax.eval_shape(
    module.init_with_output, jax.random.key(0), jnp.zeros((1, side, side, 3))
  )
  cells = -(-side // 4)
  assert outputs['rep'].shape == (1, cells, cells, 5)


def test_network_of_a_config_has_its_dtype():
  options = network_options.NetworkOptions(
    encoder={
      'name': 'dilated_resnet',
      'blocks': (1, 1),
      'width': 4,
      'output_stride': 8,
      'multi_grid': [2],
    },
    decoder={'name': 'deeplabv3plus', 'width': 8, 'dilations': (1, 2)},
    dtype='bfloat16',
    remat=True,
  )
  heads = {'logits': heads_lib.ConvBlocksHead(3, 4, dtype=jnp.bfloat16)}
  module = network.build_network(options, heads, 'config.network')
  images = jnp.zeros((1, 33, 33, 3))
  outputs, variables = jax.eval_shape(
    module.init_with_output, jax.random.key(0), images
  )
  maps = jax.eval_shape(
    lambda v: module.apply(v, images, method='features'), variables
  )
  assert {x.dtype for x in jax.tree.leaves((outputs, variables))} == {
    np.dtype('float32')
  }
  assert {x.dtype for x in jax.tree.leaves(maps)} == {np.dtype(jnp.bfloat16)}

  options.encoder['output_stride'] = 12
  with pytest.raises(errors.UserError, match=r'output_stride: .*\b12\b'):
    network.build_network(options, heads, 'config.network')


@pytest.mark.parametrize(
  'maps', [((2, 16, 16, 3), (8, 4, 4, 3)), ((2, 16, 16, 3), (4, 8, 8, 3))]
)
def test_encoder_that_does_not_fit_is_refused(maps):
  with pytest.raises(
    ValueError,
    match=f'at stride 4 and at a larger one, got strides 2, {maps[1][0]}',
  ):
    jax.eval_shape(
      DeepLabV3Plus(8).init, jax.random.key(0), decoder_cases.draw_maps(*maps)
    )


def test_condition_is_refused():
  maps = decoder_cases.draw_maps((4, 8, 8, 3), (8, 4, 4, 3))
  with pytest.raises(ValueError, match='DeepLabV3Plus has none, expected None'):
    jax.eval_shape(DeepLabV3Plus(8).init, jax.random.key(0), maps, jnp.ones(2))


def test_remat_changes_neither_values_nor_gradients():
  maps = decoder_cases.draw_maps((4, 8, 8, 3), (8, 4, 4, 3))
  module = DeepLabV3Plus(4, dilations=(2,), dropout_rate=0.0)
  variables = decoder_cases.draw_variables(module, maps)

  def build_loss(remat):
    def loss(params):
      outputs, updated = module.clone(remat=remat).apply(
        {**variables, 'params': params},
        maps,
        train=True,
        mutable=['batch_stats'],
      )
      return jnp.mean(jnp.square(outputs.deepest.array)), updated

    return loss

  recomputation.assert_remat_keeps_results(build_loss, variables['params'])


# ---- The block of decoder and heads.


def test_initialization_equals_torchs():
  # Uniform in ±1/√(9·8): their deviation is the bound over √3.
  block = conv_block.ConvBlock(512, use_bias=True)
  init = jax.jit(lambda x: block.init(jax.random.key(0), x, False)['params'])
  params = init(jnp.zeros((1, 4, 4, 8)))
  bound = 1 / np.sqrt(72)
  for value in params['conv'].values():
    assert np.abs(value).max() <= bound
    np.testing.assert_allclose(np.std(value), bound / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(np.mean(value), 0.0, atol=bound / 10)
  np.testing.assert_array_equal(params['bn']['scale'], np.ones(512))


def test_dropout_clears_whole_channels_in_training_only():
  block = conv_block.ConvBlock(64, kernel=1, dropout_rate=0.25)
  x = decoder_cases.draw_maps((4, 5, 6, 3), batch=8).deepest.array
  variables = decoder_cases.draw_variables(block, x, False)

  @jax.jit
  def run(seed):
    return block.apply(
      variables,
      x,
      True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(seed)},
    )[0]

  without = conv_block.ConvBlock(64, kernel=1)
  plain, _ = without.apply(variables, x, True, mutable=['batch_stats'])
  outputs = np.asarray(run(0))
  cleared = (outputs == 0).all((1, 2))
  np.testing.assert_allclose(cleared.mean(), 0.25, atol=0.08)
  expected = np.where(cleared[:, None, None], 0, np.asarray(plain) / 0.75)
  np.testing.assert_allclose(outputs, expected, atol=1e-5)
  assert (cleared.any(0) & ~cleared.all(0)).any()  # By example and channel.
  np.testing.assert_array_equal(
    block.apply(variables, x, False), without.apply(variables, x, False)
  )
