"""Writes shards in several processes of this machine.

  shard_processes.write_shards(writer, names, 4, bar.update)

Each process asks for the next shard when it has written one, so that all end at
about the same time. The processes are spawned: they import what they need and
get the writer pickled. Signals are handled by the caller's process, which asks
them to stop; they abandon the shard that they are writing.

A process shares nothing with the others but a pipe with the caller's process:
one that is killed, whatever it does at that moment, blocks no other.
"""

import contextlib
import multiprocessing
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
from absl import logging

from runtime import errors, memory, threads

# Seconds between two reports of a process.
_INTERVAL = 0.2
# Seconds that processes have to stop, before they are killed.
_GRACE = 30.0


@runtime_checkable
class Writer(Protocol):
  """Describes what the processes need of a `shards.ShardWriter`."""

  def write_shard(
    self, name: str, advance: Callable[[], Any], num_threads: int
  ) -> None:
    """Reads the images of a shard and writes their records to its file.

    Args:
      name: name of the shard.
      advance: function called after each image; what it raises ends the work.
      num_threads: number of threads that read images.
    """


class _Report(NamedTuple):
  """A message of a process.

  Attributes:
    num_images: number of images that it has read since its last report.
    is_idle: whether it waits for the name of its next shard.
    failure: exception that has ended it.
  """

  num_images: int
  is_idle: bool = False
  failure: Exception | None = None


class _Worker(NamedTuple):
  """A process, and the caller's end of the pipe between both."""

  process: Any
  pipe: connection.Connection


class _StoppedError(Exception):
  """Ends the work on a shard that is not to be finished."""


def write_shards(
  writer: Writer,
  names: Sequence[str],
  num_processes: int,
  advance: Callable[[int], Any],
) -> None:
  """Writes shards in processes, and waits for them.

  Args:
    writer: the writer, which can be pickled.
    names: names of the shards.
    num_processes: number of processes.
    advance: function called with the number of further images that are read.

  Raises:
    UserError: a process was killed.
    Exception: the first that a process has raised.
  """
  context = multiprocessing.get_context('spawn')
  num_threads = max(threads.count_usable_cpus() // num_processes, 1)
  arguments = pickle.dumps(writer), num_threads
  workers: list[_Worker] = []
  try:
    with _interrupts_blocked():
      for _ in range(num_processes):
        pipe, theirs = context.Pipe()
        process = context.Process(
          target=_work, args=(theirs, *arguments), daemon=True
        )
        process.start()
        workers.append(_Worker(process, pipe))
        # Only the process has that end now: the pipe ends when it does.
        theirs.close()
    _distribute(workers, names, advance)
  finally:
    _end(workers)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
  """Blocks Ctrl-C until the context ends; it is handled then.

  Processes that are started inherit that: those that are still importing would
  print tracebacks.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _distribute(
  workers: Sequence[_Worker],
  names: Sequence[str],
  advance: Callable[[int], Any],
) -> None:
  """Gives the shards to the processes until all are written.

  Raises:
    UserError: a process ended before.
    Exception: the first that a process has raised.
  """
  left = iter(names)
  running = {worker.pipe: worker.process for worker in workers}
  while running:
    for pipe in connection.wait([*running]):
      with _explaining_death(running[pipe], len(workers)):
        report = pipe.recv()
      advance(report.num_images)
      if report.failure is not None:
        raise report.failure
      if report.is_idle:
        name = next(left, None)
        with _explaining_death(running[pipe], len(workers)):
          pipe.send(name)
        if name is None:
          del running[pipe]


@contextlib.contextmanager
def _explaining_death(process: Any, count: int) -> Iterator[None]:
  """Turns the end of a pipe into an error about its process, one of `count`."""
  try:
    yield
  except (EOFError, OSError) as error:
    process.join(_GRACE)
    status = process.exitcode
    if status is None:
      reason = 'answers no longer:'
    elif status < 0:
      reason = f'was killed by signal {-status}, as when memory is short:'
    else:
      reason = f'ended with status {status}: see what it printed, then'
    raise errors.UserError(
      f'jobs: expected {count} processes to write all shards, got one that '
      f'{reason} run the same command with fewer jobs, finished shards are kept'
    ) from error


def _end(workers: Sequence[_Worker]) -> None:
  """Asks processes to stop, and kills those that do not."""
  for worker in workers:
    worker.pipe.close()
  deadline = time.monotonic() + _GRACE
  for worker in workers:
    worker.process.join(max(deadline - time.monotonic(), 0))
    worker.process.kill()  # Without effect on one that has ended.
    worker.process.join()


class _Reporter:
  """Sends the reports of a process, and receives names of shards."""

  def __init__(self, pipe: connection.Connection):
    self._pipe = pipe
    self._num_images = 0
    self._reported = time.monotonic()

  def advance(self) -> None:
    """Counts an image; reports from time to time.

    Raises:
      _StoppedError: the caller's process has closed the pipe, or ended.
    """
    self._num_images += 1
    if time.monotonic() - self._reported >= _INTERVAL:
      self.send()
      # Names are sent on request: this is the end of the pipe.
      if self._pipe.poll():
        raise _StoppedError

  def request_shard(self) -> str | None:
    """Returns the name of the next shard; None if there is none.

    Raises:
      _StoppedError: the caller's process has closed the pipe, or ended.
    """
    self.send(is_idle=True)
    try:
      return self._pipe.recv()
    except (EOFError, OSError):
      raise _StoppedError from None

  def send(self, **fields: Any) -> None:
    """Sends a report to the caller's process.

    Args:
      **fields: fields of the report beside the number of images.

    Raises:
      _StoppedError: the caller's process has closed the pipe, or ended.
    """
    try:
      self._pipe.send(_Report(self._num_images, **fields))
    except OSError:
      raise _StoppedError from None
    self._num_images = 0
    self._reported = time.monotonic()


def _work(
  pipe: connection.Connection, pickled: bytes, num_threads: int
) -> None:
  """Writes shards, in a process of its own, until none is left."""
  # A terminal sends Ctrl-C to all processes; that of the caller decides.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  logging.set_verbosity(logging.ERROR)  # TFDS logs each of its steps.
  cv2.setNumThreads(0)
  memory.keep_freed_memory()
  reporter = _Reporter(pipe)
  try:
    writer = pickle.loads(pickled)
    while (name := reporter.request_shard()) is not None:
      writer.write_shard(name, reporter.advance, num_threads)
  except _StoppedError:
    return
  except Exception as error:
    if not isinstance(error, errors.UserError | OSError):
      # The traceback of another process is not pickled.
      error.add_note(traceback.format_exc())
    with contextlib.suppress(_StoppedError):
      reporter.send(failure=make_picklable_error(error))


def make_picklable_error(error: Exception) -> Exception:
  """Returns an error that another process can raise.

  Args:
    error: any error.

  Returns:
    The error itself if it can be pickled; else a RuntimeError with its class,
    message and notes. An error whose class takes other arguments than those it
    passes on cannot.
  """
  try:
    pickle.loads(pickle.dumps(error))
  except Exception:
    replacement = RuntimeError(f'{type(error).__name__}: {error}')
    for note in getattr(error, '__notes__', ()):
      replacement.add_note(note)
    return replacement
  return error
