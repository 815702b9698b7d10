"""The reference itself, against hand calculation, scipy and §1.5's sums."""

import numpy as np
import pytest
from scipy import ndimage, signal

from tests.transcriptions import (
  ddep_checkpoints,
  ddep_counts,
  ddep_layers,
  ddep_networks,
  ddep_noise,
)

BIT = {'mids': (64, 128, 256, 512), 'blocks': (3, 4, 6, 3)}
SMALL = {
  'root': 8,
  'mids': (4, 8, 8),
  'blocks': (1, 2, 1),
  'hidden': 12,
  'heads': 3,
  'mlp': 20,
  'layers': 2,
  'grid': 3,
  'classes': 5,
}
CHANNELS = {'skip2': 8, 'skip4': 16, 'skip8': 32, 'feat16': 32, 'tokens': 12}


def widths(times):
  return [times * width for width in ddep_networks.WIDTHS]


def image(*shape):
  return np.random.default_rng(1).uniform(-1, 1, (*shape, 3))


@pytest.fixture
def rng():
  return np.random.default_rng(0)


# Layers.


@pytest.mark.parametrize(
  ('n', 'kernel', 'stride', 'expected'),
  [
    (224, 7, 2, (2, 3)),
    (112, 3, 2, (0, 1)),
    (56, 3, 1, (1, 1)),
    (56, 1, 2, (0, 0)),
    (15, 7, 2, (3, 3)),
    (15, 3, 2, (1, 1)),
    (5, 2, 3, (0, 0)),
  ],
)
def test_same_padding(n, kernel, stride, expected):
  assert ddep_layers.same_padding(n, kernel, stride) == expected


def test_convolution_along_one_axis_by_hand():
  x = np.array([1.0, 2, 3, 4]).reshape(1, 1, 4, 1)
  kernel = np.array([1.0, 10, 100]).reshape(1, 3, 1, 1)
  strided = ddep_layers.conv2d(x, kernel, stride=2)
  # SAME pads (0, 1): 1 + 20 + 300 and 3 + 40 + 0.
  np.testing.assert_array_equal(strided.ravel(), [321, 43])
  same = ddep_layers.conv2d(x, kernel, np.array([0.5]))
  np.testing.assert_array_equal(same.ravel(), [210.5, 321.5, 432.5, 43.5])


def test_symmetric_padding_sees_other_pixels_than_same_does():
  x = np.arange(1.0, 17).reshape(1, 4, 4, 1)
  kernel = np.zeros((3, 3, 1, 1))
  kernel[0, 0] = 1.0
  options = {'kernel': kernel, 'stride': 2}
  same = ddep_layers.conv2d(x, padding='same', **options)
  symmetric = ddep_layers.conv2d(x, padding=1, **options)
  np.testing.assert_array_equal(same[0, ..., 0], [[1, 3], [9, 11]])
  np.testing.assert_array_equal(symmetric[0, ..., 0], [[0, 0], [0, 6]])


def test_convolution_sums_scipys_correlations(rng):
  x = rng.normal(size=(2, 6, 5, 3))
  kernel = rng.normal(size=(3, 3, 3, 2))
  expected = [
    [
      sum(signal.correlate2d(one[..., i], kernel[..., i, o], 'same')
          for i in range(3))
      for o in range(2)
    ]
    for one in x
  ]  # fmt: skip
  actual = ddep_layers.conv2d(x, kernel).transpose(0, 3, 1, 2)
  np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_pooling_by_hand():
  x = -np.arange(1.0, 17).reshape(1, 4, 4, 1)
  same = ddep_layers.max_pool(x)[0, ..., 0]
  np.testing.assert_array_equal(same, [[-1, -3], [-9, -11]])
  zeros = ddep_layers.max_pool(x, padding=1, value=0.0)[0, ..., 0]
  np.testing.assert_array_equal(zeros, [[0, 0], [0, -6]])
  infinite = ddep_layers.max_pool(x, padding=1)[0, ..., 0]
  np.testing.assert_array_equal(infinite, [[-1, -2], [-5, -6]])


def test_weight_standardization_by_hand():
  kernel = np.array([1e-5, 3e-5]).reshape(1, 1, 2, 1)  # mean 2e-5, std 1e-5
  on_std = ddep_layers.standardize(kernel, 1e-5)
  np.testing.assert_allclose(on_std.ravel(), [-0.5, 0.5])
  on_var = ddep_layers.standardize(kernel, 1e-10, 'var')
  np.testing.assert_allclose(on_var.ravel(), [-(0.5**0.5), 0.5**0.5])


def test_group_norm_groups_neighboring_channels():
  x = np.array([0.0, 2, 10, 10]).reshape(1, 1, 1, 4)
  scale = np.array([1.0, 2, 3, 4])
  bias = np.array([0.0, 0, 5, 6])
  result = ddep_layers.group_norm(x, scale, bias, groups=2, eps=3.0)
  # The first group has mean 1 and variance 1: 1 / sqrt(1 + 3) = 0.5.
  np.testing.assert_allclose(result.ravel(), [-0.5, 1, 5, 6])
  old = [v.reshape(1, 1, 1, 4) for v in (scale, bias)]
  again = ddep_layers.group_norm(x, *old, groups=2, eps=3.0)
  np.testing.assert_array_equal(result, again)
  with pytest.raises(ValueError, match='a multiple of 3 channels, got 4'):
    ddep_layers.group_norm(x, scale, bias, groups=3)


def test_layer_norm_by_hand():
  result = ddep_layers.layer_norm(np.array([[1.0, 3.0]]), 2.0, 1.0, eps=3.0)
  np.testing.assert_allclose(result, [[0.0, 2.0]])


def test_gelus_at_known_points():
  x = np.array([-1.0, 0.0, 1.0, 2.0])
  np.testing.assert_allclose(
    ddep_layers.gelu_tanh(x), [-0.158808, 0, 0.841192, 1.954598], atol=1e-6
  )
  np.testing.assert_allclose(
    ddep_layers.gelu_erf(x), [-0.158655, 0, 0.841345, 1.954500], atol=1e-6
  )


def test_attention_by_hand():
  # One head of size 4 (scale 1/2); query and key see the first feature only.
  eye = np.eye(4).reshape(4, 1, 4)
  first = np.zeros((4, 1, 4))
  first[0, 0, 0] = 1.0
  none = np.zeros((1, 4))
  weights = {
    'query/kernel': 2 * np.log(3) * first,
    'query/bias': none,
    'key/kernel': first,
    'key/bias': none,
    'value/kernel': eye,
    'value/bias': none,
    'out/kernel': eye.reshape(1, 4, 4),
    'out/bias': np.array([0.0, 0, 0, 1]),
  }
  x = np.array([[[1.0, 4, 0, 0], [0, 0, 4, 0]]])
  # Scores of token 0: log 3 and 0, so 3/4 and 1/4; of token 1: 1/2 each.
  expected = [[[0.75, 3, 1, 1], [0.5, 2, 2, 1]]]
  np.testing.assert_allclose(ddep_layers.attention(x, weights), expected)


# Resizing.


def test_half_pixel_and_aligned_doubling_by_hand():
  x = np.array([0.0, 4.0]).reshape(1, 1, 2, 1)
  half = ddep_layers.resize(x, (2, 4))
  np.testing.assert_allclose(half[0, ..., 0], [[0, 1, 3, 4]] * 2)
  x = np.array([0.0, 3.0]).reshape(1, 1, 2, 1)
  aligned = ddep_layers.resize(x, (1, 4), aligned=True)
  np.testing.assert_allclose(aligned.ravel(), [0, 1, 2, 3])


@pytest.mark.parametrize('size', [(8, 10), (4, 5), (7, 13), (2, 3), (1, 9)])
@pytest.mark.parametrize('aligned', [False, True])
def test_resize_equals_scipys_zoom(rng, size, aligned):
  x = rng.normal(size=(1, 4, 5, 2))
  factors = (1, size[0] / 4, size[1] / 5, 1)
  options = {} if aligned else {'grid_mode': True, 'mode': 'nearest'}
  expected = ndimage.zoom(x, factors, order=1, **options)
  np.testing.assert_allclose(
    ddep_layers.resize(x, size, aligned), expected, atol=1e-12
  )


@pytest.mark.parametrize('grid', [(14, 14), (32, 32), (24, 24), (8, 30)])
def test_positions_keep_the_class_and_zoom_the_grid(rng, grid):
  table = rng.normal(size=(1, 197, 3))
  actual = ddep_layers.resize_positions(table, grid)
  assert actual.shape == (1, 1 + grid[0] * grid[1], 3)
  np.testing.assert_array_equal(actual[:, 0], table[:, 0])
  square = table[0, 1:].reshape(14, 14, 3)
  expected = ndimage.zoom(square, (grid[0] / 14, grid[1] / 14, 1), order=1)
  np.testing.assert_allclose(
    actual[0, 1:].reshape(*grid, 3), expected, atol=1e-12
  )
  without = ddep_layers.resize_positions(table[:, 1:], grid, class_token=False)
  np.testing.assert_array_equal(without, actual[:, 1:])


def test_positions_that_are_linear_stay_linear_on_each_axis():
  rows, columns = np.mgrid[:3, :5]
  table = (10.0 * rows + columns).reshape(1, 15, 1)
  actual = ddep_layers.resize_positions(
    table, (5, 9), old_grid=(3, 5), class_token=False
  )
  rows, columns = np.mgrid[:5, :9]
  expected = 10 * rows / 2 + columns / 2
  np.testing.assert_allclose(actual.reshape(5, 9), expected)


# Encoders.


def test_public_shapes_of_the_hybrid_checkpoint(rng):
  weights = ddep_checkpoints.hybrid_vit_checkpoint(rng, std_scale=0)
  block = 'Transformer/encoderblock_11'
  for key, shape in {
    'conv_root/kernel': (7, 7, 3, 64),
    'gn_root/scale': (1, 1, 1, 64),
    'block1/unit1/conv_proj/kernel': (1, 1, 64, 256),
    'block3/unit9/conv1/kernel': (1, 1, 1024, 256),
    'block3/unit1/gn_proj/bias': (1, 1, 1, 1024),
    'Transformer/posembed_input/pos_embedding': (1, 197, 768),
    f'{block}/MultiHeadDotProductAttention_1/key/bias': (12, 64),
    f'{block}/MultiHeadDotProductAttention_1/out/kernel': (12, 64, 768),
    f'{block}/MlpBlock_3/Dense_1/kernel': (3072, 768),
    'head/kernel': (768, 21843),
    'pre_logits/kernel': (768, 768),
  }.items():
    assert weights[key].shape == shape, key
  assert sum(value.nbytes for value in weights.values()) // 10**6 == 461
  stem = {k: v for k, v in weights.items() if k[:2] in ('co', 'gn', 'bl')}
  assert ddep_checkpoints.count_parameters(stem) == 11_894_848
  assert ddep_checkpoints.count_parameters(weights) == 97_890_112


def test_public_shapes_of_the_bit_checkpoint(rng):
  weights = ddep_checkpoints.bit_checkpoint(rng, std_scale=0)
  for key, shape in {
    'resnet/root_block/standardized_conv2d/kernel': (7, 7, 3, 64),
    'resnet/block2/unit01/a/group_norm/gamma': (256,),
    'resnet/block4/unit01/a/proj/standardized_conv2d/kernel': (
      (1, 1, 1024, 2048)
    ),
    'resnet/block3/unit06/b/standardized_conv2d/kernel': (3, 3, 256, 256),
    'resnet/group_norm/beta': (2048,),
    'resnet/head/conv2d/kernel': (1, 1, 2048, 21843),
  }.items():
    assert weights[key].shape == shape, key
  assert ddep_checkpoints.count_parameters(weights) == 23_500_352


@pytest.mark.parametrize('size', [(32, 32), (32, 64), (48, 16), (41, 23)])
def test_hybrid_maps_have_the_sizes_of_their_strides(rng, size):
  checkpoint = ddep_checkpoints.hybrid_vit_checkpoint(rng, **SMALL)
  maps = ddep_networks.hybrid_encoder(image(2, *size), checkpoint, groups=4)
  strides = {'skip2': 2, 'skip4': 4, 'skip8': 8, 'feat16': 16, 'tokens': 16}
  assert list(maps) == list(strides)
  for name, stride in strides.items():
    sides = [-(-side // stride) for side in size]
    assert maps[name].shape == (2, *sides, CHANNELS[name])
    assert np.isfinite(maps[name]).all() and maps[name].std() > 0.1


@pytest.mark.parametrize(
  'variant',
  [
    {'numbering': 'new'},
    {'group_norm_rank': 1},
    {'prefix': 'opt/target/'},
    {'numbering': 'new', 'positions_at': 'top', 'prefix': 'params/'},
    {'pre_logits': False, 'classes': None},
  ],
)
def test_spellings_of_a_checkpoint_agree(variant):
  spellings = [
    ddep_checkpoints.hybrid_vit_checkpoint(
      np.random.default_rng(0), **SMALL | more
    )
    for more in ({}, variant)
  ]
  assert set(spellings[0]) != set(spellings[1]) or 'group_norm_rank' in variant
  plain, other = (
    ddep_networks.hybrid_encoder(
      image(1, 32, 48), weights, groups=4, prefix=prefix
    )
    for weights, prefix in zip(
      spellings, ('', variant.get('prefix', '')), strict=True
    )
  )
  for name in plain:
    np.testing.assert_array_equal(plain[name], other[name])


def test_stacked_blocks_are_taken_apart():
  options = {**SMALL, 'numbering': 'new'}
  flat = ddep_checkpoints.hybrid_vit_checkpoint(
    np.random.default_rng(0), **options
  )
  stacked = ddep_checkpoints.hybrid_vit_checkpoint(
    np.random.default_rng(5), stacked=True, **options
  )
  at = 'Transformer/encoderblock'
  for key in stacked:
    if key.startswith(f'{at}/'):
      rest = key.removeprefix(f'{at}/')
      both = [flat[f'{at}_{layer}/{rest}'] for layer in range(2)]
      assert stacked[key].shape == np.stack(both).shape
      stacked[key] = np.stack(both)
    else:
      stacked[key] = flat[key]
  results = [
    ddep_networks.hybrid_encoder(image(1, 32, 32), weights, groups=4)['tokens']
    for weights in (flat, stacked)
  ]
  np.testing.assert_array_equal(*results)


def test_every_weight_of_the_encoders_is_used(rng):
  hybrid = ddep_checkpoints.hybrid_vit_checkpoint(rng, **SMALL)
  bit = ddep_checkpoints.bit_checkpoint(
    rng, root=8, mids=(4, 8, 8, 8), blocks=(1, 2, 1, 1), classes=5
  )
  for checkpoint, encoder in (
    (hybrid, ddep_networks.hybrid_encoder),
    (bit, ddep_networks.bit_encoder),
  ):
    plain = encoder(image(1, 32, 32), checkpoint, groups=4)
    for key, value in checkpoint.items():
      changed = {**checkpoint, key: value * 1.5 + rng.normal(size=value.shape)}
      maps = encoder(image(1, 32, 32), changed, groups=4)
      used = any(np.abs(maps[name] - plain[name]).max() > 1e-6 for name in maps)
      # A softmax does not see what is added to all of its scores.
      unseen = '/key/bias' in key
      unused = key.startswith(('head', 'pre_logits', 'resnet/head'))
      assert used != (unseen or unused), key


def test_class_token_can_be_left_out(rng):
  checkpoint = ddep_checkpoints.hybrid_vit_checkpoint(rng, **SMALL)
  checkpoint = {**checkpoint, 'cls': checkpoint['cls'] + 1.0}
  kept, left = (
    ddep_networks.hybrid_encoder(
      image(1, 32, 32), checkpoint, groups=4, use_cls_token=use
    )['tokens']
    for use in (True, False)
  )
  assert kept.shape == left.shape == (1, 2, 2, 12)
  assert np.abs(kept - left).max() > 1e-3


def test_four_stages_reach_a_stride_of_32(rng):
  checkpoint = ddep_checkpoints.hybrid_vit_checkpoint(
    rng, **SMALL | {'mids': (4, 8, 8, 8), 'blocks': (1, 1, 1, 2)}
  )
  maps = ddep_networks.stem(image(1, 64, 32), checkpoint, groups=4)
  assert list(maps) == ['skip2', 'skip4', 'skip8', 'feat16', 'feat32']
  assert maps['feat32'].shape == (1, 2, 1, 32)
  assert min(value.min() for value in maps.values()) == 0.0


def test_bit_skips_are_bare_and_its_last_map_is_not(rng):
  checkpoint = ddep_checkpoints.bit_checkpoint(
    rng, root=8, mids=(4, 8, 8, 8), blocks=(1, 1, 1, 1)
  )
  maps = ddep_networks.bit_encoder(image(1, 64, 32), checkpoint, groups=4)
  assert [value.shape[1:] for value in maps.values()] == [
    (32, 16, 8),
    (16, 8, 16),
    (8, 4, 32),
    (4, 2, 32),
    (2, 1, 32),
  ]
  assert [value.min() < 0 for value in maps.values()] == [True] * 4 + [False]
  root = checkpoint['resnet/root_block/standardized_conv2d/kernel']
  root = ddep_layers.standardize(root.astype(np.float64), 1e-10, 'var')
  expected = ddep_layers.conv2d(image(1, 64, 32), root, stride=2, padding=3)
  np.testing.assert_array_equal(maps['skip2'], expected)
  other = ddep_networks.bit_encoder(
    image(1, 64, 32), checkpoint, groups=4, pool_value=-np.inf
  )
  assert np.abs(other['skip4'] - maps['skip4']).max() > 1e-3
  normed = ddep_networks.bit_encoder(
    image(1, 64, 32),
    checkpoint,
    groups=4,
    skip_norms={'skip4': (np.ones(16), np.full(16, 7.0))},
  )
  np.testing.assert_allclose(normed['skip4'].mean(), 7.0)


# Decoder.


@pytest.mark.parametrize(
  ('layout', 'strides'),
  [
    ('A', (16, 8, 4, 2, 1)),
    ('A1', (16, 8, 4, 2, 1)),
    ('A2', (16, 8, 4, 2, 1)),
    ('B', (8, 4, 2, 1, 1)),
    ('unet', (16, 8, 4, 2, 1)),
  ],
)
def test_decoder_layouts_reach_full_size(rng, layout, strides):
  channels = {**CHANNELS, 'feat32': 20}
  weights = ddep_checkpoints.decoder_weights(
    rng,
    layout=layout,
    widths=(16, 12, 8, 8, 4),
    channels=channels,
    outputs=5,
  )
  sides = {'skip2': 2, 'skip4': 4, 'skip8': 8, 'feat16': 16, 'tokens': 16,
           'feat32': 32}  # fmt: skip
  maps = {
    name: rng.normal(size=(1, 32 // stride, 64 // stride, channels[name]))
    for name, stride in sides.items()
  }
  options = {'layout': layout, 'groups': 4}
  blocks = ddep_networks.decoder_blocks(maps, weights, **options)
  assert [block.shape for block in blocks] == [
    (1, 32 // stride, 64 // stride, width)
    for stride, width in zip(strides, (16, 12, 8, 8, 4), strict=True)
  ]
  logits = ddep_networks.decoder(maps, weights, **options)
  assert logits.shape == (1, 32, 64, 5)
  layers = ddep_counts.decoder_layers(
    (32, 64),
    layout=layout,
    widths=(16, 12, 8, 8, 4),
    channels=channels,
    outputs=5,
  )
  count = ddep_checkpoints.count_parameters(weights, exclude=())
  assert count == ddep_counts.parameters(layers)


def random_maps(rng, batch_size, channels):
  """Draws the maps of an encoder for images of 32 x 32 pixels."""
  strides = {'tokens': 16, 'skip8': 8, 'skip4': 4, 'skip2': 2}
  return {
    name: rng.normal(
      size=(batch_size, 32 // stride, 32 // stride, channels[name])
    )
    for name, stride in strides.items()
  }


def test_a_block_concatenates_the_skip_behind(rng):
  channels = {'tokens': 2, 'skip8': 3, 'skip4': 1, 'skip2': 1}
  maps = random_maps(rng, 1, channels)
  weights = ddep_checkpoints.decoder_weights(
    rng, layout='A1', widths=(2, 1, 1, 1, 1), channels=channels
  )
  # The first convolution of block 1 looks at its fifth channel, the last of
  # the skip's, and the second at its only one.
  weights['block1/conv1/kernel'] = np.zeros((3, 3, 5, 1))
  weights['block1/conv1/kernel'][1, 1, 4, 0] = 1.0
  weights['block1/conv2/kernel'] = np.zeros((3, 3, 1, 1))
  weights['block1/conv2/kernel'][1, 1, 0, 0] = 1.0
  for norm in ('norm1', 'norm2'):
    weights[f'block1/{norm}/scale'] = np.ones(1)
    weights[f'block1/{norm}/bias'] = np.zeros(1)
  options = {'layout': 'A1', 'groups': 1, 'eps': 0.0}
  actual = ddep_networks.decoder_blocks(maps, weights, **options)[1]

  def normed(x):
    return np.maximum((x - x.mean()) / x.std(), 0)

  expected = normed(normed(maps['skip8'][..., 2:]))
  np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_level_modulates_the_norms(rng):
  options = {'widths': (8, 8, 8, 8, 4), 'channels': CHANNELS}
  weights = ddep_checkpoints.decoder_weights(rng, level_features=6, **options)
  maps = random_maps(rng, 2, CHANNELS)
  level = rng.normal(size=(2, 6))
  plain = ddep_networks.decoder(maps, weights, groups=4)
  result = ddep_networks.decoder(maps, weights, groups=4, level=level)
  assert np.abs(result - plain).max() > 1e-3
  zeros = {k: v * ('film' not in k) for k, v in weights.items()}
  silent = ddep_networks.decoder(maps, zeros, groups=4, level=level)
  np.testing.assert_array_equal(silent, plain)


def test_level_features_by_hand():
  actual = ddep_networks.sinusoidal(np.array([2.0]), 4, max_period=100.0)
  expected = [np.sin(2), np.sin(0.2), np.cos(2), np.cos(0.2)]
  np.testing.assert_allclose(actual, [expected])
  weights = {
    'level/dense1/kernel': np.ones((4, 1)),
    'level/dense1/bias': np.array([1.0]),
    'level/dense2/kernel': np.array([[2.0, 3.0]]),
    'level/dense2/bias': np.array([0.0, 5.0]),
  }
  # Sines of 0 and cosines of 0: 2 + 1 = 3, and silu(3) = 3 sigmoid(3).
  silu = 3 / (1 + np.exp(-3))
  actual = ddep_networks.embed_level(np.array([0.0]), weights)
  np.testing.assert_allclose(actual, [[2 * silu, 3 * silu + 5]])


# Counts.


def test_parameters_of_the_encoders():
  assert ddep_counts.parameters(ddep_counts.stem_layers(224)) == 11_894_848
  assert ddep_counts.parameters(ddep_counts.vit_layers(224)) == 85_995_264
  bit = ddep_counts.stem_layers(224, preactivation=True, **BIT)
  assert ddep_counts.parameters(bit) == 23_500_352
  longer = ddep_counts.vit_layers(512, grid=32)
  assert ddep_counts.parameters(longer) == 85_995_264 + (1025 - 197) * 768


@pytest.mark.parametrize(
  ('layout', 'times', 'expected'),
  [
    ('A', 1, 28_947_907),
    ('A', 2, 95_570_819),
    ('A', 3, 199_868_739),
    ('A1', 1, 19_508_675),
    ('A1', 2, 57_817_987),
    ('A1', 3, 114_927_939),
    ('unet', 1, 50_181_571),
  ],
)
def test_parameters_of_the_decoders(layout, times, expected):
  options = {'layout': layout, 'widths': widths(times)}
  actual = ddep_counts.parameters(ddep_counts.decoder_layers(224, **options))
  assert actual == expected
  rng = np.random.default_rng(0)
  weights = ddep_checkpoints.decoder_weights(rng, std_scale=0, **options)
  assert ddep_checkpoints.count_parameters(weights, exclude=()) == expected


def test_parameters_of_the_blocks_and_of_a_wider_head():
  layers = ddep_counts.decoder_layers(224)
  assert [
    sum(layer.params for layer in layers if layer.name.startswith(name))
    for name in ('block0', 'block1', 'block2', 'block3', 'block4')
  ] == [16_519_168, 9_439_232, 2_360_320, 516_608, 110_848]
  single = ddep_counts.decoder_layers(224, layout='A1')
  assert sum(
    layer.params for layer in single if layer.name.startswith('block0')
  ) == 7_079_936  # fmt: skip
  for times, expected in ((1, 32_889), (2, 65_721), (3, 98_553)):
    few, many = (
      ddep_counts.parameters(
        ddep_counts.decoder_layers(224, widths=widths(times), outputs=outputs)
      )
      for outputs in (3, 60)
    )
    assert many - few == expected


@pytest.mark.parametrize(
  ('size', 'outputs', 'stem', 'vit', 'layout_a', 'layout_a1', 'sums'),
  [
    (224, 3, 7.9, 35.2, (60.3, 216.8, 469.4), (56.6, 202.0, 436.1),
     (103, 260, 512)),
    (512, 60, 41.1, 214.5, (332, 1167, 2504), (313, 1090, 2330),
     (588, 1422, 2760)),
    (1024, 19, 164.4, 1321, (1279, 4569, 9868), (1202, 4259, 9172),
     (2765, 6054, 11353)),
  ],
)  # fmt: skip
def test_operations_of_transunet(
  size, outputs, stem, vit, layout_a, layout_a1, sums
):
  found_stem = ddep_counts.gflops(ddep_counts.stem_layers(size))
  found_vit = ddep_counts.gflops(ddep_counts.vit_layers(size))
  assert found_stem == pytest.approx(stem, rel=0.01)
  assert found_vit == pytest.approx(vit, rel=0.01)
  for layout, expected in (('A', layout_a), ('A1', layout_a1)):
    decoders = [
      ddep_counts.gflops(
        ddep_counts.decoder_layers(
          size, layout=layout, widths=widths(times), outputs=outputs
        )
      )
      for times in (1, 2, 3)
    ]
    assert decoders == pytest.approx(expected, rel=0.01)
    if layout == 'A':
      both = [found_stem + found_vit + one for one in decoders]
      assert both == pytest.approx(sums, rel=0.01)


def test_operations_of_attention_alone_at_1024():
  layers = ddep_counts.vit_layers(1024)
  result = ddep_counts.gflops(
    layer for layer in layers if layer.name.endswith('attention')
  )
  assert result == pytest.approx(619, abs=0.5)


@pytest.mark.parametrize(
  ('size', 'encoder', 'expected'),
  [(224, 8.2, 68.6), (512, 42.7, 358), (1024, 171, 1434)],
)
def test_operations_of_the_unet(size, encoder, expected):
  actual = ddep_counts.gflops(ddep_counts.stem_layers(size, **BIT))
  assert actual == pytest.approx(encoder, rel=0.01)
  # The specification's row has the 3-channel head at every size.
  decoder = ddep_counts.decoder_layers(size, layout='unet')
  assert ddep_counts.gflops(decoder) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(('times', 'cost'), [(1, 212), (2, 669), (3, 1415)])
def test_operations_of_a_frozen_step(times, cost):
  result = ddep_counts.frozen_gflops(224, widths=widths(times))
  assert result == pytest.approx(cost, abs=0.5)


# Noise.


def test_noise_levels_of_the_paper():
  assert ddep_noise.sigma_of(0.95) == pytest.approx(0.2294, abs=5e-5)
  assert np.sqrt(1 - 0.95) == pytest.approx(0.2236, abs=5e-5)
  assert ddep_noise.gamma_of(0.22) == pytest.approx(0.9538, abs=5e-5)
  assert ddep_noise.sigma_of(0.90) == pytest.approx(0.3333, abs=5e-5)
  assert ddep_noise.gamma_of(0.8) == pytest.approx(0.61, abs=5e-3)


def test_simple_noise_by_hand():
  clean = np.full((2, 1, 1, 1), 0.5)
  eps = np.ones_like(clean)
  unit = ddep_noise.simple_noise(clean, eps, 0.25)
  np.testing.assert_allclose(unit.ravel(), [1.0, 1.0])
  each = ddep_noise.simple_noise(clean, eps, np.array([0.25, 1.0]), 'symmetric')
  np.testing.assert_allclose(each.ravel(), [0.75, 1.5])


def test_scaled_noise_by_hand():
  clean = np.full((2, 1, 1, 1), 0.5)
  eps = np.ones_like(clean)
  result = ddep_noise.scaled_noise(clean, eps, np.array([0.64, 1.0]))
  np.testing.assert_allclose(result.ravel(), [0.8 * 0.5 + 0.6, 0.5])
  # x = 0.75 becomes 0.6 + 0.6 = 1.2, which is 1.4 on [-1, 1].
  unit = ddep_noise.scaled_noise(clean, eps, 0.64, 'unit')
  np.testing.assert_allclose(unit.ravel(), [1.4, 1.4])


def test_the_public_lines_are_equation_5(rng):
  clean = rng.uniform(-1, 1, (3, 4, 5, 3))
  eps = rng.normal(size=clean.shape)
  gamma = np.array([0.9, 0.95, 1.0])
  unit = ddep_noise.scaled_noise_of_unit_image((clean + 1) / 2, eps, gamma)
  expected = ddep_noise.scaled_noise(clean, eps, gamma)
  np.testing.assert_allclose(2 * unit - 1, expected, atol=1e-12)
  # And Eq. 5 with sigma: (1 + sigma²)^(-1/2) (y + sigma e).
  sigma = ddep_noise.sigma_of(0.95)
  by_sigma = (clean + sigma * eps) / np.sqrt(1 + sigma**2)
  np.testing.assert_allclose(
    ddep_noise.scaled_noise(clean, eps, 0.95), by_sigma, atol=1e-12
  )


def test_targets_by_hand():
  clean = np.full((2, 1, 1, 1), 0.5)
  eps = np.full_like(clean, 2.0)

  def values(kind, **level):
    return ddep_noise.noise_target(kind, clean, eps, **level).ravel().tolist()

  gamma = np.array([0.64, 1.0])
  assert values('eps', gamma=gamma) == [2.0, 0.0]
  assert values('eps_scaled', gamma=gamma) == pytest.approx([1.2, 0.0])
  assert values('x', gamma=gamma) == [0.5, 0.5]
  assert values('eps', sigma=0.3) == [2.0, 2.0]
  assert values('eps_scaled', sigma=0.3) == [0.6, 0.6]
  for level in ({}, {'gamma': 0.9, 'sigma': 0.1}):
    with pytest.raises(ValueError, match='gamma'):
      values('eps', **level)


def test_loss_is_a_mean():
  target = np.array([1.0, -1.0, 3.0, 1.0])
  assert ddep_noise.denoising_loss(np.zeros(4), target) == 3.0


def test_random_gamma_stops_at_one():
  result = ddep_noise.clipped_uniform(np.array([0.0, 0.5, 1.0]), 0.9, 1.2)
  np.testing.assert_allclose(result, [0.9, 1.0, 1.0])


def test_schedules_by_hand():
  linear = ddep_noise.gamma_schedule('linear', 0.5, 0.9, 3)
  np.testing.assert_allclose(linear, [0.9, 0.7, 0.5])
  product = ddep_noise.gamma_schedule('multiplicative', 0.5, 0.9, 3)
  np.testing.assert_allclose(product, [1.0, 0.9, 0.63])
