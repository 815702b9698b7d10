"""Heads of pretraining against slow numpy transcriptions (spec §2.4, §3.1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pass_luss.pretrain import heads
from segcore.models.layers import norm
from tests.pass_luss import support
from tests.pass_luss.pretrain import arrays
from tests.pass_luss.pretrain.arrays import BATCH, SIZE
from tests.transcriptions import pass_labels, pass_pretraining

pytestmark = pytest.mark.usefixtures('float64')


def random_values(variables, seed=0):
  """Returns a tree of the same shapes."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(size=x.shape) * 0.5 + 0.3, variables)


def init(head, x):
  """Returns the initial values of a head for inputs `x`."""
  return jax.jit(head.init)(jax.random.PRNGKey(0), x)


def apply(head, params, stats, x, train=True):
  """Applies a head, in training mode by default."""
  return jax.jit(
    lambda variables, x: head.apply(
      variables, x, train, mutable=['batch_stats']
    )
  )({'params': params, 'batch_stats': stats}, x)[0]


def batch_norm_weights(params, name):
  """Returns scale and shift under the transcription's names."""
  return {
    f'gamma{name}': np.asarray(params[f'bn{name}']['scale']),
    f'beta{name}': np.asarray(params[f'bn{name}']['bias']),
  }


def test_projection_of_images():
  head = heads.Projection(6, 4, jnp.float64)
  x = arrays.normal(BATCH, SIZE)
  variables = init(head, x)
  params = random_values(variables['params'])
  actual = apply(head, params, variables['batch_stats'], x)
  assert set(params) == {'dense1', 'bn1', 'dense2'}
  weights = support.projection_weights(params)
  # The last norm and the result are float32 by design.
  arrays.assert_close(
    actual, pass_pretraining.image_projection(x, weights), rtol=1e-4
  )


def test_pixel_projection_and_predictor():
  x = arrays.normal(3, 2, 4, SIZE)
  head = heads.PixelProjection(6, 3, jnp.float64)
  variables = init(head, x)
  params = random_values(variables['params'])
  assert not any('bias' in params[f'conv{i}'] for i in (1, 2, 3))
  actual = apply(head, params, variables['batch_stats'], x)
  weights = {
    f'w{i}': np.asarray(params[f'conv{i}']['kernel'])[0, 0] for i in (1, 2, 3)
  } | {**batch_norm_weights(params, 1), **batch_norm_weights(params, 2)}
  arrays.assert_close(actual, pass_pretraining.pixel_mlp(x, weights))

  head = heads.Predictor(jnp.float64)
  variables = init(head, x)
  params = random_values(variables['params'])
  actual = apply(head, params, variables['batch_stats'], x)
  weights = {
    'w1': params['conv1']['kernel'][0, 0],
    'gamma': params['bn1']['scale'],
    'beta': params['bn1']['bias'],
    'w2': params['conv2']['kernel'][0, 0],
    'b2': params['conv2']['bias'],
  }
  weights = jax.tree.map(np.asarray, weights)
  arrays.assert_close(actual, pass_pretraining.predictor(x, weights))


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('train', [False, True])
def test_attention(shared, train):
  maps = arrays.normal(2, 2, 3, SIZE)
  head = heads.AttentionHead(shared=shared, dtype=jnp.float64)
  variables = init(head, maps)
  assert not np.asarray(variables['params']['threshold']).any()
  params = random_values(variables['params'])
  stats = jax.tree.map(
    lambda x: np.abs(x) + 0.5, random_values(variables['batch_stats'], 1)
  )
  actual = apply(head, params, stats, maps, train)
  weights = {
    'w1': np.asarray(params['conv1']['kernel'])[0, 0],
    'b1': np.asarray(params['conv1']['bias']),
    'w2': np.asarray(params['conv2']['kernel'])[0, 0],
    'b2': np.asarray(params['conv2']['bias']),
    'theta': np.asarray(params['threshold']),
    **batch_norm_weights(params, 1),
    **batch_norm_weights(params, 2),
  }
  for i in (1, 2):
    weights[f'mean{i}'] = np.asarray(stats[f'bn{i}']['mean'])
    weights[f'variance{i}'] = np.asarray(stats[f'bn{i}']['var'])
  upsampled = pass_pretraining.normalize(pass_labels.bilinear(maps, (8, 12)))
  expected = pass_labels.attention(upsampled, weights, train)
  assert actual.shape == (2, 8, 12, 1 if shared else SIZE)
  # The last norm and upsampled maps are float32 by design.
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_norms_without_scale_and_shift_have_no_parameters():
  plain = norm.batch_norm(
    train=True, dtype=jnp.float32, name='bn', affine=False
  )
  variables = init(plain, np.ones((4, 3)))
  assert set(variables) == {'batch_stats'}


def test_initial_values_are_those_of_torch():
  """They are uniform within 1/sqrt(fan_in), for dense layers and biases."""
  head = heads.Projection(64, 32)
  params = init(head, np.zeros((2, 400)))['params']
  for name, fan_in in (('dense1', 400), ('dense2', 64)):
    for leaf in params[name].values():
      assert np.abs(leaf).max() <= 1 / np.sqrt(fan_in)
    kernel = np.asarray(params[name]['kernel'])
    # A uniform distribution's deviation is its bound divided by √3.
    np.testing.assert_allclose(kernel.std(), 1 / np.sqrt(3 * fan_in), rtol=0.05)
