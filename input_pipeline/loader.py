"""Batches whose content is decided by the step alone.

Batch k is made of the global records kB … (k+1)B-1 of a seeded, shuffled,
endless stream; each host reads its contiguous part of it. Starting at step k is
a seek, and neither the number of hosts nor of worker processes changes a pixel.

  stream = Stream(split.records, transform)
  loader = Loader({'': stream}, batch_size=32, seed=0)
  for batch in loader.start(step=100): ...
"""

import collections
import contextlib
import dataclasses
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from input_pipeline import batch as batch_lib
from input_pipeline import transforms
from runtime import errors


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """How batches are read; changes speed, never content.

  Attributes:
    threads: threads that read and transform, per process.
    buffered: host batches read ahead.
    workers: worker processes; 0 reads in threads of the trainer.
  """

  threads: int = 2
  buffered: int = 4
  workers: int = 0

  def __post_init__(self):
    for name in ('threads', 'buffered'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}: found {getattr(self, name)}, expected >= 1')
    if self.workers < 0:
      raise ValueError(f'workers: found {self.workers}, expected >= 0')

  def iterate(self, batches: grain.MapDataset) -> grain.DatasetIterator:
    """An iterator over batches, read ahead."""
    options = grain.ReadOptions(
      num_threads=self.threads, prefetch_buffer_size=self.buffered
    )
    dataset = batches.to_iter_dataset(options)
    if self.workers:
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self.workers), _stay
      )
    return iter(dataset)


def _stay(*_) -> None:
  """Leaves requests to stop to the trainer, who needs batches until it has.

  SLURM sends SIGTERM to all processes of a job.
  """
  signal.signal(signal.SIGTERM, signal.SIG_IGN)


@dataclasses.dataclass(frozen=True)
class ProcessShard:
  """Which part of every global batch this process reads."""

  index: int = dataclasses.field(default_factory=jax.process_index)
  count: int = dataclasses.field(default_factory=jax.process_count)

  def rows(self, batch_size: int) -> int:
    """Rows of a global batch that belong to this process.

    Raises:
      UserError: the batch does not divide among the processes.
    """
    if batch_size % self.count:
      raise errors.UserError(
        f'a batch of {batch_size} does not divide among {self.count} hosts: '
        'change batch_size'
      )
    return batch_size // self.count


@dataclasses.dataclass(frozen=True)
class Stream:
  """Records, and what is done to each."""

  records: Sequence[Any]
  transform: transforms.Transform

  def __post_init__(self):
    if not len(self.records):
      raise errors.UserError(
        'a stream has no images: check the split and the number of labels'
      )

  def examples(self, seed: int) -> grain.MapDataset:
    """The endless sequence of examples that all hosts agree on."""
    return (
      grain.MapDataset.source(self.records)
      .seed(seed)
      .shuffle()
      .repeat()
      .random_map(self.transform)
    )


def stack(examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Stacks examples to a batch; no row of it is padding."""
  out = {
    name: np.stack([example[name] for example in examples])
    for name in examples[0]
  }
  return {**out, 'mask': np.ones(len(examples), bool)}


@dataclasses.dataclass(frozen=True)
class Loader:
  """Endless training batches of one or several streams.

  Attributes:
    streams: by name; a single stream named '' gives plain batches, several
      give a dict of batches.
    batch_size: global number of rows B of each stream.
    seed: decides order and geometry.
    reading: threads and worker processes.
    part: the part of this process.
  """

  streams: Mapping[str, Stream]
  batch_size: int
  seed: int
  reading: ReadOptions = ReadOptions()
  part: ProcessShard = dataclasses.field(default_factory=ProcessShard)

  def batches(self) -> grain.MapDataset:
    """Element k is this host's part of batch k."""
    rows = self.part.rows(self.batch_size)
    # Local batch j·count + p is the p-th contiguous part of global batch j.
    parts = [
      stream.examples(self.seed + zlib.crc32(name.encode()) % 2**31).batch(
        # The length is 2**63 - 1: to round it up overflows.
        rows,
        drop_remainder=True,
        batch_fn=stack,
      )[self.part.index :: self.part.count]
      for name, stream in self.streams.items()
    ]
    if tuple(self.streams) == ('',):
      return parts[0]
    names = tuple(self.streams)
    return grain.experimental.ZipMapDataset(parts).map(
      lambda batches: dict(zip(names, batches, strict=True))
    )

  def element_spec(self) -> batch_lib.Batch:
    """Shape and type of a global batch as the devices see it."""

    def widen(array: np.ndarray) -> jax.ShapeDtypeStruct:
      shape = (array.shape[0] * self.part.count, *array.shape[1:])
      return jax.ShapeDtypeStruct(shape, array.dtype)

    return jax.tree.map(widen, drop_host_only(self.batches()[0]))

  @contextlib.contextmanager
  def start(self, step: int) -> Iterator[Iterator[batch_lib.Batch]]:
    """Iterates from the batch of `step`; closes what reads on exit."""
    # A slice, as iterators of several worker processes cannot be set to a step.
    iterator = self.reading.iterate(self.batches()[step:])
    try:
      yield iterator
    finally:
      iterator.close()


def drop_host_only(host_batch: batch_lib.Batch) -> dict[str, Any]:
  """The part of a batch that travels: all but what stays on the host."""
  return {
    name: drop_host_only(value) if isinstance(value, Mapping) else value
    for name, value in host_batch.items()
    if name not in batch_lib.HOST_ONLY
  }


def prefetch(
  batches: Iterator[batch_lib.Batch],
  put: Callable[[Any], Any],
  ahead: int = 2,
) -> Iterator[Any]:
  """Keeps `ahead` batches on their way to the devices while one is used."""
  waiting = collections.deque()
  for batch in batches:
    waiting.append(put(drop_host_only(batch)))
    if len(waiting) > ahead:
      yield waiting.popleft()
  yield from waiting
