"""Watches over the other hosts: one that is lost ends the run on all of them.

  with watch.Watch(links, patience=60, stall=1800):
    ...

A thread keeps up the connections of the roll call (see `hosts`). Where one
breaks, or nothing comes over it for too long, the host at its other end was
killed or hangs: everybody says which, and exits. Otherwise they would wait in
the next exchange between devices, or end with a stack trace of jax.

That thread lives on where the work itself stalls, as in reading from a disk
that does not answer. So it tells, too, when the work has last come further (see
`runtime.progress`). One that stalls holds up all others: only when
nobody has come further for too long, everybody exits, and those that stopped
first are named. A host that computes, prepares or saves alone while others wait
for it is no such case.
"""

import math
import os
import selectors
import sys
import threading
import time
from typing import Any

from runtime import progress
from segcore.distributed import rendezvous

# Exit status after another host has crashed, which it may do again; and after
# one hung or was cut off: launchers start the same command again.
EXIT_PEER_LOST, EXIT_PEER_SILENT = 1, 75

# Time for hosts that fail alike to say so themselves.
_GRACE_SECONDS = 5.0
# Those that stopped so shortly after the first one may have been first as well:
# clocks are told apart by what goes over the network.
_SAME_SECONDS = 0.1
# Time for the others to leave before process 0 does, whose end ends jax's.
_PARTING_SECONDS = 3.0


class HeartbeatMonitor:
  """Lives as long as the work of this process.

  Leaving it without an error tells the others that this process is done.
  """

  def __init__(
    self,
    links: rendezvous.Connections,
    timeout: float,
    stall_timeout: float = 0.0,
  ):
    """Begins to watch.

    Args:
      links: to the other processes.
      timeout: seconds of silence after which a process counts as lost.
      stall_timeout: seconds in which some process must progress; 0 for any.
    """
    self._names = links.host_names
    self._index = links.index
    self._wires = dict(links.channels)
    self._patience = timeout
    self._stall = stall_timeout
    self._tick = min(timeout / 30, 1.0)
    self._lock = threading.Lock()
    self._left = threading.Event()
    # When the process is to end, with which words and status.
    self._end: tuple[float, str, int] | None = None
    self._heard = dict.fromkeys(self._wires, time.monotonic())
    # When each of the others has last come further, by this process's clock;
    # and since when that counts.
    self._signs: dict[int, progress.Activity] = {}
    self._awake = time.monotonic()
    self._ready = selectors.DefaultSelector()
    for index, wire in self._wires.items():
      self._ready.register(wire, selectors.EVENT_READ, index)
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def __enter__(self) -> 'HeartbeatMonitor':
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is None:
      self.close()

  def close(self) -> None:
    """Says that this process is done; nobody is watched any longer."""
    self._left.set()
    self._thread.join()
    self._tell(bye=True)

  def abort(self, text: str, status: int, immediately: bool) -> None:
    """Says that this process has failed, and ends it.

    Args:
      text: why, for the others.
      status: of all that do not fail by themselves.
      immediately: do not wait for word of a lost host, which may be the reason.
    """
    if not immediately:
      time.sleep(_PARTING_SECONDS)  # The thread ends the process if it comes.
    with self._lock:
      if self._end is None:
        if not self._index:
          text = f'{self._called(0)} stopped: {text}'
        self._tell(failed=text, status=status, patient=True)
        self._end = (math.inf, '', status)
    _, text, _ = self._end
    # Process 0 goes last; the others only see to it that they are heard.
    last = None if text else _GRACE_SECONDS + _PARTING_SECONDS
    self._thread.join(1.0 if self._index and not text else last)
    _exit('', status)

  def _called(self, index: int) -> str:
    return f'process {index} ({self._names[index]})'

  def _tell(self, **message: Any) -> None:
    for wire in list(self._wires.values()):
      wire.send(**message)

  def _run(self) -> None:
    woken = beaten = time.monotonic()
    while self._wires and not self._left.is_set():
      events = self._ready.select(self._tick)
      now = time.monotonic()
      if now - woken > self._patience / 2:
        # It is this process that was stopped: the others get their time anew.
        self._heard = dict.fromkeys(self._wires, now)
        self._awake = now
      woken = now
      with self._lock:
        for key, _ in events:
          self._receive(key.data, now)
        if now - beaten >= self._tick:
          beaten = now
          idle, what = progress.last_activity()
          self._tell(idle=now - idle, what=what)
        silent = self._silent(now, self._patience)
        if silent and self._end is None:
          self._lose(silent)
        if not self._index and self._end is None:
          self._end_if_stalled(now)
        self._exit_if_due(now)

  def _receive(self, index: int, now: float) -> None:
    """Takes what a process has sent."""
    if index not in self._wires:
      return
    messages = self._wires[index].receive()
    if messages is None:
      self._drop(index)
      if self._end is None:
        text = f'{self._called(index)} is gone: it was killed, or crashed'
        self._agree_to_end(text, EXIT_PEER_LOST, patient=False)
      return
    self._heard[index] = now
    for message in messages:
      if 'bye' in message:
        self._drop(index)
      elif 'idle' in message:
        sign = progress.Activity(now - message['idle'], message['what'])
        self._signs[index] = sign
      elif 'failed' in message and self._end is None:
        text, status = message['failed'], message['status']
        overdue = self._silent(now, 5 * self._tick)
        if not self._index:
          text = f'{self._called(index)} stopped: {text}'
          if overdue and status == EXIT_PEER_LOST:
            text = f'{text}; {self._list(overdue)} did not answer meanwhile'
            status = EXIT_PEER_SILENT
        self._agree_to_end(text, status, message['patient'])

  def _drop(self, index: int) -> None:
    wire = self._wires.pop(index)
    self._signs.pop(index, None)
    self._ready.unregister(wire)
    wire.close()

  def _silent(self, now: float, seconds: float) -> list[int]:
    return [i for i in self._wires if now - self._heard[i] > seconds]

  def _list(self, processes: list[int]) -> str:
    return ', '.join(self._called(index) for index in processes[:6])

  def _lose(self, silent: list[int]) -> None:
    text = f'{self._list(silent)} did not answer for {self._patience:g} s'
    self._agree_to_end(
      f'{text}: hung, stopped or cut off', EXIT_PEER_SILENT, False
    )

  def _end_if_stalled(self, now: float) -> None:
    """The part of process 0, to which all others are connected."""
    signs = {0: progress.last_activity(), **self._signs}
    newest = max(sign.time for sign in signs.values())
    if not self._stall or now - max(newest, self._awake) <= self._stall:
      return
    first = min(sign.time for sign in signs.values())
    late = [i for i in signs if signs[i].time - first <= _SAME_SECONDS]
    text = (
      f'nobody has come further for {self._stall:g} s: {self._list(late)} '
      f'stopped first, after {signs[late[0]].what}; where more time is needed, '
      'give it by --stall_timeout'
    )
    self._agree_to_end(text, EXIT_PEER_SILENT, patient=False)

  def _agree_to_end(self, text: str, status: int, patient: bool) -> None:
    """Tells everybody, if this is process 0, and sets the time to go."""
    wait = _GRACE_SECONDS if patient else 0.0
    if not self._index:
      self._tell(failed=text, status=status, patient=patient)
      wait += _PARTING_SECONDS
    self._end = (time.monotonic() + wait, text, status)

  def _exit_if_due(self, now: float) -> None:
    if self._end is None:
      return
    until, text, status = self._end
    if now >= until or (text and not self._wires):
      _exit(
        f'error: {text}; run the same command again on all hosts to go on'
        if status in (EXIT_PEER_LOST, EXIT_PEER_SILENT)
        else f'error: {text}',
        status,
      )


def _exit(text: str, status: int) -> None:
  """Ends the process, whatever its other threads wait for."""
  try:
    sys.stdout.flush()
    sys.stderr.flush()
  except (OSError, ValueError):
    pass  # Nobody reads it any longer; what matters is to end.
  if text:
    os.write(2, f'{text}\n'.encode())
  os._exit(status)
