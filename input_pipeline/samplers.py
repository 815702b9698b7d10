"""Samplers: which record is next in a stream that is drawn with replacement.

  sampler = RareClassSampler.from_pixels(
    split.class_pixels(), RareClassOptions(), split.classes
  )
  stream = loader.Stream(split.records, transform, sampler)

A sampler draws with a generator whose seed is that of the stream and the
position of the example, so that a stream is the same on any number of hosts and
starting at any position is a seek.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from input_pipeline import crop_content
from runtime import errors
from runtime.option_ranges import CheckedOptions, NonNegative, Positive


class Draw(NamedTuple):
  """The draw of a record.

  Attributes:
    index: position of the record.
    required: class that a crop of it must show, or None.
    class_id: class that it was drawn for; negative where none.
  """

  index: int
  required: crop_content.RequiredClass | None = None
  class_id: int = -1


@runtime_checkable
class Sampler(Protocol):
  """Chooses the records that a stream reads, one at a time."""

  def sample(self, rng: np.random.Generator) -> Draw:
    """Draws the index of a record, and what a crop of it must show."""
    ...


@dataclasses.dataclass(frozen=True)
class UniformSampler:
  """Draws each record with the same probability, with replacement.

  Attributes:
    num_records: number of records.
  """

  num_records: int

  def sample(self, rng: np.random.Generator) -> Draw:
    """Draws the index of a record, and what a crop of it must show."""
    return Draw(int(rng.integers(self.num_records)))


@dataclasses.dataclass(frozen=True)
class RareClassOptions(CheckedOptions):
  """Options of rare class sampling (spec U2PL for domain adaptation §2.3).

  Attributes:
    temperature: T of the softmax; the lower it is, the more often rare classes
      are drawn.
    min_pixels: an image is drawn for a class if it shows more pixels of it, at
      the size of the stored image.
    min_crop_pixels: a crop is redrawn unless it shows more pixels of the class,
      at the size of the crop.
  """

  temperature: Positive[float] = 0.01
  min_pixels: NonNegative[int] = 3000
  min_crop_pixels: NonNegative[int] = 1500


def rare_class_probabilities(
  pixels: Int[np.ndarray, 'C'], temperature: float
) -> Float[np.ndarray, 'C']:
  """Computes P(c) = softmax((1 - f) / T) over the classes that occur.

  Args:
    pixels: number of pixels of each class, not all 0; f is their share of the
      sum.
    temperature: T, above 0.

  Returns:
    The probability of each class, 0 for a class without a pixel.
  """
  shares = pixels / pixels.sum()
  exponents = np.where(pixels > 0, (1 - shares) / temperature, -np.inf)
  weights = np.exp(exponents - exponents.max())
  return weights / weights.sum()


@dataclasses.dataclass(frozen=True, eq=False)
class RareClassSampler:
  """Draws a class, rare ones more often, then an image that shows it.

  Attributes:
    probabilities: probability of each class.
    images: positions of the images that may be drawn for each class.
    min_crop_pixels: number of pixels of the class; a crop must show more.
  """

  probabilities: Float[np.ndarray, 'C']
  images: Sequence[Int[np.ndarray, '_']]
  min_crop_pixels: int

  @classmethod
  def from_pixels(
    cls,
    pixels: Int[np.ndarray, 'N C'],
    options: RareClassOptions,
    classes: Sequence[str],
  ) -> 'RareClassSampler':
    """Builds the sampler from the number of pixels of each class in each image.

    Args:
      pixels: number of pixels of each class in each of N images.
      options: temperature and numbers of pixels.
      classes: names of the classes, for messages.

    Raises:
      UserError: no image has a class, or none shows enough of one that occurs.
    """
    totals = pixels.sum(axis=0)
    images = [
      np.flatnonzero(column > options.min_pixels) for column in pixels.T
    ]
    problems = [
      'rare_classes.min_pixels: expected less than '
      f'{pixels[:, i].max()}, the most pixels '
      f'that an image shows of {classes[i]}, got {options.min_pixels}'
      for i in np.flatnonzero(totals)
      if not len(images[i])
    ]
    if not totals.any():
      problems.append('expected images with classes, got none')
    if problems:
      raise errors.UserError(errors.format_problem_lines(problems))
    return cls(
      rare_class_probabilities(totals, options.temperature),
      images,
      options.min_crop_pixels,
    )

  def sample(self, rng: np.random.Generator) -> Draw:
    """Draws a class and an image."""
    class_id = int(rng.choice(len(self.probabilities), p=self.probabilities))
    index = int(rng.choice(self.images[class_id]))
    return Draw(
      index, crop_content.RequiredClass(class_id, self.min_crop_pixels)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ClassImageSampler:
  """Draws a class, then one of the images that show it (AEL).

  Attributes:
    probabilities: probability of each class.
    images: whether each of N images shows a class; where none does, the image
      is any of them.
  """

  probabilities: Float[np.ndarray, 'C']
  images: Bool[np.ndarray, 'C N']

  @classmethod
  def without_classes(cls, num_records: int) -> 'ClassImageSampler':
    """Returns the sampler of any image, for class 0."""
    return cls(np.ones(1), np.zeros((1, num_records), bool))

  def sample(self, rng: np.random.Generator) -> Draw:
    """Draws a class and an image."""
    class_id = int(rng.choice(len(self.probabilities), p=self.probabilities))
    shown = np.flatnonzero(self.images[class_id])
    index = (
      rng.choice(shown) if len(shown) else rng.integers(len(self.images.T))
    )
    return Draw(int(index), class_id=class_id)
