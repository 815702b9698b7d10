import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from runtime import errors
from segcore.cost import communication
from segcore.distributed import sharding


def test_mesh_has_two_axes():
  assert dict(sharding.make_mesh().shape) == {'data': 8, 'fsdp': 1}
  assert dict(sharding.make_mesh(fsdp=4).shape) == {'data': 2, 'fsdp': 4}
  with pytest.raises(
    errors.UserError, match='fsdp: expected a divisor of the 8 devices, got 3'
  ):
    sharding.make_mesh(fsdp=3)


def test_large_leaves_are_split_along_their_largest_axis(monkeypatch):
  monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 64)
  mesh = sharding.make_mesh(fsdp=4)
  state = {
    'wide': jnp.zeros((8, 32)),
    'tall': jnp.zeros((64, 3)),
    'odd': jnp.zeros((9, 9)),
    'small': jnp.zeros((4, 4)),
    'step': jnp.zeros(()),
  }
  shardings = sharding.state_shardings(mesh, state)
  assert {name: each.spec for name, each in shardings.items()} == {
    'wide': PartitionSpec(None, 'fsdp'),
    'tall': PartitionSpec('fsdp', None),
    'odd': PartitionSpec(),
    'small': PartitionSpec(),
    'step': PartitionSpec(),
  }


def test_rows_are_sharded_and_read_back_in_order():
  mesh = sharding.make_mesh(fsdp=2)
  rows = np.arange(48.0).reshape(16, 3)
  placed = sharding.make_batch_sharder(mesh)({'x': rows})['x']
  assert len(placed.sharding.device_set) == 8
  assert placed.addressable_shards[0].data.shape == (2, 3)
  np.testing.assert_array_equal(sharding.rows_of_this_host(placed), rows)


@pytest.mark.parametrize('size', [0, 12, 9])
def test_batch_sizes_that_the_devices_do_not_divide_are_refused(size):
  mesh = sharding.make_mesh()
  with pytest.raises(errors.UserError, match=f'batch: expected .* got {size}:'):
    sharding.check_batch_divides_devices(size, mesh, 'batch')
  sharding.check_batch_divides_devices(24, mesh, 'batch')


def test_collectives_are_counted():
  mesh = sharding.make_mesh()
  rows, whole = (
    sharding.batch_sharding(mesh),
    sharding.replicated_sharding(mesh),
  )
  x = jax.ShapeDtypeStruct((16, 4), jnp.float32)

  def count(function, out):
    jitted = jax.jit(function, in_shardings=rows, out_shardings=out)
    return communication.count_collectives(jitted.lower(x).compile())

  assert sum(count(lambda x: 2 * x, rows).values()) == 0
  assert count(lambda x: x.sum(0), whole)['all-reduce'] == 1
  assert count(lambda x: x + 1, whole)['all-gather'] == 1
  columns = NamedSharding(mesh, PartitionSpec(None, None))
  assert count(lambda x: x * 2, columns)['all-gather'] == 1
