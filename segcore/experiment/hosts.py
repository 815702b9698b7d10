"""Joining the hosts of a run before jax starts, and ending together."""

import contextlib
import math
import socket
import traceback
from collections.abc import Iterator

import jax

from runtime import errors, exit_status
from segcore.distributed import heartbeat, host_settings, rendezvous
from segcore.experiment import command
from segcore.train import workspace

# A single process must not miss its own heartbeats while it is suspended.
_NEVER_SECONDS = 10**8
# Characters of an exception that the other hosts print.
_MAX_MESSAGE = 500


def describe_user_error(
  error: errors.UserError, parsed: command.Command | None
) -> str:
  """Formats a user error, with the advice of the config if files are missing.

  Args:
    error: the error.
    parsed: command line; None if it could not be parsed.
  """
  advice = ''
  missing = isinstance(error, errors.MissingInput)
  if missing and parsed and 'without_files' in parsed.config:
    advice = parsed.config.without_files
  message = str(error)
  if not advice:
    return message
  # Several problems are a line each, and so is the advice about them.
  separator = '\n' if '\n' in message else '; '
  return f'{message}{separator}{advice}'


@contextlib.contextmanager
def joined_hosts(parsed: command.Command) -> Iterator[None]:
  """Joins the other hosts of the run, if there are any.

  If this process fails inside the block, all other processes print the reason
  and end, too. If another process fails or is lost, this one ends.

  Args:
    parsed: command line, whose config all hosts must share.

  Raises:
    UserError: a host is missing, or the settings of the hosts differ.
  """
  options = parsed.hosts
  if jax.distributed.is_initialized():
    yield
    return
  group = rendezvous.discover_process_group(
    options.coordinator_port, options.init_timeout
  )
  if group is None:
    _start_alone()
    yield
    return
  settings = host_settings.shared_host_settings(
    parsed.config,
    workdir=str(parsed.workdir),
    stages=','.join(parsed.stages) or 'all',
  )
  links = rendezvous.connect_processes(group, settings, options.init_timeout)
  monitor = heartbeat.HeartbeatMonitor(
    links, options.peer_timeout, options.stall_timeout
  )
  try:
    _start_among(group, options)
    yield
  except workspace.Preempted:
    monitor.close()
    raise
  except errors.UserError as error:
    message = describe_user_error(error, parsed)
    errors.print_user_error(message)
    monitor.abort(message, exit_status.USER_ERROR, immediately=True)
  except KeyboardInterrupt:
    monitor.abort('interrupted', exit_status.INTERRUPTED, immediately=True)
  except BaseException as error:
    traceback.print_exc()
    message = errors.format_on_one_line(f'{type(error).__name__}: {error}')
    monitor.abort(
      message[:_MAX_MESSAGE], heartbeat.EXIT_PEER_LOST, immediately=False
    )
  else:
    monitor.close()


def _start_alone() -> None:
  """Initializes jax's distributed runtime with this process alone.

  The runtime handles requests to stop (SIGTERM): with it, one mechanism serves
  a laptop and a pod.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  jax.distributed.initialize(
    f'127.0.0.1:{port}',
    num_processes=1,
    process_id=0,
    cluster_detection_method='deactivate',
    heartbeat_timeout_seconds=_NEVER_SECONDS,
  )


def _start_among(
  group: rendezvous.ProcessGroup, options: command.HostOptions
) -> None:
  """Initializes jax's distributed runtime with the hosts that have joined."""
  jax.distributed.initialize(
    group.address,
    num_processes=group.count,
    process_id=group.index,
    local_device_ids=group.local_device_ids,
    # Under SLURM jax's own detection would choose one device.
    cluster_detection_method='deactivate',
    initialization_timeout=math.ceil(options.init_timeout),
    # Later than our own heartbeat, whose message names the lost host.
    heartbeat_timeout_seconds=math.ceil(2 * options.peer_timeout) + 60,
  )
