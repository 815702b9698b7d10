"""Random-access sequences of records, without a copy of any record.

The loader shuffles by index, so every source of records is a `Sequence`. It is
pickled for worker processes: the views keep positions and paths, never content.
"""

from collections.abc import Sequence

import numpy as np

from input_pipeline.sources import image_files, pairing, records


class Selection(Sequence[records.Record]):
  """A view of the records of another sequence at the given indices."""

  def __init__(self, source: Sequence[records.Record], indices: np.ndarray):
    """Keeps the indices and reads no record.

    Args:
      source: the records to choose from.
      indices: int array [N] of positions in `source`; repetitions are allowed.
    """
    self._source = source
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i) -> records.Record:
    return self._source[int(self._indices[i])]

  def __repr__(self) -> str:
    return f'Selection({len(self)} records)'


class Retagged(Sequence[records.Record]):
  """The records of another sequence with other tags."""

  def __init__(
    self, source: Sequence[records.Record], tags: Sequence[Sequence[int]]
  ):
    """Keeps the tags and reads no record.

    Args:
      source: the records.
      tags: class ids of each image.
    """
    self._source = source
    self._tags = tags

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i) -> records.Record:
    # As in `Concatenation`: IndexError ends an iteration.
    position = range(len(self))[int(i)]
    tags = np.array(self._tags[position], np.int64)
    return {**self._source[position], 'tags': tags}

  def __repr__(self) -> str:
    return f'Retagged({len(self)} records)'


class IndexedRecords(Sequence[records.Record]):
  """The records of another sequence, each with its `index` there."""

  def __init__(self, source: Sequence[records.Record]):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i) -> records.Record:
    return {**self._source[i], 'index': i}

  def __repr__(self) -> str:
    return f'IndexedRecords({len(self)} records)'


class Concatenation(Sequence[records.Record]):
  """The records of several sequences, one after the other."""

  def __init__(self, sources: Sequence[Sequence[records.Record]]):
    self._sources = sources
    # Position after the last record of each sequence.
    self._ends = np.cumsum([len(source) for source in sources])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i) -> records.Record:
    # `range` maps negative indices, which files of records refuse, to positive
    # ones, and raises the IndexError that ends an iteration.
    position = range(len(self))[int(i)]
    # side='right': the position that ends a sequence is the start of the next,
    # and sequences without records are skipped.
    k = int(np.searchsorted(self._ends, position, side='right'))
    source = self._sources[k]
    return source[position - int(self._ends[k]) + len(source)]

  def __repr__(self) -> str:
    return f'Concatenation({len(self)} records)'


class ImageFiles(Sequence[records.Record]):
  """The images of a folder as records, read from their files on access."""

  def __init__(
    self,
    examples: Sequence[pairing.Example],
    options: image_files.ImageOptions,
    as_stored: Sequence[bool],
  ):
    """Reads no file yet.

    Args:
      examples: the images.
      options: define their pixels.
      as_stored: whether a record holds the bytes of a file as they are.
    """
    self._examples = examples
    self._options = options
    self._as_stored = as_stored

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, i) -> records.Record:
    example = self._examples[int(i)]
    image = example.image.read_bytes()
    if not self._as_stored[int(i)]:
      image = image_files.read_image_file(image, self._options).encoded
    return {'image': image, 'id': example.id.encode()}

  def __repr__(self) -> str:
    return f'ImageFiles({len(self)} images)'
