"""Networks and noise against the numpy code of `tests.transcriptions`.

The networks read their weights from a file with public names, as a stage does;
the transcription uses the same arrays.
"""

import jax
import numpy as np
import pytest
from flax import traverse_util

from ddep import noise
from segcore.models import features, heads, segmenter
from segcore.models.decoders import unet
from segcore.models.layers import norm
from segcore.weights import load
from tests.support import fake_checkpoints
from tests.transcriptions import ddep_checkpoints, ddep_networks, ddep_noise

_GROUPS = fake_checkpoints.GROUPS
_NAMES = {
  'root': 'skip2',
  'block1': 'skip4',
  'block2': 'skip8',
  'block3': 'feat16',
  'block4': 'feat32',
  'tokens': 'tokens',
}


def images(height, width):
  rng = np.random.default_rng(height + 2 * width)
  return rng.uniform(-1, 1, (1, height, width, 3)).astype(np.float32)


def loaded(tmp_path, encoder, weights):
  """Returns the encoder's parameters, read as by a stage."""
  np.savez(tmp_path / 'w.npz', **weights)
  module = segmenter.Segmenter(encoder, None, {'tags': heads.PoolHead(2)})
  selected = load.load_weight_parts(
    tmp_path / 'w.npz', ('encoder',), module, (1, 64, 64, 3)
  )
  return {'params': selected['params']['encoder']}


def assert_same_maps(encoder, variables, pixels, expected):
  outputs = jax.device_get(jax.jit(encoder.apply)(variables, pixels))
  maps = {_NAMES[each.name]: each.array for each in outputs.maps}
  assert list(maps) == list(expected)
  for name, x in maps.items():
    np.testing.assert_allclose(x, expected[name], atol=2e-4, err_msg=name)
    assert np.std(x) > 0.05, name


@pytest.mark.parametrize(
  ('size', 'grid', 'use_cls_token'),
  [
    ((64, 64), (4, 4), True),
    ((64, 96), (4, 6), True),  # The table is resized when it is read.
    ((96, 64), (4, 4), False),  # The table is resized in the forward pass.
  ],
)
def test_hybrid(tmp_path, size, grid, use_cls_token):
  weights = fake_checkpoints.hybrid()
  encoder = fake_checkpoints.HYBRID.clone(
    grid=grid, use_cls_token=use_cls_token
  )
  pixels = images(*size)
  expected = ddep_networks.hybrid_encoder(
    pixels, weights, groups=_GROUPS, use_cls_token=use_cls_token
  )
  variables = loaded(tmp_path, encoder, weights)
  assert_same_maps(encoder, variables, pixels, expected)


@pytest.mark.parametrize('size', [(64, 64), (70, 37)])
@pytest.mark.parametrize(
  ('encoder', 'make_weights', 'transcription'),
  [
    (
      fake_checkpoints.BIT,
      fake_checkpoints.bit_m,
      ddep_networks.bit_encoder,
    ),
    (
      fake_checkpoints.RESNET,
      fake_checkpoints.hybrid_of_four_blocks,
      ddep_networks.stem,
    ),
  ],
  ids=['bit', 'post_activation_resnet'],
)
def test_resnets(tmp_path, size, encoder, make_weights, transcription):
  weights, pixels = make_weights(), images(*size)
  expected = transcription(pixels, weights, groups=_GROUPS)
  variables = loaded(tmp_path, encoder, weights)
  assert_same_maps(encoder, variables, pixels, expected)


def test_bit_with_normed_skips(tmp_path):
  weights = fake_checkpoints.bit_m()
  encoder = fake_checkpoints.BIT.clone(skip_norm=True)
  pixels = images(64, 96)
  sizes = {'skip2': 8, 'skip4': 32, 'skip8': 64, 'feat16': 128}
  expected = ddep_networks.bit_encoder(
    pixels,
    weights,
    groups=_GROUPS,
    skip_norms={k: (np.ones(n), np.zeros(n)) for k, n in sizes.items()},
  )
  variables = loaded(tmp_path, encoder, weights)
  assert_same_maps(encoder, variables, pixels, expected)


_WIDTHS = (16, 12, 8, 8, 4)
_STEM_MAPS = {
  'skip2': (2, 3),
  'skip4': (4, 5),
  'skip8': (8, 6),
  'feat16': (16, 7),
}
_HYBRID_MAPS = {**_STEM_MAPS, 'tokens': (16, 8)}
_RESNET_MAPS = {**_STEM_MAPS, 'feat32': (32, 8)}


@pytest.mark.parametrize('layout', ['A', 'A1', 'B', 'unet'])
@pytest.mark.parametrize('conditional', [False, True])
def test_decoder(layout, conditional):
  rng = np.random.default_rng(0)
  strides = _RESNET_MAPS if layout == 'unet' else _HYBRID_MAPS
  maps = {
    name: rng.normal(size=(2, 32 // stride, 64 // stride, channels))
    for name, (stride, channels) in strides.items()
  }
  weights = ddep_checkpoints.decoder_weights(
    rng,
    layout=layout,
    widths=_WIDTHS,
    channels={name: channels for name, (_, channels) in strides.items()},
    level_features=256 if conditional else None,
  )
  params = {
    tuple(name.replace('film', 'modulation').split('/')): np.float32(x)
    for name, x in weights.items()
  }
  level, gamma, embedding = None, None, norm.NoiseEmbedding()
  if conditional:
    params = {
      (*at[:-1], 'dense', at[-1]) if 'modulation' in at[1] else at: x
      for at, x in params.items()
    }
    gamma = jax.device_put(np.float32([0.4, 0.9]))
    initialize = jax.jit(embedding.init_with_output)
    level, variables = initialize(jax.random.key(0), gamma)
    level, own = np.asarray(level, np.float64), variables['params']
    for at, x in traverse_util.flatten_dict(own).items():
      params['embedding', *at] = x
  head = {at[1]: params.pop(at) for at in [*params] if at[0] == 'head'}
  decoder = unet.UNetDecoder(
    _WIDTHS,
    layout='A' if layout == 'unet' else layout,
    num_groups=2,
    conditional=conditional,
  )
  inputs = features.Features(
    tuple(
      features.FeatureMap(name, strides[name][0], jax.device_put(np.float32(x)))
      for name, x in maps.items()
    )
  )

  @jax.jit
  def run(params, head):
    decoded = decoder.apply({'params': params}, inputs, gamma)
    conv_head = heads.ConvHead(3)
    finest = decoded.at_stride(1).array
    return decoded, conv_head.apply({'params': {'conv': head}}, finest)

  decoded, scores = run(traverse_util.unflatten_dict(params), head)
  fields = {'layout': layout, 'groups': 2, 'level': level}
  expected = ddep_networks.decoder_blocks(maps, weights, **fields)
  for each, x in zip(decoded.maps, expected, strict=True):
    np.testing.assert_allclose(each.array, x, atol=2e-4, err_msg=each.name)
  np.testing.assert_allclose(
    scores, ddep_networks.decoder(maps, weights, **fields), atol=2e-4
  )


@pytest.mark.parametrize('target', ['eps', 'x', 'eps_scaled'])
@pytest.mark.parametrize('kind', ['scaled', 'simple'])
def test_noise(kind, target):
  rng = np.random.default_rng(0)
  pixels, eps = rng.normal(size=(2, 3, 4, 5, 3)).astype(np.float32)
  gamma = np.array([0.95, 0.5, 1.0])
  options = noise.NoiseOptions(kind=kind, gamma_range=(0.4, 1.1), target=target)
  given = [jax.device_put(np.float32(x)) for x in (pixels, eps, gamma)]
  noisy = jax.jit(noise.corrupt_with_noise, static_argnums=3)(*given, options)
  aim = jax.jit(noise.denoising_target, static_argnums=3)(*given, options)
  if kind == 'scaled':
    expected = ddep_noise.scaled_noise(pixels, eps, gamma)
    strength = {'gamma': gamma}
  else:
    sigma = ddep_noise.sigma_of(gamma)
    expected = ddep_noise.simple_noise(pixels, eps, sigma)
    strength = {'sigma': sigma}
  np.testing.assert_allclose(noisy, expected, atol=1e-5)
  expected = ddep_noise.noise_target(target, pixels, eps, **strength)
  if (kind, target) == ('simple', 'eps'):
    expected[2] = 0  # At γ = 1 there is no noise to predict.
  np.testing.assert_allclose(aim, expected, atol=1e-5)


@pytest.mark.parametrize('draw', ['linear', 'multiplicative'])
def test_levels_of_time_steps(draw):
  options = noise.NoiseOptions(
    gamma_range=(0.9, 0.999), draw=draw, num_steps=20
  )
  np.testing.assert_allclose(
    options.levels, ddep_noise.gamma_schedule(draw, 0.9, 0.999, 20)
  )


def test_gamma_drawn_from_a_range():
  keys = jax.random.split(jax.random.PRNGKey(0), 50)
  options = noise.NoiseOptions(gamma_range=(0.8, 1.1))
  drawn = jax.jit(noise.sample_noise_gamma, static_argnums=1)(keys, options)
  draw = jax.jit(
    jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))
  )
  uniform = np.asarray(draw(keys))
  np.testing.assert_allclose(
    drawn, ddep_noise.clipped_uniform(uniform, 0.8, 1.1), atol=1e-6
  )
