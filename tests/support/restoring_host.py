"""One of two hosts that save a state together, and restore it after damage.

  restoring_host.py INDEX PORT FOLDER

A host has one device and half of each large array. The state is damaged in a
file, which both hosts see, or for host 1 only, as by its disk cache. Prints the
step that was restored after each damage, and whether its state is right.
"""

import pathlib
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from benchmarks import checkpoints as benchmark
from segcore.distributed import sharding
from segcore.train import checkpoint


def state_of(step, mesh):
  values = {
    'kernel': np.random.default_rng(step).integers(
      0, 2**32, (64, 64), np.uint32
    ),
    'step': np.asarray(step, np.int32),
  }
  return jax.device_put(values, sharding.state_shardings(mesh, values))


def flip_in_file(folder, index):
  """Flips a bit of the largest file of step 2."""
  if index == 0:
    files = [f for f in (folder / 'checkpoints/2').rglob('*') if f.is_file()]
    path = max(files, key=lambda f: f.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
  multihost_utils.sync_global_devices('damaged')


class Handler(ocp.StandardCheckpointHandler):
  """Reads step 2 wrongly, or not at all, on host 1."""

  raises = False

  def restore(self, directory, args=None):
    state = super().restore(directory, args=args)
    if '/2/' not in f'{directory}' or jax.process_index() != 1:
      return state
    if self.raises:
      raise OSError('the disk of this host')
    # Without communication: only this host's half changes.
    kernel = state['kernel']
    parts = [shard.data + 1 for shard in kernel.addressable_shards]
    changed = jax.make_array_from_single_device_arrays(
      kernel.shape, kernel.sharding, parts
    )
    return {**state, 'kernel': changed}


class RaisingHandler(Handler):
  raises = True


def main(index, port, folder):
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, index)
  sharding.MIN_SHARDED_SIZE = 16
  mesh = sharding.make_mesh(fsdp=2)
  states = {step: state_of(step, mesh) for step in (1, 2)}
  assert not states[1]['kernel'].is_fully_addressable
  original = ocp.StandardCheckpointHandler
  for name, handler in (
    ('none', original),
    ('file', original),
    ('bytes', Handler),
    ('disk', RaisingHandler),
  ):
    target = folder / name
    benchmark.save(target, states)
    if name == 'file':
      flip_in_file(target, index)
    ocp.StandardCheckpointHandler = handler
    with checkpoint.Checkpoints(target) as checkpoints:
      step, state = checkpoints.restore(benchmark.abstract(states[1]))
    ocp.StandardCheckpointHandler = original
    right = all(
      np.array_equal(a.addressable_data(0), b.addressable_data(0))
      for a, b in zip(
        jax.tree.leaves(state), jax.tree.leaves(states[step]), strict=True
      )
    )
    print(f'RESULT {name} {step} {right}', flush=True)
  return 0


if __name__ == '__main__':
  sys.exit(main(int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])))
