"""MiT against a transcription in numpy, its sizes, and stochastic depth."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax import export as jax_export

from segcore.models.encoders import mit
from segcore.weights.layouts import mit as layout
from tests.support import mit_states
from tests.transcriptions import mit as transcription

_HEADS = (1, 2, 3, 2)
_SMALL = {
  'hidden_sizes': mit_states.SMALL['sizes'],
  'num_layers': mit_states.SMALL['layers'],
  'num_heads': _HEADS,
}


def _state():
  return mit_states.official(**mit_states.SMALL)


def _params(state):
  encoder = layout.translate_mit_weights(state)['params']['encoder']
  return {'params': jax.tree.map(jnp.asarray, encoder)}


@pytest.fixture
def x64():
  """Computes in float64."""
  with jax.enable_x64():
    yield


@pytest.mark.parametrize(
  ('name', 'count', 'of_norms'),
  [
    ('b0', 3_319_392, 7_168),
    ('b1', 13_151_424, 14_336),
    ('b2', 24_196_288, 25_984),
    ('b3', 44_072_128, 49_024),
    ('b4', 60_842_688, 69_376),
    ('b5', 81_443_008, 92_800),
  ],
)
def test_published_sizes_have_their_parameters(name, count, of_norms):
  module = mit.MiT(**mit.SIZES[name])
  images = jax.ShapeDtypeStruct((1, 64, 97, 3), jnp.float32)
  maps, variables = jax.eval_shape(
    module.init_with_output, jax.random.key(0), images
  )
  leaves = traverse_util.flatten_dict(variables['params'], sep='/')
  assert sum(x.size for x in leaves.values()) == count
  norms = [x.size for path, x in leaves.items() if 'norm' in path]
  assert sum(norms) == of_norms
  sizes = (32, 64, 160, 256) if name == 'b0' else (64, 128, 320, 512)
  assert [(x.name, x.stride, *x.array.shape) for x in maps.maps] == [
    (f'stage{s + 1}', stride, 1, 64 // stride, -(-97 // stride), sizes[s])
    for s, stride in enumerate((4, 8, 16, 32))
  ]


def _assert_equal_to_transcription(maps, scores, pixels, strides):
  """Asserts equal maps of all stages, and scores of the last block."""
  assert [x.stride for x in maps.maps] == np.cumprod(strides).tolist()
  for b, image in enumerate(pixels):
    expected, expected_scores = transcription.encode(
      image,
      _state(),
      heads=_HEADS,
      layers=_SMALL['num_layers'],
      strides=strides,
      reductions=mit_states.SMALL['reductions'],
    )
    for actual, wanted in zip(maps.maps, expected, strict=True):
      assert actual.array.dtype == jnp.float64
      np.testing.assert_allclose(actual.array[b], wanted, atol=1e-6, rtol=0)
    np.testing.assert_allclose(scores[b], expected_scores, atol=1e-6, rtol=0)


def _pixels_and_images(*shape):
  pixels = np.random.default_rng(2).integers(0, 256, (*shape, 3))
  return pixels, jnp.asarray(pixels / 127.5 - 1.0)


def _scores(maps):
  """Returns q·k of all heads of the last block, before scaling."""
  attention = maps.attention[-1]
  return jnp.einsum('bqhd,bkhd->bhqk', attention.query, attention.key)


def test_maps_of_odd_sides_equal_the_transcription(x64):
  """Also with blocks that are recomputed; gradients reach all parameters."""
  # Maps of 12x16, 6x8 and 3x4 cells, of which reductions leave some out.
  pixels, images = _pixels_and_images(2, 45, 61)
  module = mit.MiT(**_SMALL, dtype=jnp.float64, remat=True)

  def loss(params):
    maps = module.apply(params, images)
    total = sum(jnp.sum(jnp.sin(x.array)) for x in maps.maps)
    return total, (maps, _scores(maps))

  (_, (maps, scores)), gradient = jax.jit(
    jax.value_and_grad(loss, has_aux=True)
  )(_params(_state()))
  _assert_equal_to_transcription(maps, scores, pixels, (4, 2, 2, 2))
  for path, leaf in traverse_util.flatten_dict(gradient, sep='/').items():
    assert np.all(np.isfinite(leaf)), path
    assert np.any(leaf != 0), path


def test_maps_and_scores_of_afa_equal_the_transcription(x64):
  pixels, images = _pixels_and_images(1, 40, 72)
  strides = (4, 2, 2, 1)
  module = mit.MiT(**_SMALL, strides=strides, dtype=jnp.float64)
  maps = jax.jit(module.apply)(_params(_state()), images)
  assert len(maps.attention) == _SMALL['num_layers'][-1]
  _assert_equal_to_transcription(maps, _scores(maps), pixels, strides)


def test_branches_are_dropped_for_each_image_by_itself():
  """Four outcomes, of which kept branches are divided by 1 - p."""
  rate, num_images = 0.3, 2000
  state = _state()
  params = {'params': _params(state)['params']['stage1']['block0']}
  block = mit.MiTBlock(1, 8, 32, rate, jnp.float32)
  cells = np.random.default_rng(3).normal(size=(9, 8, 8))
  x = jnp.broadcast_to(jnp.float32(cells), (num_images, 9, 8, 8))
  apply = jax.jit(block.apply, static_argnums=2)
  outputs, _ = apply(params, x, True, rngs={'dropout': jax.random.key(0)})
  outputs = np.asarray(outputs)

  state = {name: np.float64(value) for name, value in state.items()}
  attend, perceive = transcription.branches(state, 'block1.0', 1, 8)
  outcomes = {}
  for keeps in itertools.product((False, True), repeat=2):
    y = cells
    for kept, branch in zip(keeps, (attend, perceive), strict=True):
      y = y + branch(y) / (1 - rate) if kept else y
    outcomes[keeps] = y
  distances = np.stack(
    [np.abs(outputs - y).max((1, 2, 3)) for y in outcomes.values()]
  )
  assert np.all(distances.min(0) < 1e-4)
  counts = collections.Counter(distances.argmin(0).tolist())
  for i, keeps in enumerate(outcomes):
    share = np.prod([1 - rate if kept else rate for kept in keeps])
    deviation = np.sqrt(share * (1 - share) / num_images)
    assert abs(counts[i] / num_images - share) < 4 * deviation, keeps
  # The first branch is unbiased.
  first = np.mean(distances.argmin(0) >= 2) / (1 - rate)
  assert abs(first - 1.0) < 0.06
  # In evaluation, and with rate 0, both are kept as they are.
  plain = cells + attend(cells)
  plain = plain + perceive(plain)
  np.testing.assert_allclose(
    apply(params, x[:1], False)[0][0], plain, atol=1e-4, rtol=0
  )


@pytest.mark.parametrize('remat', [False, True])
def test_the_rate_grows_over_all_blocks(monkeypatch, remat):
  rates = []
  monkeypatch.setattr(
    mit.nn, 'Dropout', lambda rate, **_: rates.append(rate) or (lambda y: y)
  )
  module = mit.MiT(num_layers=(1, 2, 1, 2), remat=remat)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  jax.eval_shape(module.init, jax.random.key(0), images)
  # Two branches a block.
  np.testing.assert_allclose(rates[::2], [0, 0.02, 0.04, 0.06, 0.08, 0.1])
  assert rates[::2] == rates[1::2]


def test_initial_values():
  stage = mit.MiTStage(64, 3, 2, 1, 2, 256, (0.0,), jnp.float32, False)
  params = jax.jit(functools.partial(stage.init, train=False))(
    jax.random.key(0), jnp.zeros((1, 4, 4, 32))
  )['params']
  flat = traverse_util.flatten_dict(params, sep='/')
  deviations = {
    'patch_embed': np.sqrt(2 / (9 * 64)),
    'block0/attn/sr': np.sqrt(2 / (4 * 64)),
    'block0/mlp/dwconv': np.sqrt(2 / 9),
    **{f'block0/attn/{name}': 0.02 for name in ('q', 'kv', 'proj')},
    **{f'block0/mlp/{name}': 0.02 for name in ('fc1', 'fc2')},
  }
  for name, deviation in deviations.items():
    kernel = np.asarray(flat.pop(f'{name}/kernel'))
    assert abs(kernel.std() / deviation - 1) < 0.06, name
    assert abs(kernel.mean()) < 0.1 * deviation, name
    if deviation == 0.02:
      assert np.abs(kernel).max() > 0.06, name  # Not truncated at 2 σ.
  for path, leaf in flat.items():
    assert np.all(np.asarray(leaf) == path.endswith('scale')), path


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({}, 'sides of at least 29 pixels, got 28x64: enlarge or pad'),
    ({'num_heads': (1, 2)}, r'num_heads: expected 4 numbers.*got \(1, 2\)'),
    ({'num_heads': (1, 2, 5, 2)}, r'multiples of num_heads=\(1, 2, 5, 2\)'),
  ],
)
def test_what_does_not_fit_is_refused(fields, message):
  module = mit.MiT(**{**_SMALL, **fields})
  images = jax.ShapeDtypeStruct((1, 28, 64, 3), jnp.float32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), images)


def test_a_side_of_29_is_enough():
  module = mit.MiT(**_SMALL)
  images = jax.ShapeDtypeStruct((1, 29, 29, 3), jnp.float32)
  maps, variables = jax.eval_shape(
    module.init_with_output, jax.random.key(0), images
  )
  assert [x.array.shape[1] for x in maps.maps] == [8, 4, 2, 1]
  assert set(variables) == {'params'}  # Scores are kept on request alone.
  # From there on any size can be traced, as for an export.
  height, width = jax_export.symbolic_shape(
    'H, W', constraints=('H >= 29', 'W >= 29')
  )
  images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
  maps = jax.eval_shape(module.apply, variables, images)
  for x, stride in zip(maps.maps, (4, 2, 2, 2), strict=True):
    height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
    assert x.array.shape[1:3] == (height, width)
