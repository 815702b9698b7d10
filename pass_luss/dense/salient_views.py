"""Masks of salient objects, and pairs of crops that show enough of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from input_pipeline import datasets, transforms, views
from runtime import errors

# Draws of the crops of an image before another image is taken, and images that
# are taken at most.
_ATTEMPTS = 3
_MAX_IMAGES = 1000


def salient_mask(
  saliency: Float[np.ndarray, 'H W'], threshold: float, min_share: float
) -> Bool[np.ndarray, 'H W']:
  """Thresholds a saliency map and removes small parts.

  Args:
    saliency: saliency in [0, 1].
    threshold: saliency that salient pixels exceed.
    min_share: share of the image below which a connected part (of eight
      neighbors) is removed, and so is all if less remains.
  """
  mask = (saliency > threshold).astype(np.uint8)
  _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
  kept = stats[:, cv2.CC_STAT_AREA] >= min_share * mask.size
  kept[0] = False  # The background.
  mask = kept[parts]
  return mask if mask.mean() >= min_share else np.zeros_like(mask)


def shows_enough(
  labels: Int[np.ndarray, 'V H W'], shares: tuple[float, float]
) -> bool:
  """Returns whether the salient share of each view is strictly in a range.

  Args:
    labels: 1 where a pixel of a view is salient, else 0.
    shares: least and largest share.
  """
  salient = (labels > 0).mean(axis=(1, 2))
  return bool(((salient > shares[0]) & (salient < shares[1])).all())


@dataclasses.dataclass(frozen=True)
class SalientCrop:
  """Crops of an image and its mask that show both object and background.

  They are drawn again up to three times; then another image is taken.

  Attributes:
    crop: crop of the views, with labels.
    split: all images, with masks as labels.
    shares: range of the salient share of each view.
  """

  crop: views.MultiCrop
  split: datasets.Split
  shares: tuple[float, float]

  @property
  def groups(self) -> tuple[views.ViewGroup, ...]:
    """Returns the groups of views."""
    return self.crop.groups

  def __call__(
    self, example: transforms.Example, rng: np.random.Generator
  ) -> Mapping[str, Any]:
    """Crops all views at random.

    Raises:
      UserError: a thousand images in succession show too little.
    """
    for _ in range(_MAX_IMAGES):
      for _ in range(_ATTEMPTS):
        cropped = self.crop(example, rng)
        if shows_enough(cropped['label_large'], self.shares):
          return cropped
      index = int(rng.integers(len(self.split)))
      decode = transforms.Decode(len(self.split.classes))
      example = decode(self.split.records[index])
    raise errors.UserError(
      f'{self.split.name}: expected crops with a salient share between '
      f'{self.shares[0]:g} and {self.shares[1]:g}, got none in {_MAX_IMAGES:,} '
      'images: choose other saliency maps'
    )
