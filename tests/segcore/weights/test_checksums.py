"""Checksums see every change, and do not depend on the sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segcore.distributed import sharding
from segcore.weights import checksums, manifest

# Among them more elements than a block has.
SHAPES = (
  (),
  (1,),
  (7,),
  (0, 3),
  (700,),
  (3, 3, 16, 24),
  (34_000,),
  (2, 5, 600),
)


def checksum(array):
  return checksums.array_checksums({'x': array})['x']


def draw(shape, dtype=np.float32):
  values = np.random.default_rng(0).integers(0, 100, shape)
  return np.asarray(values).astype(dtype)


@pytest.mark.parametrize('shape', SHAPES)
def test_the_sum_is_that_of_the_formula(shape):
  array = draw(shape)
  expected = 0
  for index in np.ndindex(shape):
    term = int(array[index].view(np.uint32))
    for axis, i in enumerate(index):
      term *= int(checksums._weights(axis, i, i + 1)[0])
    expected += term
  assert checksum(array) == expected % 2**64


@pytest.mark.parametrize(
  'dtype',
  [np.float32, np.float64, np.float16, np.int8, np.uint32, bool, jnp.bfloat16],
)
def test_every_flipped_bit_changes_the_sum(dtype):
  array = draw((5, 3), dtype)
  before, data = checksum(array), array.tobytes()
  for i in range(0, 8 * len(data), 7):
    changed = bytearray(data)
    changed[i // 8] ^= 1 << i % 8
    flipped = np.frombuffer(bytes(changed), dtype).reshape(5, 3)
    assert checksum(flipped) != before


def test_places_count():
  array = draw((6, 8))
  sums = {
    checksum(x)
    for x in (array, array[::-1], array[:, ::-1], array.T, array.reshape(8, 6))
  }
  assert len(sums) == 5
  assert checksum(array[::-1].copy()[::-1]) == checksum(array)


@pytest.mark.parametrize('axis', [0, 1])
def test_shards_add_up_to_the_whole(axis):
  array = draw((16, 24))
  parts = np.split(array, 8, axis)
  total = 0
  for i, part in enumerate(parts):
    start = [0, 0]
    start[axis] = i * part.shape[axis]
    total += checksums.shard_checksum(part, tuple(start))
  assert total % 2**64 == checksum(array)
  mesh = sharding.make_mesh(fsdp=4)
  spec = [None, None]
  spec[axis] = 'fsdp'
  split = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
  assert not split.is_fully_replicated
  assert checksum(split) == checksum(array)
  assert checksum(
    jax.device_put(array, sharding.replicated_sharding(mesh))
  ) == checksum(array)


def test_a_manifest_names_the_array_that_differs():
  state = {'a': {'kernel': jnp.ones((4, 4))}, 'slots': (jnp.zeros(3),)}
  content = manifest.make_manifest(state, {'value': 0.5})
  saved = manifest.Manifest(
    manifest.manifest_array_layouts(manifest.manifest_arrays_by_path(state)),
    {name: int(x[2], 16) for name, x in content['arrays'].items()},
    {},
  )
  saved.check(manifest.manifest_arrays_by_path(state))
  saved.check({"['slots'][0]": jnp.zeros(3)})  # A part of the arrays.
  state['slots'] = (jnp.zeros(3).at[1].set(1e-30),)
  with pytest.raises(ValueError, match=r"^\['slots'\]\[0\]: the checksum diff"):
    saved.check(manifest.manifest_arrays_by_path(state))
