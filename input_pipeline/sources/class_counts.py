"""ClassCounts of images and labeled pixels per class."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from input_pipeline.sources import records


@dataclasses.dataclass(frozen=True)
class ClassCounts:
  """What occurs in a split.

  Attributes:
    num_images: usable images.
    pixels: labeled pixels of each class, [C].
    images: images in which each class occurs, [C].
    ignored: pixels of no class.
  """

  num_images: int
  pixels: tuple[int, ...] = ()
  images: tuple[int, ...] = ()
  ignored: int = 0

  @classmethod
  def of_json(cls, found: Mapping[str, Any]) -> 'ClassCounts':
    """Undoes `dataclasses.asdict`, after a way through JSON."""
    lists = {name: tuple(found[name]) for name in ('pixels', 'images')}
    return cls(**{**found, **lists})


class CountAccumulator:
  """Adds up the counts of a split."""

  def __init__(self, num_classes: int):
    self._num_images = 0
    self._pixels = np.zeros(num_classes + 1, np.int64)  # The last: ignored.
    self._images = np.zeros(num_classes, np.int64)

  def add(self, sample: records.Sample) -> None:
    """ClassCounts a sample."""
    self._num_images += 1
    num_classes = len(self._images)
    present = np.zeros(num_classes, bool)
    if sample.label is not None:
      ids = np.where(sample.label < 0, num_classes, sample.label)
      pixels = np.bincount(ids.ravel(), minlength=num_classes + 1)
      self._pixels += pixels
      present |= pixels[:num_classes] > 0
    present[list(sample.tags)] = True
    self._images += present

  def merge(self, counts: ClassCounts) -> None:
    """Adds what was counted elsewhere."""
    self._num_images += counts.num_images
    self._pixels += np.array((*counts.pixels, counts.ignored), np.int64)
    self._images += np.array(counts.images, np.int64)

  def counts(self) -> ClassCounts:
    """What was counted so far."""
    return ClassCounts(
      num_images=self._num_images,
      pixels=tuple(self._pixels[:-1].tolist()),
      images=tuple(self._images.tolist()),
      ignored=int(self._pixels[-1]),
    )


def read(path: pathlib.Path) -> Mapping[str, ClassCounts]:
  """What `Audit.write` has written."""
  found = json.loads(path.read_text())
  return {split: ClassCounts.of_json(counts) for split, counts in found.items()}
