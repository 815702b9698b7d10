"""The device mesh, and the sharding of each array of a step over it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from runtime import errors

# Leaves of fewer elements are replicated: gathering them at every step would
# cost more latency than their memory is worth.
MIN_SHARDED_SIZE = 2**18

_BATCH_AXES = ('data', 'fsdp')


def make_mesh(fsdp: int = 1, devices: list | None = None) -> Mesh:
  """Builds a mesh with axes `data` and `fsdp`.

  Args:
    fsdp: number of devices over which large leaves of the state are split.
    devices: devices of the mesh; None for all devices of all hosts.

  Raises:
    UserError: fsdp does not divide the number of devices.
  """
  # Sorted by host: the loader of host p yields the p-th part of the rows, which
  # must be the part that the devices of host p hold.
  devices = devices or sorted(
    jax.devices(), key=lambda device: (device.process_index, device.id)
  )
  if fsdp < 1 or len(devices) % fsdp:
    raise errors.UserError(
      f'fsdp: expected a divisor of the {len(devices)} devices, got {fsdp}'
    )
  # Auto: with explicit axes the gradient of optax's cross entropy fails.
  return Mesh(
    np.asarray(devices).reshape(-1, fsdp),
    _BATCH_AXES,
    axis_types=(AxisType.Auto,) * 2,
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: rows over both axes of the mesh."""
  return NamedSharding(mesh, PartitionSpec(_BATCH_AXES))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, state: Any) -> Any:
  """Returns the sharding of every leaf of a state of arrays or their shapes.

  A leaf of at least `MIN_SHARDED_SIZE` elements is split over `fsdp` along its
  largest axis that fsdp divides; all other leaves are replicated, and those of
  the state's `replicated_fields`.

  Args:
    mesh: mesh with the axes `data` and `fsdp`.
    state: tree of arrays, or of their shapes; a `TrainState` or any other.

  Returns:
    A tree of the same structure.
  """
  fsdp = mesh.shape['fsdp']
  replicated = getattr(state, 'replicated_fields', frozenset())

  def place(path, leaf) -> NamedSharding:
    axes = [i for i, n in enumerate(leaf.shape) if n % fsdp == 0]
    if fsdp == 1 or not axes or np.prod(leaf.shape) < MIN_SHARDED_SIZE:
      return replicated_sharding(mesh)
    if getattr(path[0], 'name', '') in replicated:
      return replicated_sharding(mesh)
    axis = max(axes, key=lambda i: leaf.shape[i])
    spec = [None] * len(leaf.shape)
    spec[axis] = 'fsdp'
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(place, state)


def check_batch_divides_devices(batch_size: int, mesh: Mesh, name: str) -> None:
  """Checks that a batch divides among the devices.

  Args:
    batch_size: global number of rows of a batch.
    mesh: mesh of the devices.
    name: path of the field of the batch size, for the message.

  Raises:
    UserError: the batch size is no multiple of the number of devices.
  """
  if batch_size < 1 or batch_size % mesh.size:
    raise errors.UserError(
      f'{name}: expected a multiple of the {mesh.size} devices, got '
      f'{batch_size}: change it or use fewer devices'
    )


def make_batch_sharder(mesh: Mesh) -> Callable[[Any], Any]:
  """Returns a function that turns the rows of each host into global arrays.

  The function maps a tree of NumPy arrays to a tree of arrays that are sharded
  over the mesh. On each host, the NumPy arrays have as many rows as the devices
  of that host hold of the global batch.
  """
  sharding = batch_sharding(mesh)

  def put(local: Any) -> Any:
    # No host holds the global batch: each device gets its rows from its host.
    return jax.tree.map(
      lambda rows: jax.make_array_from_process_local_data(sharding, rows), local
    )

  return put


def rows_of_this_host(
  array: Shaped[Array, 'B ...'],
) -> Shaped[np.ndarray, '...']:
  """Returns this host's rows of an array that is sharded as a batch is.

  Args:
    array: global array, whose rows are sharded over all devices.

  Returns:
    The rows on the devices of this host, in the order of the batch.
  """
  # Shards are listed by device, and rows are to be in the order of the batch.
  shards = sorted(
    array.addressable_shards, key=lambda shard: shard.index[0].start or 0
  )
  return np.concatenate([np.asarray(shard.data) for shard in shards])
