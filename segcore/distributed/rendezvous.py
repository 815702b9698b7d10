"""Rendezvous of a run's hosts: finds them, and connects them before jax starts.

  group = rendezvous.discover_process_group(port=None, timeout=300)
  connections = rendezvous.connect_processes(group, settings, timeout=300)

Before jax starts, every process reports to process 0 over TCP, at the address
where jax's coordination service will listen later. Left to itself, jax ends a
process whose peers are missing with a stack trace that names none of them.
Here process 0 names those that are missing, and settings that differ between
hosts. The connections stay open for the heartbeats (see `heartbeat`).
"""

import json
import os
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax._src import clusters  # jax has no public function for this.

from runtime import errors
from segcore.distributed import host_settings

# The port jax uses where it finds the hosts by itself.
_DEFAULT_PORT = 8482
# A report holds a config of some kilobytes: more is no process of ours.
_MAX_MESSAGE_BYTES = 1 << 22
_RETRY_SECONDS = 0.2
_SEND_SECONDS = 5.0


class ProcessGroup(NamedTuple):
  """The processes of a run.

  Attributes:
    address: host:port of process 0.
    count: number of processes.
    index: index of this process, from 0.
    local_device_ids: devices of this process, where several processes share a
      machine; None for all devices that it sees.
  """

  address: str
  count: int
  index: int
  local_device_ids: tuple[int, ...] | None = None


class Channel:
  """A TCP connection to one process that carries one JSON object a line."""

  def __init__(self, connection: socket.socket):
    # A host that hangs does not empty its buffers: without a limit, sending to
    # it would block the heartbeats to all others.
    connection.settimeout(_SEND_SECONDS)
    self._connection = connection
    self._incomplete = b''

  def fileno(self) -> int:
    """Returns the file descriptor on which a selector waits for messages."""
    return self._connection.fileno()

  def send(self, **message: Any) -> bool:
    """Sends a message; returns False if the other end is gone."""
    try:
      self._connection.sendall(json.dumps(message).encode() + b'\n')
    except OSError:
      return False
    return True

  def receive(self) -> list[dict[str, Any]] | None:
    """Receives the messages that have arrived, without waiting for more.

    Returns:
      Complete messages in their order, maybe none; None if the other end is
      gone, or does not speak this protocol.
    """
    try:
      data = self._connection.recv(1 << 16)
    except OSError:
      return None
    # TCP delivers bytes, not messages: a line may arrive in several parts.
    *lines, self._incomplete = (self._incomplete + data).split(b'\n')
    if not data or len(self._incomplete) > _MAX_MESSAGE_BYTES:
      return None
    try:
      messages = [json.loads(line) for line in lines]
    except ValueError:
      return None
    return messages if all(isinstance(m, dict) for m in messages) else None

  def close(self) -> None:
    """Closes the connection; at the other end, `receive` then returns None."""
    self._connection.close()


class Connections(NamedTuple):
  """Open connections between the processes of a run: a star around process 0.

  Attributes:
    channels: connections by the index of the process at the other end; process
      0 is connected to each other process, these to process 0 only.
    host_names: name of the host of each process.
    index: index of this process.
  """

  channels: Mapping[int, Channel]
  host_names: Sequence[str]
  index: int


def discover_process_group(
  port: int | None, timeout: float
) -> ProcessGroup | None:
  """Discovers the processes of this run.

  The environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID define them; without these variables, jax discovers them on
  TPUs and under `srun`.

  Args:
    port: port of process 0; None for that of the variable, or jax's default.
    timeout: seconds to wait until the name of process 0's host resolves.

  Returns:
    The processes; None if this process is the only one.

  Raises:
    UserError: a variable is missing or no number, or the hosts are unknown.
  """
  if 'JAX_COORDINATOR_ADDRESS' in os.environ:
    group = _group_of_variables(port)
  else:
    cluster = _detect_cluster()
    if cluster is None:
      return None
    group = _group_of_cluster(cluster, port, timeout)
  # A single process needs no coordination service.
  return group if group.count > 1 else None


def _group_of_variables(port: int | None) -> ProcessGroup:
  group = ProcessGroup(
    _with_port(os.environ['JAX_COORDINATOR_ADDRESS'], port),
    _integer_variable('JAX_NUM_PROCESSES'),
    _integer_variable('JAX_PROCESS_ID'),
  )
  if not 0 <= group.index < group.count:
    raise errors.UserError(
      f'JAX_PROCESS_ID: expected 0 to {group.count - 1}, since '
      f'JAX_NUM_PROCESSES is {group.count}, got {group.index}'
    )
  return group


def _group_of_cluster(
  cluster: type[clusters.ClusterEnv], port: int | None, timeout: float
) -> ProcessGroup:
  coordinator_port = os.environ.get('JAX_COORDINATOR_PORT')
  if port:
    coordinator_port = str(port)
  try:
    return ProcessGroup(
      cluster.get_coordinator_address(
        timeout_secs=int(timeout), override_coordinator_port=coordinator_port
      ),
      cluster.get_process_count(),
      cluster.get_process_id(),
      _slurm_task_devices(cluster),
    )
  except (OSError, RuntimeError, ValueError) as error:
    raise errors.UserError(
      f'the hosts of this {cluster.name} are unknown '
      f'({errors.format_on_one_line(str(error))}): set '
      'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID on each'
    ) from error


def _detect_cluster() -> type[clusters.ClusterEnv] | None:
  """Returns jax's description of SLURM or of a TPU slice, if this is one."""
  # A batch script outside of `srun` has the variables of the job, too, but is a
  # single process, which would wait for the tasks of the job forever.
  if os.environ.get('SLURM_NTASKS', '1') != '1' and (
    clusters.SlurmCluster.is_env_present()
  ):
    return clusters.SlurmCluster
  # jax finds TPUs by their ids on the PCI bus. Files under /dev prove nothing:
  # their names depend on the generation, and machines with GPUs may have them.
  for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
    try:
      if cluster.is_env_present():
        return cluster
    except OSError as error:  # The machine's metadata server does not answer.
      raise errors.UserError(
        'the hosts of this TPU are unknown: its metadata server does not '
        f'answer ({type(error).__name__}); set TPU_SKIP_MDS_QUERY=1 to run on '
        'this host alone'
      ) from error
  return None


def _slurm_task_devices(
  cluster: type[clusters.ClusterEnv],
) -> tuple[int, ...] | None:
  """Returns the device of this task, where several tasks share a machine.

  jax itself would take one device for each task, also where a task has a
  machine to itself and is to use all of its devices.
  """
  num_nodes = int(os.environ.get('SLURM_STEP_NUM_NODES', '1'))
  if cluster is not clusters.SlurmCluster or (
    cluster.get_process_count() <= num_nodes
  ):
    return None
  return (cluster.get_local_process_id(),)


def _with_port(address: str, port: int | None) -> str:
  host, colon, given_port = address.rpartition(':')
  if not colon or not given_port.isdigit():
    return f'{address}:{port or _DEFAULT_PORT}'
  return f'{host}:{port or given_port}'


def _integer_variable(name: str) -> int:
  text = os.environ.get(name, '')
  if not text.isdigit():
    raise errors.UserError(
      f'{name}: expected a number, since JAX_COORDINATOR_ADDRESS is set, got '
      f'{text!r}'
    )
  return int(text)


def connect_processes(
  group: ProcessGroup, settings: Mapping[str, Any], timeout: float
) -> Connections:
  """Connects all processes; returns once all have reported equal settings.

  Args:
    group: processes that are expected.
    settings: settings of this host by name (see
      `host_settings.shared_host_settings`).
    timeout: seconds in which all processes have to report.

  Raises:
    UserError: a process is missing, or settings differ; the message is the same
      on all hosts and names the processes or settings.
  """
  report = {
    'process': group.index,
    'host': socket.gethostname(),
    'settings': {'number of processes': group.count, **settings},
  }
  # Process 0 compares its own settings with those that came as JSON.
  report = json.loads(json.dumps(report, default=str))
  if group.index:
    return _report_to_process_0(group, report, timeout)
  return _collect_reports(group, report, timeout)


def _collect_reports(
  group: ProcessGroup, own_report: dict[str, Any], timeout: float
) -> Connections:
  """Accepts the reports of all other processes, as process 0, and answers."""
  reports = _Reports(group, own_report)
  deadline = time.monotonic() + timeout
  with _listen(group.address) as server, selectors.DefaultSelector() as ready:
    ready.register(server, selectors.EVENT_READ)
    while reports.missing and not reports.conflict:
      # Waiting ends with the deadline, however many processes report meanwhile.
      remaining = deadline - time.monotonic()
      if remaining <= 0:
        break
      for key, _ in ready.select(remaining):
        if key.fileobj is server:
          ready.register(Channel(server.accept()[0]), selectors.EVENT_READ)
        elif not reports.receive(key.fileobj):
          ready.unregister(key.fileobj)
          key.fileobj.close()
  settings = reports.settings
  problem = reports.conflict or host_settings.describe_host_differences(
    settings
  )
  if reports.missing and not problem:
    problem = (
      f'{_numbered(reports.missing)} of {group.count} did not report to '
      f'{group.address} within {timeout:g} s '
      f'({host_settings.shorten_host_list(list(settings))} did): start what is '
      'missing, or raise --init_timeout'
    )
  # All processes get the same answer: the log of each host names the reason.
  answer = {'problem': problem} if problem else {'names': reports.host_names}
  for channel in reports.channels.values():
    channel.send(**answer)
  if problem:
    raise errors.UserError(problem)
  return Connections(reports.channels, reports.host_names, 0)


class _Reports:
  """Reports that process 0 has received.

  Attributes:
    channels: connections to the processes that have reported, by their index.
    conflict: error message if two processes have the same index, else ''.
  """

  def __init__(self, group: ProcessGroup, own_report: dict[str, Any]):
    self._count = group.count
    self._reports = {0: own_report}
    self.channels: dict[int, Channel] = {}
    self.conflict = ''

  def receive(self, channel: Channel) -> bool:
    """Receives the reports on a channel.

    Returns:
      Whether to keep the channel open; False if its other end is gone, or is no
      process of this project, as a port scanner.
    """
    messages = channel.receive()
    if messages is None:
      # A process that was started again reports again, under the same number.
      for index in [i for i, c in self.channels.items() if c is channel]:
        del self.channels[index], self._reports[index]
      return False
    for report in messages:
      if not {'process', 'host', 'settings'} <= report.keys():
        return False
      index = report['process']
      if index in self._reports:
        first = process_name(index, self._reports[index]['host'])
        second = process_name(index, report['host'])
        self.conflict = (
          f'expected one process of each number, got {first} and {second}: '
          'give each process another JAX_PROCESS_ID'
        )
        channel.send(problem=self.conflict)
        continue
      self._reports[index], self.channels[index] = report, channel
    return True

  @property
  def missing(self) -> list[int]:
    """Returns the processes that have not reported."""
    return [i for i in range(self._count) if i not in self._reports]

  @property
  def host_names(self) -> list[str]:
    """Returns the host of each process, once none is missing."""
    return [self._reports[index]['host'] for index in range(self._count)]

  @property
  def settings(self) -> dict[str, Mapping[str, Any]]:
    """Returns the settings of the processes that have reported, by name."""
    return {
      process_name(i, self._reports[i]['host']): self._reports[i]['settings']
      for i in sorted(self._reports)
    }


def _listen(address: str) -> socket.socket:
  """Listens on the port that jax's coordination service will use later."""
  port = int(address.rpartition(':')[2])
  # One socket for both families: hosts may resolve the name to either.
  dual_stack = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(
      ('', port),
      family=socket.AF_INET6 if dual_stack else socket.AF_INET,
      dualstack_ipv6=dual_stack,
      backlog=1024,  # All hosts of a large slice connect at the same moment.
    )
  except OSError as error:
    raise errors.UserError(
      f'process 0 cannot listen on port {port} ({error.strerror}): end the '
      'process that does, or choose another --coordinator_port'
    ) from error


def _report_to_process_0(
  group: ProcessGroup, report: dict[str, Any], timeout: float
) -> Connections:
  """Sends this process's report, again and again until it is answered."""
  host, _, port = group.address.rpartition(':')
  # IPv6 addresses are in brackets before a port.
  address = host.strip('[]'), int(port)
  deadline = time.monotonic() + timeout
  while time.monotonic() < deadline:
    try:
      connection = socket.create_connection(address, timeout=_SEND_SECONDS)
    except OSError:  # Process 0 has not started yet.
      time.sleep(_RETRY_SECONDS)
      continue
    channel = Channel(connection)
    channel.send(**report)
    # Process 0 may have started later, and waits for its own timeout.
    answer = _receive_answer(channel, deadline + timeout)
    if 'problem' in answer:
      raise errors.UserError(answer['problem'])
    if 'names' in answer:
      return Connections({0: channel}, answer['names'], group.index)
    # Process 0 was ended, or something else listens there for the moment.
    channel.close()
    time.sleep(_RETRY_SECONDS)
  raise errors.UserError(
    f'process 0 of {group.count} did not answer at {group.address} within '
    f'{timeout:g} s: start it, or raise --init_timeout'
  )


def _receive_answer(channel: Channel, deadline: float) -> dict[str, Any]:
  """Returns the first message on a channel; {} if there is none in time."""
  with selectors.DefaultSelector() as ready:
    ready.register(channel, selectors.EVENT_READ)
    while ready.select(max(deadline - time.monotonic(), 0)):
      messages = channel.receive()
      if messages is None:
        break
      if messages:
        return messages[0]
  return {}


def _numbered(processes: Sequence[int]) -> str:
  noun = 'process' if len(processes) == 1 else 'processes'
  return (
    f'{noun} {host_settings.shorten_host_list([str(p) for p in processes])}'
  )


def process_name(index: int, host: str) -> str:
  """Returns the name of a process in messages: 'process 3 (host-3)'."""
  return f'process {index} ({host})'
