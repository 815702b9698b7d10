"""Encoders and decoders of DDeP against hand calculation."""

import numpy as np
import pytest

from tests.support import fake_checkpoints
from tests.transcriptions import (
  ddep_checkpoints,
  ddep_counts,
  ddep_layers,
  ddep_networks,
)

SMALL = fake_checkpoints.SMALL_HYBRID | {
  'hidden': 12,
  'heads': 3,
  'mlp': 20,
  'grid': 3,
  'mids': (4, 8, 8),
  'blocks': (1, 2, 1),
}
CHANNELS = {'skip2': 8, 'skip4': 16, 'skip8': 32, 'feat16': 32, 'tokens': 12}


def image(*shape):
  return np.random.default_rng(1).uniform(-1, 1, (*shape, 3))


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
