"""Steps with given outputs, to test an objective without a network."""

import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from pass_luss.pretrain import objective
from segcore.models import features, segmenter


def state(step=0, params=None, queue=None, memory=None):
  """Builds a state with only what objectives read."""
  return objective.State(
    step=jnp.asarray(step),
    params=params,
    batch_stats={},
    opt_state={},
    rng=None,
    queue=queue,
    momentum_params=None,
    momentum_batch_stats=None,
    memory=memory,
  )


def layer_weights(params):
  """Returns the parameters of layers as the transcription names them."""
  names = {'kernel': 'w', 'bias': 'b'}
  weights = {}
  for i in range(1, len(params) + 1):
    for name, value in params.get(f'dense{i}', {}).items():
      weights[f'{names[name]}{i}'] = np.asarray(value)
    for name, value in params.get(f'bn{i}', {}).items():
      weights[f'{ {"scale": "gamma", "bias": "beta"}[name] }{i}'] = value
  return weights


def bind(name, head, maps, seed=0):
  """Initializes a head and binds it, as the network that an objective calls.

  Returns:
    An object with `heads.call_method`, and the head's parameters, random in
    float64.
  """
  shapes = jax.eval_shape(head.init, jax.random.PRNGKey(seed), maps)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes['params'])
  stats = jax.tree.map(
    lambda x: np.zeros(x.shape), shapes.get('batch_stats', {})
  )

  def call_method(called, method, *arguments):
    assert called == name
    return head.apply(
      {'params': params, 'batch_stats': stats},
      *arguments,
      method=method,
      mutable=['batch_stats'],
    )[0]

  net = mock.Mock(spec=segmenter.Segmenter)
  net.heads = types.SimpleNamespace(call_method=call_method)
  return net, params


def encoded(maps, by_view=False, batch=()):
  """Returns the encoder's maps of two large views, [B, 2, h, w, D]."""
  deepest = features.FeatureMap(
    'x4', 32, jnp.asarray(maps.reshape(-1, *maps.shape[2:]))
  )
  return objective.EncodedViews(
    {'large': features.Features((deepest,))}, dict(batch), len(maps), by_view
  )


def step(
  outputs,
  *,
  prototypes=None,
  queue=None,
  targets=None,
  momentum_outputs=None,
  batch=None,
  memory=None,
  number=0,
  rng=None,
):
  """Builds what the targets and the loss of an objective read."""
  params = {'heads': {'clusters': {'prototypes': prototypes}}}
  return objective.Step(
    params=params,
    state=state(number, params=params, queue=queue, memory=memory),
    batch=batch or {},
    outputs=outputs,
    momentum_outputs=momentum_outputs or {},
    targets=targets or {},
    rng=rng,
  )
