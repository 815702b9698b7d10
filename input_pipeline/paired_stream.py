"""Pairs of images: one of a shuffled pass, and one that is drawn by its class.

  stream = PairedStream(records, transform, every=100, read_sampler=read)
  batches = loader.Loader({'unlabeled': stream}, batch_size=16, seed=0)
  for batch in batches.redrawn(state).start(step=200): ...

What images show is known by the training state alone. For a step to depend on
that state and on the step alone, the sampler is read at fixed steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epy

from input_pipeline import loader, samplers, transforms

with epy.lazy_imports():
  import grain

# Class of an image that was not drawn by one.
NO_CLASS = -1


@dataclasses.dataclass(frozen=True)
class PairedStream(loader.Stream):
  """Alternates between images of a shuffled pass and drawn ones.

  Examples have two further keys: `index`, the position of the record, and
  `drawn_class`, the class that it was drawn for or `NO_CLASS`.

  Attributes:
    read_sampler: function from a training state to the sampler of the drawn
      images; of the module's level, as worker processes get it.
    redraw_every: number of steps after which the sampler is read again.
  """

  read_sampler: Callable[[Any], samplers.ClassImageSampler] | None = None
  redraw_every: int = 0

  def redrawn(self, state: Any) -> 'PairedStream':
    """Returns the stream with the sampler of a training state."""
    return dataclasses.replace(self, sampler=self.read_sampler(state))

  def examples(self, seed: int) -> 'grain.MapDataset':
    """Returns the infinite sequence of examples, the same on all hosts."""
    positions = grain.MapDataset.range(len(self.records))
    passed = positions.seed(seed).shuffle().repeat()
    # With a seed of its own, or both images had the same augmentation.
    drawn = positions.seed(seed + 1).repeat()
    return grain.MapDataset.mix(
      [passed.random_map(self._read), drawn.random_map(self._draw)]
    )

  def _read(
    self, position: int, rng: np.random.Generator
  ) -> transforms.Example:
    """Transforms the record of a position."""
    return self._example(int(position), NO_CLASS, rng)

  def _draw(
    self, position: int, rng: np.random.Generator
  ) -> transforms.Example:
    """Draws a record, whatever the position is, and transforms it."""
    del position
    sampler = self.sampler or samplers.ClassImageSampler.without_classes(
      len(self.records)
    )
    draw = sampler.sample(rng)
    return self._example(draw.index, draw.class_id, rng)

  def _example(
    self, index: int, class_id: int, rng: np.random.Generator
  ) -> transforms.Example:
    return {
      **self.transform(self.records[index], rng),
      'index': np.int32(index),
      'drawn_class': np.int32(class_id),
    }
