"""Writes records in shards, which survive an interruption of the writer.

  writer = ShardWriter(builder, folder)
  writer.write(ShardSubset(0, 4))  # In the first of four processes.
  if not writer.missing():
    result = writer.conclude()  # An `audit.Audit`, or an error.

Each image is decoded and checked when its record is written. A shard is written
under a temporary name and renamed together with what is known about it, so that
every shard present is complete; one whose source files have changed since is
written again.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from array_record.python import array_record_module
from etils import epy

from input_pipeline.builders import record_groups, shard_processes
from input_pipeline.sources import (
  audit,
  class_counts,
  file_traits,
  fingerprints,
  records,
)
from runtime import errors, files, memory, progress, threads

with epy.lazy_imports():
  from tensorflow_datasets.core import naming

# One record per group: random access decompresses no neighbors. No level of
# compression makes JPEG and PNG smaller; this one takes the least time.
_RECORD_FILE = 'group_size:1,zstd:-5'
# A split has a shard per so many images, but at most MAX_SHARDS of them.
IMAGES_PER_SHARD = 1000
MAX_SHARDS = 1024
# A process is started per so many images: it takes as long as 200 of them.
IMAGES_PER_PROCESS = 1000


@runtime_checkable
class RecordSource(Protocol):
  """Describes what a writer of shards needs of a `base.Builder`."""

  name: str
  version: Any

  def schema(self) -> records.Schema:
    """Returns the classes of the records."""

  def sources(self) -> Mapping[str, Sequence[Any]]:
    """Returns what each record is read from, by split."""

  def read_sample(self, source: Any) -> records.Sample:
    """Reads the sample of a source, or raises BadFile."""

  def encode(self, sample: records.Sample) -> bytes:
    """Returns the serialized record of a sample."""

  def stamp(self, source: Any) -> Any:
    """Returns a JSON value that changes when the record changes."""

  def record_size(self, source: Any) -> int:
    """Estimates the size of a record in bytes."""

  def conclude(
    self,
    counts: Mapping[str, class_counts.ClassCounts],
    bad: Sequence[errors.BadFile],
    traits: file_traits.TraitCounter,
  ) -> audit.Audit:
    """Builds the result of reading all sources, or raises UserError."""


@dataclasses.dataclass(frozen=True)
class ShardSubset:
  """The shards of one process: every `count`-th, starting at `index`."""

  index: int = 0
  count: int = 1

  def __post_init__(self):
    if not 0 <= self.index < self.count:
      raise errors.UserError(
        'shard: expected i/n with 0 <= i < n, e.g. 0/4 to 3/4 on four '
        f'machines, got {self.index}/{self.count}'
      )

  @classmethod
  def parse(cls, text: str) -> 'ShardSubset':
    """Parses a shard written 'i/n'.

    Raises:
      UserError: the text has another form.
    """
    index, slash, count = text.partition('/')
    if not (slash and index.isdecimal() and count.isdecimal()):
      raise errors.UserError(
        f'shard: expected i/n, e.g. 0/4 to 3/4 on four machines, got {text!r}'
      )
    return cls(int(index), int(count))


@dataclasses.dataclass(frozen=True)
class Shard:
  """A contiguous part of the sources of a split.

  Attributes:
    split: name of the split.
    index: index of the shard in the split, from 0.
    count: number of shards of the split.
    sources: sources of the shard's records, in order.
  """

  split: str
  index: int
  count: int
  sources: Sequence[Any]

  @property
  def name(self) -> str:
    """Returns the name of the shard's files, without suffix."""
    return f'{self.split}-{self.index:05}-of-{self.count:05}'


class ShardWriter:
  """Writes the shards of a data set, alone or beside other processes.

  Attributes:
    folder: folder of the shards until all of them are written.
  """

  def __init__(
    self,
    builder: RecordSource,
    folder: pathlib.Path,
    images_per_shard: int | None = None,
  ):
    """Divides the sources into shards; writes nothing.

    Args:
      builder: builder of the records.
      folder: folder of the shards.
      images_per_shard: greatest number of images of a shard, unless a split has
        more than `MAX_SHARDS`; None for `IMAGES_PER_SHARD`.
    """
    self.folder = folder
    self._builder = builder
    self._images_per_shard = images_per_shard or IMAGES_PER_SHARD
    self._shards = tuple(_divide(builder.sources(), self._images_per_shard))
    self._num_classes = len(builder.schema().classes)
    self._plans: dict[str, str] = {}

  def __reduce__(self):
    # Sources may be millions; another process lists them itself.
    arguments = self._builder, self.folder, self._images_per_shard
    return ShardWriter, arguments

  def write(self, subset: ShardSubset = ShardSubset(), jobs: int = 1) -> None:
    """Writes those shards of a subset that are not written yet.

    Args:
      subset: the shards of this machine.
      jobs: greatest number of processes. Few images are written by this one,
        and no shard by several.

    Raises:
      UserError: the disk is too small, or a process was killed.
      OSError: the disk cannot be written to.
    """
    own = self._shards[subset.index :: subset.count]
    pending = [shard for shard in own if not self._is_written(shard)]
    if not pending:
      return
    self.folder.mkdir(parents=True, exist_ok=True)
    self._check_space(pending)
    memory.keep_freed_memory()
    total, left = (
      sum(len(shard.sources) for shard in part) for part in (own, pending)
    )
    jobs = min(jobs, len(pending), left // IMAGES_PER_PROCESS)
    bar = progress.progress_bar(
      desc=f'preparing {self._builder.name}',
      total=total,
      initial=total - left,
    )
    names = [shard.name for shard in pending]
    with bar:
      if jobs > 1:
        shard_processes.write_shards(self, names, jobs, bar.update)
      else:
        for name in names:
          self.write_shard(name, bar.update)

  def missing(self) -> int:
    """Returns the number of shards that no process has written yet."""
    return sum(not self._is_written(shard) for shard in self._shards)

  def __len__(self) -> int:
    return len(self._shards)

  def conclude(self) -> audit.Audit:
    """Builds the result of reading the sources of all shards.

    Shards with a bad file are removed if that file must not be skipped, so that
    the next run writes them again; the others are kept.

    Raises:
      UserError: a file is bad and must not be skipped, or a split has no usable
        image.
    """
    accumulators, bad = {}, []
    traits = file_traits.TraitCounter()
    for shard in self._shards:
      about = self._read_about(shard)
      accumulator = accumulators.setdefault(
        shard.split, class_counts.CountAccumulator(self._num_classes)
      )
      accumulator.merge(class_counts.ClassCounts.from_json(about['counts']))
      bad += [errors.BadFile(*problem) for problem in about['bad']]
      traits.merge(about.get('traits', {}))
    try:
      return self._builder.conclude(
        {split: a.counts() for split, a in accumulators.items()}, bad, traits
      )
    except errors.UserError:
      for shard in self._shards:
        if self._read_about(shard)['bad']:
          for suffix in ('.json', '.npz', '.npy', '.array_record'):
            self._path(shard, suffix).unlink(missing_ok=True)
      raise

  def lengths(self) -> Iterator[tuple[str, list[int], int]]:
    """Yields (name, records of each shard, total bytes) of each split.

    Shards without records are omitted: TFDS does not accept them.
    """
    for split in dict.fromkeys(shard.split for shard in self._shards):
      abouts = [self._read_about(s) for s in self._shards if s.split == split]
      abouts = [about for about in abouts if about['length']]
      yield (
        split,
        [about['length'] for about in abouts],
        sum(about['bytes'] for about in abouts),
      )

  def finish(self, folder: pathlib.Path) -> None:
    """Places records and indices where TFDS expects them."""
    for split, lengths, _ in self.lengths():
      shards = [
        shard
        for shard in self._shards
        if shard.split == split and self._read_about(shard)['length']
      ]
      template = naming.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=self._builder.name,
        split=split,
        filetype_suffix='array_record',
      )
      for i, shard in enumerate(shards):
        target = template.sharded_filepath(
          shard_index=i, num_shards=len(lengths)
        )
        _link(self._path(shard, '.array_record'), pathlib.Path(target))
      indices = [
        fingerprints.ImageIndex.read(self._path(shard, '.npz'))
        for shard in shards
      ]
      fingerprints.ImageIndex.join(indices).write(
        shard_index_path(folder, split)
      )
      counts = [self._path(shard, '.npy') for shard in shards]
      if all(path.exists() for path in counts):
        class_counts.write_class_pixels(
          class_pixels_path(folder, split),
          np.concatenate([np.load(path) for path in counts]),
        )

  def write_shard(
    self,
    name: str,
    advance: Callable[[], Any],
    num_threads: int | None = None,
  ) -> None:
    """Writes the files of a shard, and last the one that marks it complete.

    Args:
      name: name of the shard.
      advance: function called after each image; what it raises ends the work
        and leaves no file.
      num_threads: number of threads that read images; None for one per usable
        processor.

    Raises:
      OSError: the disk cannot be written to.
    """
    shard = next(shard for shard in self._shards if shard.name == name)
    content = _Content(self._num_classes)
    reader = record_groups.GroupReader(
      self._builder.read_sample, self._builder.encode, self._num_classes
    )
    partial = self._path(shard, f'.array_record.{os.getpid()}')
    writer = array_record_module.ArrayRecordWriter(str(partial), _RECORD_FILE)
    try:
      for result in itertools.chain.from_iterable(
        threads.map_in_threads(
          reader.read,
          record_groups.divide_into_groups(shard.sources),
          num_threads,
        )
      ):
        advance()
        if isinstance(result, errors.BadFile):
          content.bad.append((str(result.file), result.reason))
        else:
          writer.write(result.record)
          content.add(result)
    except BaseException:
      _abandon(writer, partial)
      raise
    try:
      writer.close()
    except Exception as error:  # array_record raises no specific class.
      partial.unlink(missing_ok=True)
      raise OSError(0, f'writing failed ({error})', str(partial)) from error
    partial.rename(self._path(shard, '.array_record'))
    if content.indices:
      index = fingerprints.ImageIndex.join(content.indices)
      index.write(self._path(shard, '.npz'))
    if content.counts.counts().has_masks:
      class_counts.write_class_pixels(
        self._path(shard, '.npy'), np.array(content.pixels)
      )
    about = {'plan': self._plan(shard), **content.to_json()}
    with files.atomic_path(self._path(shard, '.json')) as path:
      path.write_text(json.dumps(about))

  def _check_space(self, shards: Sequence[Shard]) -> None:
    size = self._builder.record_size
    needed = sum(size(source) for s in shards for source in s.sources)
    free = shutil.disk_usage(self.folder).free
    if needed > free:
      raise errors.UserError(
        f'{self.folder}: {free / 1e9:.1f} GB are free, the records of '
        f'{self._builder.name} need {needed / 1e9:.1f} GB: free some space, or '
        'choose another --data_dir'
      )

  def _path(self, shard: Shard, suffix: str) -> pathlib.Path:
    return self.folder / f'{shard.name}{suffix}'

  def _read_about(self, shard: Shard) -> Mapping[str, Any]:
    """Reads the file that describes a written shard."""
    return json.loads(self._path(shard, '.json').read_text())

  def _is_written(self, shard: Shard) -> bool:
    try:
      return self._read_about(shard)['plan'] == self._plan(shard)
    except (OSError, ValueError, KeyError):
      return False

  def _plan(self, shard: Shard) -> str:
    """Returns a digest of everything that determines the content of a shard."""
    if shard.name not in self._plans:
      stamps = [self._builder.stamp(source) for source in shard.sources]
      text = json.dumps([str(self._builder.version), stamps])
      self._plans[shard.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return self._plans[shard.name]


class _Content:
  """Accumulates what is known about the sources of a shard.

  Attributes:
    bad: path and problem of each bad file.
    indices: index of each record.
    pixels: pixels of each class, for each record.
    counts: counts of all records.
  """

  def __init__(self, num_classes: int):
    self.bad: list[tuple[str, str]] = []
    self.indices: list[fingerprints.ImageIndex] = []
    self.pixels: list[tuple[int, ...]] = []
    self.counts = class_counts.CountAccumulator(num_classes)
    self._traits = file_traits.TraitCounter()
    self._num_bytes = 0

  def add(self, read: record_groups.ReadRecord) -> None:
    """Adds a source that was read."""
    self.indices.append(read.index)
    self.pixels.append(read.counts.pixels)
    self.counts.merge(read.counts)
    self._traits.add(read.id, read.traits)
    self._num_bytes += len(read.record)

  def to_json(self) -> dict[str, Any]:
    """Returns what is stored beside the records."""
    return {
      'length': len(self.indices),
      'bytes': self._num_bytes,
      'counts': dataclasses.asdict(self.counts.counts()),
      'bad': self.bad,
      'traits': self._traits.to_json(),
    }


def shard_index_path(folder: pathlib.Path, split: str) -> pathlib.Path:
  """Returns the path of the index of a split in the folder of its records."""
  return folder / f'index-{split}.npz'


def class_pixels_path(folder: pathlib.Path, split: str) -> pathlib.Path:
  """Returns the path of the pixels of each class in each image of a split."""
  return folder / f'class-pixels-{split}.npy'


def _divide(
  sources: Mapping[str, Sequence[Any]], images_per_shard: int
) -> Iterator[Shard]:
  """Yields the shards of all splits, of nearly equal lengths."""
  for split, items in sources.items():
    count = min(-(-len(items) // images_per_shard), MAX_SHARDS) or 1
    ends = [len(items) * i // count for i in range(count + 1)]
    for i in range(count):
      yield Shard(split, i, count, items[ends[i] : ends[i + 1]])


def _link(path: pathlib.Path, target: pathlib.Path) -> None:
  """Creates a hard link where the file system has them, else a copy."""
  try:
    os.link(path, target)
  except OSError:
    shutil.copyfile(path, target)


def _abandon(writer: Any, path: pathlib.Path) -> None:
  # An error of closing would hide the one that is being handled.
  with contextlib.suppress(Exception):
    writer.close()
  path.unlink(missing_ok=True)
