"""Heartbeats between the hosts of a run, which end all if one is lost.

  with heartbeat.HeartbeatMonitor(connections, timeout=60, stall_timeout=1800):
    ...

A thread keeps the connections of the rendezvous open and sends a heartbeat
over each. If a connection breaks, or no heartbeat arrives for `timeout`
seconds, the host at its other end was killed or hangs: all processes report
which one it is, and exit. Otherwise they would wait in their next collective
without end, or exit with a stack trace of jax that names nobody.

The thread keeps running while the main thread is blocked, e.g. by a disk that
does not answer, so a heartbeat alone does not prove progress. It therefore
carries the time since the process's last activity (see `runtime.progress`).
One stalled process blocks all others in their next collective: only if no
process has made progress for `stall_timeout` seconds do all exit, and those
that stopped first are named. A process that computes or saves alone while
others wait for it is not stalled.
"""

import math
import os
import selectors
import sys
import threading
import time
from typing import Any, NamedTuple

from runtime import exit_status, progress
from segcore.distributed import rendezvous

# Exit statuses after another process crashed, which it may do again, and after
# one hung or was cut off: on the latter, launchers repeat the command.
EXIT_PEER_LOST = exit_status.FAILURE
EXIT_PEER_SILENT = exit_status.PREEMPTED

# Time for processes that fail for the same reason to report it themselves.
_GRACE_SECONDS = 5.0
# Activities so close together count as simultaneous: ages are measured on
# arrival, so that the latency of the network is part of them.
_SIMULTANEOUS_SECONDS = 0.1
# Process 0 hosts jax's coordination service, and jax aborts all other
# processes once it is gone: they get this head start to exit with a message.
_COORDINATOR_DELAY_SECONDS = 3.0
_MAX_NAMED = 6


class _Exit(NamedTuple):
  """A decision to exit: the time, the message and the status."""

  deadline: float
  message: str
  status: int


class HeartbeatMonitor:
  """Monitors the other processes of a run, and reports the end of this one.

  As a context manager, it calls `close` when the block ends without an error:
  the other processes then no longer expect heartbeats of this one.
  """

  def __init__(
    self,
    connections: rendezvous.Connections,
    timeout: float,
    stall_timeout: float = 0.0,
  ):
    """Starts the thread that sends and receives heartbeats.

    Args:
      connections: connections to the other processes.
      timeout: seconds without a heartbeat after which a process counts as lost.
      stall_timeout: seconds without progress of any process after which all
        exit; 0 for no limit.
    """
    self._host_names = connections.host_names
    self._index = connections.index
    self._channels = dict(connections.channels)
    self._timeout = timeout
    self._stall_timeout = stall_timeout
    self._interval = min(timeout / 30, 1.0)
    # Guards `_exit` and the sending of a failure, which the main thread does.
    self._lock = threading.Lock()
    self._closed = threading.Event()
    self._exit: _Exit | None = None
    now = time.monotonic()
    self._last_heartbeat = dict.fromkeys(self._channels, now)
    # Last activity of each other process, in this process's clock.
    self._activities: dict[int, progress.Activity] = {}
    # Stalls are counted from here: from the start, or from a suspension.
    self._resumed_at = now
    self._selector = selectors.DefaultSelector()
    for index, channel in self._channels.items():
      self._selector.register(channel, selectors.EVENT_READ, index)
    # A daemon, so that an exception in the main thread can end the process.
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def __enter__(self) -> 'HeartbeatMonitor':
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is None:
      self.close()

  def close(self) -> None:
    """Reports that this process is done, and stops monitoring."""
    # The thread has to end first: two threads that write to one connection
    # could mix the bytes of their messages.
    self._closed.set()
    self._thread.join()
    self._broadcast(done=True)

  def abort(self, reason: str, status: int, immediately: bool) -> None:
    """Reports that this process has failed, and ends it.

    Args:
      reason: description of the failure, for the messages of the others.
      status: exit status of this process and of all others.
      immediately: whether to skip the wait for a message about a lost host; a
        failed collective is often only the effect of such a loss.
    """
    if not immediately:
      # If a message about a lost host arrives, the thread ends the process
      # during this sleep.
      time.sleep(_COORDINATOR_DELAY_SECONDS)
    with self._lock:
      if self._exit is None:
        if not self._index:
          reason = f'{self._process_name(0)} stopped: {reason}'
        self._broadcast(failed=reason, status=status, grace=True)
        self._exit = _Exit(math.inf, '', status)
    message = self._exit.message
    # Process 0 waits until the others have closed their connections, because
    # jax's coordination service ends with it and then aborts them. The others
    # only wait until their report is sent.
    if self._index and not message:
      limit = 1.0
    elif message:
      limit = None
    else:
      limit = _GRACE_SECONDS + _COORDINATOR_DELAY_SECONDS
    self._thread.join(limit)
    _end_process('', status)

  def _process_name(self, index: int) -> str:
    return rendezvous.process_name(index, self._host_names[index])

  def _process_names(self, indices: list[int]) -> str:
    return ', '.join(map(self._process_name, indices[:_MAX_NAMED]))

  def _broadcast(self, **message: Any) -> None:
    for channel in list(self._channels.values()):
      channel.send(**message)

  def _run(self) -> None:
    last_round = last_sent = time.monotonic()
    while self._channels and not self._closed.is_set():
      events = self._selector.select(self._interval)
      now = time.monotonic()
      if now - last_round > self._timeout / 2:
        # This process itself was suspended (SIGSTOP, a paused machine), so
        # the silence proves nothing about the others: their time starts anew.
        self._last_heartbeat = dict.fromkeys(self._channels, now)
        self._resumed_at = now
      last_round = now
      with self._lock:
        for key, _ in events:
          self._receive(key.data, now)
        if now - last_sent >= self._interval:
          last_sent = now
          self._send_heartbeat(now)
        silent = self._silent_for(self._timeout, now)
        if silent and self._exit is None:
          self._exit_after_silence(silent)
        if not self._index and self._exit is None:
          self._exit_if_stalled(now)
        self._exit_if_due(now)

  def _send_heartbeat(self, now: float) -> None:
    # An age instead of a time: clocks of different hosts cannot be compared.
    last, activity = progress.last_activity()
    self._broadcast(age=now - last, activity=activity)

  def _receive(self, index: int, now: float) -> None:
    """Handles all messages that have arrived from a process."""
    if index not in self._channels:
      return
    messages = self._channels[index].receive()
    if messages is None:
      self._disconnect(index)
      if self._exit is None:
        self._schedule_exit(
          f'{self._process_name(index)} is gone: it was killed, or crashed',
          EXIT_PEER_LOST,
          grace=False,
        )
      return
    self._last_heartbeat[index] = now
    for message in messages:
      if 'done' in message:
        self._disconnect(index)
      elif 'age' in message:
        self._activities[index] = progress.Activity(
          now - message['age'], message['activity']
        )
      elif 'failed' in message and self._exit is None:
        self._receive_failure(index, message, now)

  def _receive_failure(
    self, index: int, message: dict[str, Any], now: float
  ) -> None:
    reason, status = message['failed'], message['status']
    # The connections form a star: process 0 relays the message to all others,
    # preceded by the name of the process that failed.
    if not self._index:
      reason = f'{self._process_name(index)} stopped: {reason}'
      # A crash in a collective is often the effect of a host that hangs and
      # has not reached its timeout: then the command is worth repeating.
      overdue = self._silent_for(5 * self._interval, now)
      if overdue and status == EXIT_PEER_LOST:
        names = self._process_names(overdue)
        reason = f'{reason}; {names} did not answer meanwhile'
        status = EXIT_PEER_SILENT
    self._schedule_exit(reason, status, message['grace'])

  def _disconnect(self, index: int) -> None:
    channel = self._channels.pop(index)
    self._activities.pop(index, None)
    self._selector.unregister(channel)
    channel.close()

  def _silent_for(self, seconds: float, now: float) -> list[int]:
    return [
      i for i in self._channels if now - self._last_heartbeat[i] > seconds
    ]

  def _exit_after_silence(self, silent: list[int]) -> None:
    self._schedule_exit(
      f'{self._process_names(silent)} did not answer for {self._timeout:g} s: '
      'hung, stopped or cut off',
      EXIT_PEER_SILENT,
      grace=False,
    )

  def _exit_if_stalled(self, now: float) -> None:
    """Ends all processes if none of them has made progress.

    Only process 0 checks, as it alone receives the heartbeats of all others.
    """
    activities = {0: progress.last_activity(), **self._activities}
    newest = max(activity.time for activity in activities.values())
    idle = now - max(newest, self._resumed_at)
    if not self._stall_timeout or idle <= self._stall_timeout:
      return
    oldest = min(activity.time for activity in activities.values())
    # All other processes wait for these, so that their last activity is later.
    first = [
      index
      for index, activity in activities.items()
      if activity.time - oldest <= _SIMULTANEOUS_SECONDS
    ]
    _, last_activity = activities[first[0]]
    self._schedule_exit(
      f'no process has made progress for {self._stall_timeout:g} s: '
      f'{self._process_names(first)} stopped first, after {last_activity}; if '
      'it needs more time, raise --stall_timeout',
      EXIT_PEER_SILENT,
      grace=False,
    )

  def _schedule_exit(self, message: str, status: int, grace: bool) -> None:
    """Sets the time of this process's exit; process 0 informs the others.

    Args:
      message: line that is printed at the exit.
      status: exit status.
      grace: whether to leave time for a process that fails for the same
        reason to print its own message.
    """
    wait = _GRACE_SECONDS if grace else 0.0
    if not self._index:
      self._broadcast(failed=message, status=status, grace=grace)
      wait += _COORDINATOR_DELAY_SECONDS
    self._exit = _Exit(time.monotonic() + wait, message, status)

  def _exit_if_due(self, now: float) -> None:
    if self._exit is None:
      return
    deadline, message, status = self._exit
    # Without connections there is no process left to wait for.
    if now < deadline and not (message and not self._channels):
      return
    advice = ''
    if status in (EXIT_PEER_LOST, EXIT_PEER_SILENT):
      advice = '; run the same command again on all hosts to continue'
    _end_process(f'error: {message}{advice}', status)


def _end_process(message: str, status: int) -> None:
  """Ends the process at once, even if its main thread is blocked."""
  try:
    sys.stdout.flush()
    sys.stderr.flush()
  except (OSError, ValueError):
    pass  # The reader is gone, which must not keep this process alive.
  if message:
    # Unbuffered: the main thread may hold the lock of sys.stderr.
    os.write(2, f'{message}\n'.encode())
  # sys.exit would only end this thread, and wait for the main one.
  os._exit(status)
