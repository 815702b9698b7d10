"""The same steps of a method, on other meshes."""

import jax

from segcore import sharding

# Devices, and over how many of them a large leaf of the state is split.
MESHES = ((1, 1), (8, 1), (8, 4))


def steps(trained, state, batches, monkeypatch):
  """State and scalars after the batches, by each of `MESHES`, on the host."""
  monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 64)
  found = []
  for count, fsdp in MESHES:
    mesh = sharding.make_mesh(fsdp, jax.devices()[:count])
    places = sharding.state_shardings(mesh, state)
    assert any('fsdp' in x.spec for x in jax.tree.leaves(places)) == (fsdp > 1)
    whole = sharding.replicated(mesh)
    step = jax.jit(trained.train_step, out_shardings=(places, whole))
    put = sharding.put_batch(mesh)
    new, scalars = jax.device_put(state, places), {}
    for batch in batches:
      new, scalars = step(new, put(batch))
    found.append(jax.device_get((new, scalars)))
  return found
