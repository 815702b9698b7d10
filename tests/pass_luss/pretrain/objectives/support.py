"""Steps with given outputs, to test an objective without a network."""

import jax.numpy as jnp

from pass_luss.pretrain import objective


def state(step=0, params=None, queue=None):
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
  )


def step(
  outputs,
  *,
  prototypes=None,
  queue=None,
  targets=None,
  momentum_outputs=None,
  batch=None,
):
  """Builds what the targets and the loss of an objective read."""
  params = {'heads': {'clusters': {'prototypes': prototypes}}}
  return objective.Step(
    params=params,
    state=state(params=params, queue=queue),
    batch=batch or {},
    outputs=outputs,
    momentum_outputs=momentum_outputs or {},
    targets=targets or {},
  )
