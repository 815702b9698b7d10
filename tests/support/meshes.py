"""The same steps of a method, on other meshes."""

import jax
import pytest

from segcore.distributed import sharding

# Over how many of 8 devices large leaves of the state are split.
SPLIT = (1, pytest.param(4, marks=pytest.mark.slow))


def one_and_eight(trained, state, batches, fsdp, monkeypatch):
  """State and scalars after the batches, by 1 and by 8 devices, on the host."""
  monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 64)
  found = []
  for count, split in ((1, 1), (8, fsdp)):
    mesh = sharding.make_mesh(split, jax.devices()[:count])
    places = sharding.state_shardings(mesh, state)
    assert any('fsdp' in x.spec for x in jax.tree.leaves(places)) == (split > 1)
    whole = sharding.replicated(mesh)
    step = jax.jit(trained.train_step, out_shardings=(places, whole))
    put = sharding.make_put_batch(mesh)
    new, scalars = jax.device_put(state, places), {}
    for batch in batches:
      new, scalars = step(new, put(batch))
    found.append(jax.device_get((new, scalars)))
  return found
