"""The hosts of a run: where they meet, who is absent, whether they agree.

  group = hosts.find(port=None, timeout=300)
  links = hosts.meet(group, hosts.facts(config), timeout=300)
  ...
  hosts.agree('the data', split.version)

Before jax starts, every process reports to process 0 by TCP, at the address
where jax will listen later. jax itself ends a process whose peers do not come
with a stack trace that names none of them. What remains of the roll call are
the connections, by which `watch` sees that a host is lost.
"""

import json
import os
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax._src import clusters  # jax has no public way to ask who the hosts are.

from runtime import errors
from segcore.distributed import host_settings

# jax's own, where it finds the hosts itself.
_PORT = 8482
_MOST_BYTES = 1 << 22
_RETRY_SECONDS = 0.2
_SEND_SECONDS = 5.0


class ProcessGroup(NamedTuple):
  """The processes of a run.

  Attributes:
    address: host:port of process 0.
    count: of processes.
    index: of this one.
    local_device_ids: devices of this process, where several processes share a
      machine; None for all devices that it sees.
  """

  address: str
  count: int
  index: int
  local_device_ids: tuple[int, ...] | None = None


class Channel:
  """Messages, each a line of JSON, to and from one process."""

  def __init__(self, connection: socket.socket):
    connection.settimeout(_SEND_SECONDS)
    self._connection = connection
    self._rest = b''

  def fileno(self) -> int:
    """For selectors."""
    return self._connection.fileno()

  def send(self, **message: Any) -> bool:
    """Sends a message; False if the other end is gone."""
    try:
      self._connection.sendall(json.dumps(message).encode() + b'\n')
    except OSError:
      return False
    return True

  def receive(self) -> list[dict[str, Any]] | None:
    """Messages that have come, when there is something to read.

    None if the other end is gone, or is none of ours.
    """
    try:
      data = self._connection.recv(1 << 16)
    except OSError:
      return None
    *lines, self._rest = (self._rest + data).split(b'\n')
    if not data or len(self._rest) > _MOST_BYTES:
      return None
    try:
      messages = [json.loads(line) for line in lines]
    except ValueError:
      return None
    return messages if all(isinstance(m, dict) for m in messages) else None

  def close(self) -> None:
    """Ends it."""
    self._connection.close()


class Connections(NamedTuple):
  """What a roll call leaves.

  Attributes:
    channels: of process 0 to each other one; of those to process 0.
    host_names: of the hosts, by process.
    index: of this process.
  """

  channels: Mapping[int, Channel]
  host_names: Sequence[str]
  index: int


def discover(port: int | None, timeout: float) -> ProcessGroup | None:
  """Who belongs to this run; None if this process is alone.

  They are named by the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, or found by jax on TPUs and under `srun`.

  Args:
    port: of process 0, instead of the one that is named or found.
    timeout: seconds to wait for the name of process 0's host.

  Raises:
    UserError: a variable is no number, or process 0's host is not known.
  """
  if 'JAX_COORDINATOR_ADDRESS' in os.environ:
    group = ProcessGroup(
      _with_port(os.environ['JAX_COORDINATOR_ADDRESS'], port),
      _number_of('JAX_NUM_PROCESSES'),
      _number_of('JAX_PROCESS_ID'),
    )
    if not 0 <= group.index < group.count:
      raise errors.UserError(
        f'JAX_PROCESS_ID: found {group.index}, expected 0 to '
        f'{group.count - 1}, since JAX_NUM_PROCESSES is {group.count}'
      )
  else:
    cluster = _cluster()
    if cluster is None:
      return None
    wanted = str(port) if port else os.environ.get('JAX_COORDINATOR_PORT')
    try:
      group = ProcessGroup(
        cluster.get_coordinator_address(
          timeout_secs=int(timeout), override_coordinator_port=wanted
        ),
        cluster.get_process_count(),
        cluster.get_process_id(),
        _own_devices(cluster),
      )
    except (OSError, RuntimeError, ValueError) as error:
      raise errors.UserError(
        f'the hosts of this {cluster.name} are not found '
        f'({errors.one_line(str(error))}): name them by '
        'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID'
      ) from error
  return group if group.count > 1 else None


def _cluster() -> type[clusters.ClusterEnv] | None:
  """Where jax finds hosts by itself: on a TPU, under `srun`.

  Whether there is a TPU, jax knows from the PCI bus: the files under /dev
  differ between the generations, and a GPU may have the same.
  """
  if os.environ.get('SLURM_NTASKS', '1') != '1' and (
    clusters.SlurmCluster.is_env_present()
  ):
    return clusters.SlurmCluster
  for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
    try:
      if cluster.is_env_present():
        return cluster
    except OSError as error:  # No answer of the machine's metadata.
      raise errors.UserError(
        f'this TPU does not say which hosts it has ({type(error).__name__}): '
        'set TPU_SKIP_MDS_QUERY=1 if it is to run alone'
      ) from error
  return None


def _own_devices(cluster: type[clusters.ClusterEnv]) -> tuple[int, ...] | None:
  """The device of this task, where SLURM runs several on a machine.

  jax would take one for each task, also where a task has the machine for itself
  and is to use all of them.
  """
  nodes = int(os.environ.get('SLURM_STEP_NUM_NODES', '1'))
  if cluster is not clusters.SlurmCluster or (
    cluster.get_process_count() <= nodes
  ):
    return None
  return (cluster.get_local_process_id(),)


def _with_port(address: str, port: int | None) -> str:
  host, colon, found = address.rpartition(':')
  if not colon or not found.isdigit():
    return f'{address}:{port or _PORT}'
  return f'{host}:{port or found}'


def _number_of(variable: str) -> int:
  text = os.environ.get(variable, '')
  if not text.isdigit():
    raise errors.UserError(
      f'{variable}: found {text!r}, expected a number, since '
      'JAX_COORDINATOR_ADDRESS is set'
    )
  return int(text)


def connect(
  group: ProcessGroup, known: Mapping[str, Any], timeout: float
) -> Connections:
  """Returns when all hosts are there and agree.

  Args:
    group: who is expected.
    known: what has to be the same everywhere (see `shared_settings`).
    timeout: seconds.

  Raises:
    UserError: somebody did not come, or differs; it says who.
  """
  mine = {
    'process': group.index,
    'host': socket.gethostname(),
    'facts': {'number of processes': group.count, **known},
  }
  mine = json.loads(json.dumps(mine, default=str))
  if group.index:
    return _report(group, mine, timeout)
  return _call_roll(group, mine, timeout)


def _call_roll(
  group: ProcessGroup, mine: dict[str, Any], timeout: float
) -> Connections:
  """The part of process 0."""
  roll = _Roll(group, mine)
  deadline = time.monotonic() + timeout
  with _door(group.address) as door, selectors.DefaultSelector() as ready:
    ready.register(door, selectors.EVENT_READ)
    while roll.absent and not roll.refused and time.monotonic() < deadline:
      for key, _ in ready.select(deadline - time.monotonic()):
        if key.fileobj is door:
          ready.register(Channel(door.accept()[0]), selectors.EVENT_READ)
        elif not roll.take(key.fileobj):
          ready.unregister(key.fileobj)
          key.fileobj.close()
  text = roll.refused or host_settings.describe_differences(roll.facts)
  if roll.absent and not text:
    text = (
      f'{_numbers(roll.absent)} of {group.count} did not report to '
      f'{group.address} within {timeout:g} s ('
      f'{host_settings.shorten(list(roll.facts))} did): '
      'start what is missing, or wait longer with --init_timeout'
    )
  for wire in roll.wires.values():
    wire.send(stop=text) if text else wire.send(names=roll.names)
  if text:
    raise errors.UserError(text)
  return Connections(roll.wires, roll.names, 0)


class _Roll:
  """Who has reported to process 0.

  Attributes:
    wires: to all that have.
    refused: what is wrong with one that came.
  """

  def __init__(self, group: ProcessGroup, mine: dict[str, Any]):
    self._count = group.count
    self._reports = {0: mine}
    self.wires: dict[int, Channel] = {}
    self.refused = ''

  def take(self, wire: Channel) -> bool:
    """Reads what there is; False if the other end is gone, or none of ours."""
    messages = wire.receive()
    if messages is None:  # It may come again.
      for index in [i for i in self.wires if self.wires[i] is wire]:
        del self.wires[index], self._reports[index]
      return False
    for told in messages:
      if not {'process', 'host', 'facts'} <= told.keys():
        return False
      index, host = told['process'], told['host']
      if index in self._reports:
        self.refused = (
          f'{process_name(index, host)} came where '
          f'{process_name(index, self._reports[index]["host"])} is already: '
          'give each process a number of its own'
        )
        wire.send(stop=self.refused)
        continue
      self._reports[index], self.wires[index] = told, wire
    return True

  @property
  def absent(self) -> list[int]:
    """Those that have not come."""
    return [i for i in range(self._count) if i not in self._reports]

  @property
  def names(self) -> list[str]:
    """Host of each process."""
    return [self._reports[index]['host'] for index in range(self._count)]

  @property
  def facts(self) -> dict[str, Mapping[str, Any]]:
    """What is known of those that came, by their names."""
    return {
      process_name(i, self._reports[i]['host']): self._reports[i]['facts']
      for i in sorted(self._reports)
    }


def _door(address: str) -> socket.socket:
  """Listens where jax will, later."""
  port = int(address.rpartition(':')[2])
  both = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(
      ('', port),
      family=socket.AF_INET6 if both else socket.AF_INET,
      dualstack_ipv6=both,
      backlog=1024,
    )
  except OSError as error:
    raise errors.UserError(
      f'process 0 cannot listen on port {port} ({error.strerror}): end what '
      'does, or choose another --coordinator_port'
    ) from error


def _report(
  group: ProcessGroup, mine: dict[str, Any], timeout: float
) -> Connections:
  """The part of all others."""
  host, _, port = group.address.rpartition(':')
  deadline = time.monotonic() + timeout
  while time.monotonic() < deadline:
    try:
      where = host.strip('[]'), int(port)
      wire = Channel(socket.create_connection(where, timeout=_SEND_SECONDS))
    except OSError:
      time.sleep(_RETRY_SECONDS)
      continue
    wire.send(**mine)
    # Process 0 may have come later, and has its own time-out.
    answer = _answer(wire, deadline + timeout)
    if 'stop' in answer:
      raise errors.UserError(answer['stop'])
    if 'names' in answer:
      return Connections({0: wire}, answer['names'], group.index)
    wire.close()
    time.sleep(_RETRY_SECONDS)
  raise errors.UserError(
    f'process 0 of {group.count} did not answer at {group.address} within '
    f'{timeout:g} s: start it, or wait longer with --init_timeout'
  )


def _answer(wire: Channel, deadline: float) -> dict[str, Any]:
  with selectors.DefaultSelector() as ready:
    ready.register(wire, selectors.EVENT_READ)
    while ready.select(max(deadline - time.monotonic(), 0)):
      messages = wire.receive()
      if messages is None:
        break
      if messages:
        return messages[0]
  return {}


def _numbers(processes: Sequence[int]) -> str:
  word = 'process' if len(processes) == 1 else 'processes'
  return f'{word} {host_settings.shorten([str(p) for p in processes])}'


def process_name(index: int, host: str) -> str:
  """Returns the name of a process in messages: 'process 3 (host-3)'."""
  return f'process {index} ({host})'
