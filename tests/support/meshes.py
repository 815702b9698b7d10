"""Meshes of some devices; steps of a method on one and on eight."""

import contextlib

import jax
import numpy as np
import pytest

from segcore.cost import communication
from segcore.distributed import sharding

# Numbers of devices over which large leaves of the state are split.
SPLIT = tuple(pytest.param(parts, marks=pytest.mark.slow) for parts in (1, 4))


def one_and_eight(trained, state, batches, fsdp, monkeypatch):
  """Returns state and scalars after the batches, on 1 and on 8 devices."""
  monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 64)
  results = []
  for num_devices, num_parts in ((1, 1), (8, fsdp)):
    mesh = sharding.make_mesh(num_parts, jax.devices()[:num_devices])
    shardings = sharding.state_shardings(mesh, state)
    is_split = any('fsdp' in x.spec for x in jax.tree.leaves(shardings))
    assert is_split == (num_parts > 1)
    replicated = sharding.replicated_sharding(mesh)
    step = jax.jit(trained.train_step, out_shardings=(shardings, replicated))
    put = sharding.make_batch_sharder(mesh)
    new, scalars = jax.device_put(state, shardings), {}
    for batch in batches:
      new, scalars = step(new, put(batch))
    results.append(jax.device_get((new, scalars)))
  return results


def assert_close(one, eight, atol=1e-6):
  """Asserts that state and scalars of one and of eight devices are equal."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol),
    one,
    eight,
  )


def collectives_of_step(trained, state, batch):
  """Returns the collectives of a step on all devices, by kind.

  The state is replicated, the batch divided.
  """
  mesh = sharding.make_mesh()
  with _named_operations():
    compiled = (
      jax.jit(trained.train_step)
      .lower(
        jax.device_put(state, sharding.replicated_sharding(mesh)),
        sharding.make_batch_sharder(mesh)(batch),
      )
      .compile()
    )
  kinds = {}
  for collective in communication.list_collectives(compiled):
    kinds.setdefault(collective.kind, []).append(collective)
  return kinds


@contextlib.contextmanager
def _named_operations():
  """Compiles with the names of operations, also where they are cached.

  Tests leave out the call stacks of operations, and with them parts of the
  names; and the cache gives a program under whatever names it was compiled.
  """
  names = (
    'jax_include_full_tracebacks_in_locations',
    'jax_compilation_cache_include_metadata_in_key',
  )
  before = {name: getattr(jax.config, name) for name in names}
  for name in names:
    jax.config.update(name, True)
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def mesh_of(num_devices=8):
  """Returns a mesh of the first devices."""
  return sharding.make_mesh(devices=jax.devices()[:num_devices])
