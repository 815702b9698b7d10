"""Steps with given outputs, to test an objective without a network."""

import types
from typing import Any, NamedTuple
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


def bind_head(objective_, maps):
  """Initializes the head of an objective in float64, for two large views.

  Args:
    objective_: the objective, whose head has its name.
    maps: maps of both views, [B, 2, h, w, D].

  Returns:
    The network that the objective calls, and the weights of each module of the
    head, as the transcription names them.
  """
  head = objective_.heads(jnp.float64)[objective_.name]
  net, params = bind(objective_.name, head, maps[:, 0])
  return net, {name: layer_weights(each) for name, each in params.items()}


class Evaluated(NamedTuple):
  """The results of one step of an objective.

  Attributes:
    outputs: its outputs.
    terms: terms of its loss.
    scalars: further scalars.
    memory: its memory after the step.
  """

  outputs: Any
  terms: Any
  scalars: Any
  memory: Any


def evaluate(objective_, net, maps, *, by_view=False, memory=None, batch=None):
  """Runs a step of an objective on given maps of both networks.

  Args:
    objective_: the objective.
    net: network that `bind_head` has bound.
    maps: maps of both views, [B, 2, h, w, D].
    by_view: whether batch statistics are of each view.
    memory: memory of the objective before the step.
    batch: labels that the objective reads.
  """

  @jax.jit
  def run(maps, memory, batch):
    views, name = encoded(maps, by_view), objective_.name
    fields = {'batch': batch, 'memory': {name: memory}}
    if objective_.needs_momentum:
      momentum_outputs = objective_.momentum_outputs(net, views)
      fields['momentum_outputs'] = {name: momentum_outputs}
    outputs = {name: objective_.outputs(net, views)}
    targets = {name: objective_.targets(step(outputs, **fields))}
    full = step(outputs, targets=targets, **fields)
    new = objective_.after_update(full, full.state)
    return Evaluated(outputs[name], *objective_.loss(full), new.memory[name])

  return run(maps, memory, batch)
