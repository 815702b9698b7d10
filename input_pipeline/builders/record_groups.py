"""Reads and encodes sources in small groups, one step after the other.

  reader = GroupReader(builder.read_sample, builder.encode, num_classes)
  for group in divide_into_groups(sources):
    for result in reader.read(group):
      ...  # A BadFile, or a `ReadRecord`.

A processor executes code that it has just executed in less time: all steps for
one image after the other take a seventh longer.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from input_pipeline.sources import audit, class_counts, fingerprints, records
from runtime import errors

# A group has at most so many images, and ends where it has so many pixels.
_MAX_IMAGES = 16
_ENOUGH_PIXELS = 2**22


class ReadRecord(NamedTuple):
  """Record of one source, with what reports and indices need of it.

  Attributes:
    id: official name of the image.
    traits: traits of its files; None if it is not read from files.
    record: the serialized record.
    index: index of the image.
    counts: counts of its label.
  """

  id: str
  traits: records.Traits | None
  record: bytes
  index: fingerprints.ImageIndex
  counts: class_counts.ClassCounts


@dataclasses.dataclass(frozen=True)
class GroupReader:
  """Reads groups of sources.

  Attributes:
    read_sample: function that reads the sample of a source, or raises BadFile.
    encode: function that returns the serialized record of a sample.
    num_classes: number of classes of the labels.
  """

  read_sample: Callable[[Any], records.Sample]
  encode: Callable[[records.Sample], bytes]
  num_classes: int

  def read(self, sources: Sequence[Any]) -> list[ReadRecord | errors.BadFile]:
    """Returns what is written of each source, or its error, in order."""
    read = audit.catch_bad_files(self.read_sample)
    results, samples, num_pixels = [], [], 0
    for source in sources:
      sample = read(source)
      samples.append(sample)
      if not isinstance(sample, errors.BadFile):
        num_pixels += sample.pixels[..., 0].size
      if num_pixels >= _ENOUGH_PIXELS:
        results += self._process(samples)
        samples, num_pixels = [], 0
    return results + self._process(samples)

  def _process(
    self, samples: Sequence[records.Sample | errors.BadFile]
  ) -> list[ReadRecord | errors.BadFile]:
    """Encodes, counts and indexes samples; returns errors as they are."""
    good = [each for each in samples if isinstance(each, records.Sample)]
    encoded = [self.encode(sample) for sample in good]
    counts = [class_counts.count_sample(s, self.num_classes) for s in good]
    indices = [fingerprints.ImageIndex.from_sample(sample) for sample in good]
    # Without the pixels, which would be kept until the record is written.
    read = (
      ReadRecord(sample.id, sample.traits, *rest)
      for sample, *rest in zip(good, encoded, indices, counts, strict=True)
    )
    return [
      each if isinstance(each, errors.BadFile) else next(read)
      for each in samples
    ]


def divide_into_groups(sources: Sequence[Any]) -> Iterator[Sequence[Any]]:
  """Yields the sources in groups, in order."""
  for start in range(0, len(sources), _MAX_IMAGES):
    yield sources[start : start + _MAX_IMAGES]
