"""Numbers of images and labeled pixels per class, of a split and per image."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from input_pipeline.sources import label_pixels, object_sizes, records
from runtime import files, progress, threads


@dataclasses.dataclass(frozen=True)
class ClassCounts:
  """Holds the numbers of images and labeled pixels of a split.

  Attributes:
    num_images: number of usable images.
    pixels: number of labeled pixels of each class, [C].
    images: number of images in which each class occurs, [C].
    ignored: number of pixels without a class.
    blank: number of images whose mask has no pixel of a class.
    objects: histogram of the sizes of objects (see `object_sizes`); empty where
      it was not measured.
  """

  num_images: int
  pixels: tuple[int, ...] = ()
  images: tuple[int, ...] = ()
  ignored: int = 0
  blank: int = 0
  objects: tuple[int, ...] = dataclasses.field(default=(), compare=False)

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'ClassCounts':
    """Builds counts from `dataclasses.asdict(counts)` as read from JSON."""
    lists = {n: tuple(v) for n, v in fields.items() if isinstance(v, list)}
    return cls(**{**fields, **lists})

  @property
  def has_masks(self) -> bool:
    """Returns whether any image has a label per pixel."""
    return sum(self.pixels) + self.ignored > 0


class CountAccumulator:
  """Accumulates the counts of a split, sample by sample."""

  def __init__(self, num_classes: int):
    self._num_images = 0
    self._pixels = np.zeros(num_classes + 1, np.int64)  # The last: ignored.
    self._images = np.zeros(num_classes, np.int64)
    self._blank = 0
    self._objects = np.zeros(object_sizes.NUM_BINS, np.int64)

  def add(self, sample: records.Sample) -> Int64[np.ndarray, 'C']:
    """Adds the label and the tags of a sample.

    Returns:
      The number of pixels of each class in it, 0 without a label.
    """
    counts = count_sample(sample, len(self._images))
    self.merge(counts)
    return np.array(counts.pixels, np.int64)

  def merge(self, counts: ClassCounts) -> None:
    """Adds the counts of other samples of the split."""
    self._num_images += counts.num_images
    self._pixels += np.array((*counts.pixels, counts.ignored), np.int64)
    self._images += np.array(counts.images, np.int64)
    self._blank += counts.blank
    if counts.objects:
      self._objects += np.array(counts.objects, np.int64)

  def counts(self) -> ClassCounts:
    """Returns the counts of all samples so far."""
    return ClassCounts(
      num_images=self._num_images,
      pixels=tuple(self._pixels[:-1].tolist()),
      images=tuple(self._images.tolist()),
      ignored=int(self._pixels[-1]),
      blank=self._blank,
      objects=tuple(self._objects.tolist()),
    )


def count_sample(sample: records.Sample, num_classes: int) -> ClassCounts:
  """Counts the pixels, classes and objects of one sample."""
  present = np.zeros(num_classes, bool)
  present[list(sample.tags)] = True
  if sample.label is None:
    images = tuple(present.astype(int).tolist())
    return ClassCounts(1, (0,) * num_classes, images)
  counted = sample.class_pixels
  if counted is None:
    counted = label_pixels.count_label_pixels(sample.label)
  pixels = np.zeros(num_classes, np.int64)
  pixels[: len(counted)] = counted
  shares = object_sizes.object_shares(sample.label)
  return ClassCounts(
    num_images=1,
    pixels=tuple(pixels.tolist()),
    images=tuple((present | (pixels > 0)).astype(int).tolist()),
    ignored=int(sample.label.size - pixels.sum()),
    blank=int(not pixels.any()),
    objects=tuple(object_sizes.object_share_histogram(shares).tolist()),
  )


def count_class_pixels(
  examples: Sequence[records.Record], num_classes: int
) -> Int64[np.ndarray, 'N C']:
  """Counts the labeled pixels of each class in each image.

  Args:
    examples: records with a label; each is decoded once, in threads, under a
      progress bar.
    num_classes: number C of classes.
  """

  def count(png: bytes) -> Int64[np.ndarray, 'C']:
    # Stored values are class id + 1, so that none is negative.
    stored = records.decode_record_label(png) + 1
    return np.bincount(stored.ravel(), minlength=num_classes + 1)[1:]

  labels = (example['label'] for example in examples)
  counts = progress.progress_bar(
    threads.map_in_threads(count, labels),
    desc='counting pixels of classes',
    total=len(examples),
    delay=1,
    leave=False,
  )
  return np.array([*counts], np.int64).reshape(-1, num_classes)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredClassPixels:
  """Numbers of pixels of each class in each image, beside the records.

  Attributes:
    path: file that `write_class_pixels` has written, or a missing one.
    records: all records of the split, which are counted where the file is
      missing: the split was prepared before there were such files.
    num_classes: number of classes C.
    rows: positions of the images in the split; None for all of them.
  """

  path: pathlib.Path
  records: Sequence[records.Record]
  num_classes: int
  rows: Int[np.ndarray, 'N'] | None = None

  def select(self, indices: Int[np.ndarray, 'n']) -> 'StoredClassPixels':
    """Returns those of the images at the given indices, in that order."""
    rows = indices if self.rows is None else self.rows[indices]
    return dataclasses.replace(self, rows=rows)

  def read(self) -> Int64[np.ndarray, 'N C']:
    """Reads the numbers; counts and stores them if the file is missing."""
    pixels = self._read_file()
    if pixels is None:
      pixels = count_class_pixels(self.records, self.num_classes)
      # The records may be read-only, or of another user.
      with contextlib.suppress(OSError):
        write_class_pixels(self.path, pixels)
    return pixels if self.rows is None else pixels[self.rows]

  def _read_file(self) -> Int64[np.ndarray, 'all C'] | None:
    try:
      pixels = np.load(self.path, allow_pickle=False).astype(np.int64)
    except (OSError, ValueError, EOFError):
      return None
    expected = (len(self.records), self.num_classes)
    return pixels if pixels.shape == expected else None


def write_class_pixels(
  path: pathlib.Path, pixels: Int[np.ndarray, 'N C']
) -> None:
  """Writes the number of pixels of each class in each image."""
  # An image has less than 2**31 pixels.
  with files.atomic_path(path) as partial, partial.open('wb') as file:
    np.save(file, pixels.astype(np.int32))


def total_class_counts(counts: Iterable[ClassCounts]) -> ClassCounts:
  """Returns the counts of several splits of the same classes together."""
  counts = tuple(counts)
  accumulator = CountAccumulator(
    max((len(c.images) for c in counts), default=0)
  )
  for each in counts:
    if each.images:
      accumulator.merge(each)
  return accumulator.counts()


def read_class_counts(path: pathlib.Path) -> Mapping[str, ClassCounts]:
  """Reads the counts of each split that `write_class_counts` has written."""
  splits = json.loads(path.read_text())
  return {
    split: ClassCounts.from_json(fields) for split, fields in splits.items()
  }


def write_class_counts(
  path: pathlib.Path, counts: Mapping[str, ClassCounts]
) -> None:
  """Writes the counts of each split as JSON."""
  fields = {split: dataclasses.asdict(c) for split, c in counts.items()}
  path.write_text(json.dumps(fields))
