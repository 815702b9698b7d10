"""Writes shards in several processes of this machine.

  shard_processes.write_shards(writer, names, 4, bar.update)

Each process takes the next shard that none has taken, so that all end at about
the same time. The processes are spawned: they import what they need and get the
writer pickled. Signals are handled by the caller's process, which asks them to
stop; they abandon the shard that they are writing.
"""

import contextlib
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
from absl import logging

from runtime import errors, memory, threads

# Seconds between two updates of the progress.
_INTERVAL = 0.2


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


class _Shared(NamedTuple):
  """Holds what the processes share.

  Attributes:
    num_taken: number of shards that processes have taken.
    num_images: number of images that are read.
    stop: event that ends the processes.
    failures: queue of the exceptions that ended a process.
  """

  num_taken: Any
  num_images: Any
  stop: Any
  failures: Any


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
  shared = _Shared(
    context.Value('q', 0),
    context.Value('q', 0),
    context.Event(),
    context.SimpleQueue(),
  )
  num_threads = max(threads.count_usable_cpus() // num_processes, 1)
  arguments = pickle.dumps(writer), tuple(names), num_threads, shared
  processes = [
    context.Process(target=_work, args=arguments, daemon=True)
    for _ in range(num_processes)
  ]
  started = []
  try:
    with _interrupts_blocked():
      for process in processes:
        process.start()
        started.append(process)
    _await(started, shared, advance)
  finally:
    # Without an error they have ended.
    shared.stop.set()
    _join(started, shared)


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


def _await(
  processes: Sequence[Any], shared: _Shared, advance: Callable[[int], Any]
) -> None:
  """Waits until all processes have ended, or one has failed."""
  num_reported, running = 0, list(processes)
  while running:
    connection.wait([process.sentinel for process in running], _INTERVAL)
    # Before the failures: a process that has ended has put its own by then.
    running = [process for process in running if process.exitcode is None]
    num_images = shared.num_images.value
    advance(num_images - num_reported)
    num_reported = num_images
    if not shared.failures.empty():
      raise shared.failures.get()
    for process in processes:
      if process.exitcode:
        raise errors.UserError(
          f'jobs: a process ended with status {process.exitcode}, as it does '
          'when memory is short: run the same command with fewer jobs, '
          'finished shards are kept'
        )


def _join(processes: Sequence[Any], shared: _Shared) -> None:
  """Waits until the processes that were asked to stop have ended."""
  while running := [each for each in processes if each.exitcode is None]:
    connection.wait([process.sentinel for process in running], _INTERVAL)
    # A process whose failure does not fit into the queue would wait forever.
    while not shared.failures.empty():
      shared.failures.get()


def _work(
  pickled: bytes, names: Sequence[str], num_threads: int, shared: _Shared
) -> None:
  """Writes shards, in a process of its own, until none is left."""
  # A terminal sends Ctrl-C to all processes; that of the caller decides.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  logging.set_verbosity(logging.ERROR)  # TFDS logs each of its steps.
  cv2.setNumThreads(0)
  memory.keep_freed_memory()
  parent = multiprocessing.parent_process()

  def advance() -> None:
    if shared.stop.is_set() or not parent.is_alive():
      raise _StoppedError
    with shared.num_images:
      shared.num_images.value += 1

  try:
    writer = pickle.loads(pickled)
    while not shared.stop.is_set():
      with shared.num_taken:
        position = shared.num_taken.value
        shared.num_taken.value += 1
      if position >= len(names):
        return
      writer.write_shard(names[position], advance, num_threads)
  except _StoppedError:
    return
  except Exception as error:
    if not isinstance(error, errors.UserError | OSError):
      # The traceback of another process is not pickled.
      error.add_note(traceback.format_exc())
    shared.failures.put(make_picklable_error(error))


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
