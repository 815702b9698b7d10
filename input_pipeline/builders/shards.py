"""Records on disk, in shards that are kept when their making is interrupted.

  made = Shards(builder, folder)
  made.write(Part(0, 4))  # The first of four processes, on any machines.
  if not made.missing():
    found = made.settle()  # An `audit.Audit`, or an error that names a file.

Each image is decoded and checked when it is written. A shard is made under
another name and renamed with what is known about it, so what is there is whole;
one that was made from files that have changed since is made again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tqdm
from array_record.python import array_record_module
from tensorflow_datasets.core import naming

from input_pipeline.sources import audit, class_counts, fingerprints
from runtime import errors, files, progress, threads

if TYPE_CHECKING:
  from input_pipeline.builders import base

# Images of a shard, but where there are more than this many times MOST_SHARDS.
IMAGES_PER_SHARD = 1000
MOST_SHARDS = 1024


@dataclasses.dataclass(frozen=True)
class Part:
  """Which shards this process makes: every `count`-th, from `index` on."""

  index: int = 0
  count: int = 1

  def __post_init__(self):
    if not 0 <= self.index < self.count:
      raise errors.UserError(
        f'shard: found {self.index}/{self.count}, expected i/n with '
        '0 <= i < n, e.g. 0/4 to 3/4 on four machines'
      )

  @classmethod
  def parse(cls, text: str) -> 'Part':
    """Reads 'i/n'.

    Raises:
      UserError: it is something else.
    """
    index, slash, count = text.partition('/')
    if not (slash and index.isdecimal() and count.isdecimal()):
      raise errors.UserError(
        f'shard: found {text!r}, expected i/n, e.g. 0/4 to 3/4 on four machines'
      )
    return cls(int(index), int(count))


@dataclasses.dataclass(frozen=True)
class Shard:
  """A run of the sources of a split."""

  split: str
  index: int
  count: int  # Of shards in the split.
  sources: Sequence[Any]

  @property
  def name(self) -> str:
    """Name of its files, without suffix."""
    return f'{self.split}-{self.index:05}-of-{self.count:05}'


class Shards:
  """The shards of a data set that is being prepared.

  Attributes:
    folder: where they are kept.
  """

  def __init__(self, builder: 'base.Builder', folder: pathlib.Path):
    self.folder = folder
    self._builder = builder
    self._shards = tuple(_cut(builder.sources()))
    self._plans: dict[str, str] = {}

  def write(self, part: Part = Part()) -> None:
    """Makes what is missing of this part's shards.

    Raises:
      UserError: the disk is too small.
      OSError: it cannot be written to.
    """
    mine = self._shards[part.index :: part.count]
    todo = [shard for shard in mine if not self._is_made(shard)]
    if not todo:
      return
    self.folder.mkdir(parents=True, exist_ok=True)
    self._check_space(todo)
    bar = progress.bar(
      desc=f'preparing {self._builder.name}',
      total=sum(len(shard.sources) for shard in mine),
      initial=sum(len(s.sources) for s in mine)
      - sum(len(s.sources) for s in todo),
    )
    with bar:
      for shard in todo:
        self._make(shard, bar)

  def missing(self) -> int:
    """How many shards are not made yet, by any process."""
    return sum(not self._is_made(shard) for shard in self._shards)

  def __len__(self) -> int:
    return len(self._shards)

  def settle(self) -> audit.Audit:
    """Judges what was found in all shards, and forgets the bad ones.

    Raises:
      UserError: see `base.Builder.settle`; good shards are kept.
    """
    num_classes = len(self._builder.contents().classes)
    tallies, bad = {}, []
    for shard in self._shards:
      about = self._about(shard)
      tally = tallies.setdefault(
        shard.split, class_counts.CountAccumulator(num_classes)
      )
      tally.merge(class_counts.ClassCounts.of_json(about['counts']))
      bad += [errors.BadFile(*problem) for problem in about['bad']]
    try:
      return self._builder.settle(
        {split: tally.counts() for split, tally in tallies.items()}, bad
      )
    except errors.UserError:
      for shard in self._shards:
        if self._about(shard)['bad']:
          for suffix in ('.json', '.npz', '.array_record'):
            self._path(shard, suffix).unlink(missing_ok=True)
      raise

  def lengths(self) -> Iterator[tuple[str, list[int], int]]:
    """Name, records of each shard, and bytes of each split."""
    for split in dict.fromkeys(shard.split for shard in self._shards):
      found = [self._about(s) for s in self._shards if s.split == split]
      found = [about for about in found if about['length']]
      yield (
        split,
        [about['length'] for about in found],
        sum(about['bytes'] for about in found),
      )

  def finish(self, folder: pathlib.Path) -> None:
    """Moves records and indices to where TFDS expects them."""
    for split, lengths, _ in self.lengths():
      shards = [
        shard
        for shard in self._shards
        if shard.split == split and self._about(shard)['length']
      ]
      template = naming.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=self._builder.name,
        split=split,
        filetype_suffix='array_record',
      )
      for i, shard in enumerate(shards):
        place = template.sharded_filepath(
          shard_index=i, num_shards=len(lengths)
        )
        _take(self._path(shard, '.array_record'), pathlib.Path(place))
      indices = [
        fingerprints.ImageIndex.read(self._path(shard, '.npz'))
        for shard in shards
      ]
      fingerprints.ImageIndex.join(indices).write(index_path(folder, split))

  def _make(self, shard: Shard, bar: tqdm.tqdm) -> None:
    """Writes records, index, and at last what is known of them."""
    builder = self._builder

    def read(source):
      sample = builder.sample(source)
      return (
        sample,
        builder.encode(sample),
        fingerprints.ImageIndex.from_sample(sample),
      )

    tally = class_counts.CountAccumulator(len(builder.contents().classes))
    bad, indices, num_bytes = [], [], 0
    records = self._path(shard, f'.array_record.{os.getpid()}')
    writer = array_record_module.ArrayRecordWriter(str(records), 'group_size:1')
    try:
      for found in threads.ordered_map(audit.catching(read), shard.sources):
        bar.update()
        if isinstance(found, errors.BadFile):
          bad.append((str(found.file), found.reason))
          continue
        sample, record, index = found
        tally.add(sample)
        indices.append(index)
        num_bytes += len(record)
        writer.write(record)
    except BaseException:
      _abandon(writer, records)
      raise
    try:
      writer.close()
    except Exception as error:  # It knows no other.
      records.unlink(missing_ok=True)
      raise OSError(0, f'writing failed ({error})', str(records)) from error
    records.rename(self._path(shard, '.array_record'))
    if indices:
      fingerprints.ImageIndex.join(indices).write(self._path(shard, '.npz'))
    about = {
      'plan': self._plan(shard),
      'length': len(indices),
      'bytes': num_bytes,
      'counts': dataclasses.asdict(tally.counts()),
      'bad': bad,
    }
    with files.atomic_path(self._path(shard, '.json')) as partial:
      partial.write_text(json.dumps(about))

  def _path(self, shard: Shard, suffix: str) -> pathlib.Path:
    return self.folder / f'{shard.name}{suffix}'

  def _about(self, shard: Shard) -> Mapping[str, Any]:
    return json.loads(self._path(shard, '.json').read_text())

  def _is_made(self, shard: Shard) -> bool:
    try:
      return self._about(shard)['plan'] == self._plan(shard)
    except (OSError, ValueError, KeyError):
      return False

  def _plan(self, shard: Shard) -> str:
    """A digest of all that decides the content of a shard."""
    if shard.name not in self._plans:
      stamps = [self._builder.stamp(source) for source in shard.sources]
      text = json.dumps([str(self._builder.version), stamps])
      self._plans[shard.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return self._plans[shard.name]

  def _check_space(self, shards: Sequence[Shard]) -> None:
    size = self._builder.size
    needed = sum(size(source) for s in shards for source in s.sources)
    free = shutil.disk_usage(self.folder).free
    if needed > free:
      raise errors.UserError(
        f'{self.folder}: {free / 1e9:.1f} GB are free, the records of '
        f'{self._builder.name} need {needed / 1e9:.1f} GB: free some space, or '
        'choose another --data_dir'
      )


def index_path(folder: pathlib.Path, split: str) -> pathlib.Path:
  """Where the index of a split is, in the folder of its records."""
  return folder / f'index-{split}.npz'


def _cut(sources: Mapping[str, Sequence[Any]]) -> Iterator[Shard]:
  """The shards of all splits, of nearly equal lengths."""
  for split, listed in sources.items():
    count = min(-(-len(listed) // IMAGES_PER_SHARD), MOST_SHARDS) or 1
    ends = [len(listed) * i // count for i in range(count + 1)]
    for i in range(count):
      yield Shard(split, i, count, listed[ends[i] : ends[i + 1]])


def _take(path: pathlib.Path, place: pathlib.Path) -> None:
  """A second name for a file, where the disk has that; else a copy."""
  try:
    os.link(path, place)
  except OSError:
    shutil.copyfile(path, place)


def _abandon(writer: Any, records: pathlib.Path) -> None:
  with contextlib.suppress(Exception):  # The first error is the one to tell.
    writer.close()
  records.unlink(missing_ok=True)
