"""Which images of a split are labelled: a seeded subset, by number or share."""

import dataclasses
import math

import numpy as np
from jaxtyping import Int

from input_pipeline import errors


@dataclasses.dataclass(frozen=True)
class Subset:
  """A seeded subset of the training images.

  For one seed the subsets are nested: the 50 images are among the 100.

  Attributes:
    labels: number of images; 0 means that `fraction` decides.
    fraction: share of the images in (0, 1], rounded half up, at least 1.
    seed: which subset; the same for every method, so that runs are paired.
  """

  labels: int = 0
  fraction: float = 1.0
  seed: int = 0

  def __post_init__(self):
    if self.seed < 0:
      raise ValueError(f'seed: found {self.seed}, expected 0 or more')
    if self.labels < 0:
      raise ValueError(f'labels: found {self.labels}, expected 0 or more')
    if not 0 < self.fraction <= 1:
      raise ValueError(f'fraction: found {self.fraction}, expected (0, 1]')
    if self.labels and self.fraction != 1.0:
      raise ValueError(
        f'labels={self.labels} and fraction={self.fraction} contradict each '
        'other: give one of them'
      )

  def choose(self, num_images: int) -> Int[np.ndarray, 'chosen']:
    """Returns the sorted indices of the chosen images.

    Raises:
      UserError: more labels are asked for than there are images.
    """
    # 50 · 0.29 is 14.499999999999998 in floating point, and means 14.5.
    share = round(num_images * self.fraction, 6)
    count = self.labels or max(1, math.floor(share + 0.5))
    if count > num_images:
      raise errors.UserError(
        f'{count} labelled images were asked for, the split has {num_images}: '
        'ask for fewer'
      )
    order = np.random.default_rng(self.seed).permutation(num_images)
    return np.sort(order[:count])
