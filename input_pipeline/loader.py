"""Batches whose content depends on the step alone.

Batch k consists of the records kB … (k+1)B-1 of a seeded, shuffled, infinite
stream; each host reads a contiguous part of it. Starting at step k is a seek,
and neither the number of hosts nor of worker processes changes a pixel.

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

import jax
import numpy as np
from etils import epy

from input_pipeline import batch as batch_lib
from input_pipeline import crop_content, samplers, transforms
from runtime import errors, memory

with epy.lazy_imports():
  import grain


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """Options of reading that affect speed but never content.

  Attributes:
    threads: number of threads that read and transform, per process.
    buffered: number of batches read ahead on the host.
    workers: number of worker processes; 0 reads in threads of the trainer.
  """

  threads: int = 2
  buffered: int = 4
  workers: int = 0

  def __post_init__(self):
    for name in ('threads', 'buffered'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}: expected >= 1, got {getattr(self, name)}')
    if self.workers < 0:
      raise ValueError(f'workers: expected >= 0, got {self.workers}')

  def iterate(self, batches: 'grain.MapDataset') -> 'grain.DatasetIterator':
    """Returns an iterator that reads batches ahead of their use."""
    memory.keep_freed_memory()
    options = grain.ReadOptions(
      num_threads=self.threads, prefetch_buffer_size=self.buffered
    )
    dataset = batches.to_iter_dataset(options)
    if self.workers:
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self.workers), _start_worker
      )
    return iter(dataset)


def _start_worker(*_) -> None:
  """Prepares a worker process, which ignores SIGTERM and SIGINT.

  SLURM sends the one to all processes of a job, a terminal the other at Ctrl-C,
  but the trainer handles them, and needs batches until it has saved and
  stopped.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
  memory.keep_freed_memory()


@dataclasses.dataclass(frozen=True)
class ProcessShard:
  """The part of every global batch that one process reads.

  Attributes:
    index: index of the process, from 0; by default, of this process.
    count: number of processes; by default, of this run.
  """

  index: int = dataclasses.field(default_factory=jax.process_index)
  count: int = dataclasses.field(default_factory=jax.process_count)

  def rows(self, batch_size: int) -> int:
    """Returns the number of rows of a global batch that this process reads.

    Raises:
      UserError: the batch does not divide among the processes.
    """
    if batch_size % self.count:
      raise errors.UserError(
        f'batch_size: expected a multiple of the {self.count} hosts, got '
        f'{batch_size}'
      )
    return batch_size // self.count


@dataclasses.dataclass(frozen=True)
class Stream:
  """Holds records and the transform that is applied to each of them.

  Attributes:
    records: encoded records by index.
    transform: random transform from a record to an example of arrays.
    sampler: sampler that draws records with replacement; None reads every
      record once in each epoch, in a random order.
  """

  records: Sequence[Any]
  transform: transforms.Transform
  sampler: samplers.Sampler | None = None

  def __post_init__(self):
    if not len(self.records):
      raise errors.UserError(
        'expected a stream of images, got none: check the split and the number '
        'of labels'
      )

  @property
  def redraw_every(self) -> int:
    """Returns after how many steps the training state redraws the stream.

    0 for a stream that does not depend on it.
    """
    return 0

  def redrawn(self, state: Any) -> 'Stream':
    """Returns the stream with the sampler of a training state."""
    del state
    return self

  def examples(self, seed: int) -> 'grain.MapDataset':
    """Returns the infinite sequence of examples, the same on all hosts."""
    # Grain seeds the generator of an example with the seed and the index alone,
    # so that neither hosts nor worker processes nor a restart change it.
    if self.sampler:
      positions = grain.MapDataset.range(len(self.records))
      return positions.seed(seed).repeat().random_map(self._sample_example)
    return (
      grain.MapDataset.source(self.records)
      .seed(seed)
      .shuffle()
      .repeat()
      .random_map(self.transform)
    )

  def _sample_example(
    self, position: int, rng: np.random.Generator
  ) -> transforms.Example:
    """Draws a record, whatever the position is, and transforms it."""
    del position
    draw = self.sampler.sample(rng)
    record = self.records[draw.index]
    if draw.required:
      record = {**record, crop_content.REQUIRED: draw.required}
    return self.transform(record, rng)


def stack_examples(
  examples: Sequence[Mapping[str, Any]],
) -> dict[str, np.ndarray]:
  """Stacks examples of equal shapes into a batch without padding rows."""
  out = {
    name: np.stack([example[name] for example in examples])
    for name in examples[0]
  }
  return {**out, 'mask': np.ones(len(examples), bool)}


@dataclasses.dataclass(frozen=True)
class Loader:
  """Infinite training batches of one or several streams.

  Attributes:
    streams: streams by name; a single stream named '' yields plain batches,
      several streams yield a dict of batches by stream.
    batch_size: global number of rows B of each stream.
    seed: seed of the order of records and of all random transforms.
    reading: numbers of threads and worker processes.
    shard: the part of each batch that this process reads.
  """

  streams: Mapping[str, Stream]
  batch_size: int
  seed: int
  reading: ReadOptions = ReadOptions()
  shard: ProcessShard = dataclasses.field(default_factory=ProcessShard)

  @property
  def redraw_every(self) -> int:
    """Returns after how many steps the streams are redrawn; 0 for never.

    Raises:
      ValueError: two streams have different numbers.
    """
    numbers = {x.redraw_every for x in self.streams.values()} - {0}
    if len(numbers) > 1:
      raise ValueError(
        f'redraw_every: expected one number for all streams, got {numbers}'
      )
    return max(numbers, default=0)

  def redrawn(self, state: Any) -> 'Loader':
    """Returns the loader with the samplers of a training state."""
    streams = {name: x.redrawn(state) for name, x in self.streams.items()}
    return dataclasses.replace(self, streams=streams)

  def batches(self) -> 'grain.MapDataset':
    """Returns the sequence of this process's parts of the batches, by step."""
    rows = self.shard.rows(self.batch_size)
    # Local batch j·count + p is the p-th contiguous part of global batch j.
    # Each stream has its own seed, so that two streams of the same records do
    # not yield the same image, transformed alike, at the same step.
    parts = [
      stream.examples(self.seed + zlib.crc32(name.encode()) % 2**31).batch(
        # The infinite length is 2**63 - 1: rounding it up overflows.
        rows,
        drop_remainder=True,
        batch_fn=stack_examples,
      )[self.shard.index :: self.shard.count]
      for name, stream in self.streams.items()
    ]
    if tuple(self.streams) == ('',):
      return parts[0]
    names = tuple(self.streams)
    return grain.experimental.ZipMapDataset(parts).map(
      lambda batches: dict(zip(names, batches, strict=True))
    )

  def element_spec(self) -> batch_lib.Batch:
    """Returns shapes and types of a global batch on the devices."""

    def widen(array: np.ndarray) -> jax.ShapeDtypeStruct:
      shape = (array.shape[0] * self.shard.count, *array.shape[1:])
      return jax.ShapeDtypeStruct(shape, array.dtype)

    return jax.tree.map(widen, drop_host_only_keys(self.batches()[0]))

  @contextlib.contextmanager
  def start(self, step: int) -> Iterator[Iterator[batch_lib.Batch]]:
    """Provides the batches from `step` on; stops reading at the end.

    Args:
      step: number of the first batch, from 0.

    Yields:
      An iterator over this process's parts of the batches.
    """
    # A slice: iterators with worker processes cannot be set to a step.
    iterator = self.reading.iterate(self.batches()[step:])
    try:
      yield iterator
    finally:
      iterator.close()


def drop_host_only_keys(host_batch: batch_lib.Batch) -> dict[str, Any]:
  """Returns a batch, or a dict of batches, without the keys of `HOST_ONLY`."""
  return {
    name: drop_host_only_keys(value) if isinstance(value, Mapping) else value
    for name, value in host_batch.items()
    if name not in batch_lib.HOST_ONLY
  }


def prefetch_batches(
  batches: Iterator[batch_lib.Batch],
  put: Callable[[Any], Any],
  ahead: int = 2,
) -> Iterator[Any]:
  """Yields batches on the devices while the next ones are transferred.

  Args:
    batches: batches on the host.
    put: function that starts the transfer of a batch to the devices and returns
      the batch there.
    ahead: number of transfers that are started ahead.
  """
  # `put` returns before the transfer ends, so that transfers overlap with the
  # step. Each batch that is transferred ahead takes memory of the devices.
  pending = collections.deque()
  for batch in batches:
    pending.append(put(drop_host_only_keys(batch)))
    if len(pending) > ahead:
      yield pending.popleft()
  yield from pending
