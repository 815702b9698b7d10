"""The device mesh, and where each array of a step lives on it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from runtime import errors

# Leaves smaller than this stay whole on every device.
MIN_SHARDED_SIZE = 2**18

_BATCH_AXES = ('data', 'fsdp')


def make_mesh(fsdp: int = 1, devices: list | None = None) -> Mesh:
  """A mesh with axes `data` and `fsdp` over all devices.

  Args:
    fsdp: devices over which large leaves of the state are split.
    devices: all of them by default.

  Raises:
    UserError: the devices cannot be divided so.
  """
  # By host: the loader gives host p the p-th part of the rows.
  devices = devices or sorted(
    jax.devices(), key=lambda device: (device.process_index, device.id)
  )
  if fsdp < 1 or len(devices) % fsdp:
    raise errors.UserError(
      f'fsdp: found {fsdp}, expected a divisor of {len(devices)} devices'
    )
  # Auto: with explicit axes the gradient of optax's cross entropy fails.
  return Mesh(
    np.asarray(devices).reshape(-1, fsdp),
    _BATCH_AXES,
    axis_types=(AxisType.Auto,) * 2,
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over both axes together."""
  return NamedSharding(mesh, PartitionSpec(_BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, state: Any) -> Any:
  """A sharding for every leaf of a state (of arrays or their shapes).

  A leaf of at least `MIN_SHARDED_SIZE` elements is split over `fsdp` along its
  largest axis that divides; all other leaves are replicated.
  """
  fsdp = mesh.shape['fsdp']

  def place(leaf) -> NamedSharding:
    axes = [i for i, n in enumerate(leaf.shape) if n % fsdp == 0]
    if fsdp == 1 or not axes or np.prod(leaf.shape) < MIN_SHARDED_SIZE:
      return replicated(mesh)
    axis = max(axes, key=lambda i: leaf.shape[i])
    spec = [None] * len(leaf.shape)
    spec[axis] = 'fsdp'
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(place, state)


def check_batch_size(batch_size: int, mesh: Mesh, name: str) -> None:
  """Raises UserError unless the rows divide among the devices."""
  if batch_size < 1 or batch_size % mesh.size:
    raise errors.UserError(
      f'{name}: found {batch_size}, expected a multiple of the {mesh.size} '
      'devices: change it or use fewer devices'
    )


def make_put_batch(mesh: Mesh) -> Callable[[Any], Any]:
  """A function that turns this host's rows into global arrays."""
  sharding = batch_sharding(mesh)

  def put(local: Any) -> Any:
    return jax.tree.map(
      lambda rows: jax.make_array_from_process_local_data(sharding, rows), local
    )

  return put


def local_rows(array: jax.Array) -> np.ndarray:
  """This host's rows of an array whose first axis is split over the mesh."""
  shards = sorted(
    array.addressable_shards, key=lambda shard: shard.index[0].start or 0
  )
  return np.concatenate([np.asarray(shard.data) for shard in shards])
