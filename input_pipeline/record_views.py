"""Random-access sequences of records, made of others or of image files."""

from collections.abc import Sequence

import numpy as np

from input_pipeline.sources import audit, image_files, records


class Selection(Sequence[records.Record]):
  """A random-access view of the records at the given indices."""

  def __init__(self, source: Sequence[records.Record], indices: np.ndarray):
    self._source = source
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i) -> records.Record:
    return self._source[int(self._indices[i])]

  def __repr__(self) -> str:
    return f'Selection({len(self)} records)'


class Concatenation(Sequence[records.Record]):
  """A random-access concatenation of several sources."""

  def __init__(self, sources: Sequence[Sequence[records.Record]]):
    self._sources = sources
    self._ends = np.cumsum([len(source) for source in sources])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i) -> records.Record:
    position = range(len(self))[int(i)]  # Accepts negative indices.
    k = int(np.searchsorted(self._ends, position, side='right'))
    source = self._sources[k]
    return source[position - int(self._ends[k]) + len(source)]

  def __repr__(self) -> str:
    return f'Concatenation({len(self)} records)'


class ImageFiles(Sequence[records.Record]):
  """A random-access source of records read from the image files."""

  def __init__(
    self,
    examples: Sequence[audit.Example],
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
