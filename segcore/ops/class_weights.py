"""Weights of the classes in a loss by pixel, from how often each one occurs.

options = LossClassWeightOptions('median')
weights = compute_class_weights(pixels, images, options)
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from runtime.option_ranges import CheckedOptions, NonNegative


@dataclasses.dataclass(frozen=True)
class LossClassWeightOptions(CheckedOptions):
  """Options of the weights of the classes in a loss by pixel.

  Attributes:
    kind: 'none' for equal weights; 'median' for (m / f) ** `exponent`, where f
      is a class's share of the labeled pixels and m the median of the shares;
      'effective' for the inverse of a class's effective number of images.
    exponent: exponent of 'median', 0 or more; at 1 all classes have the same
      total weight, up to the bounds.
    least: least weight of 'median'.
    most: largest weight of 'median'.
    beta: β of 'effective', in [0, 1): 0 gives equal weights, and near 1 they
      are inverse to the number of images.
  """

  kind: Literal['none', 'median', 'effective'] = 'none'
  exponent: NonNegative[float] = 0.5
  least: float = 0.2
  most: float = 5.0
  beta: float = 0.999

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.least <= self.most:
      raise ValueError(
        f'least and most: expected 0 < least <= most, got {self.least} and '
        f'{self.most}'
      )
    if not 0 <= self.beta < 1:
      raise ValueError(f'beta: expected [0, 1), got {self.beta}')


def compute_class_weights(
  pixels: Int[np.ndarray, 'C'],
  images: Int[np.ndarray, 'C'],
  options: LossClassWeightOptions,
) -> Float[np.ndarray, 'C']:
  """Computes the weight of each class; 1 for a class without a pixel.

  'median': Eigen & Fergus 2015 (exponent 1, no bounds, shares of the pixels of
  the images that show a class), here with shares of all labeled pixels.
  'effective': Cui et al. 2019, w ∝ (1 - β) / (1 - β ** n). Pixels of one image
  are near copies of each other, so n is the number of images that show the
  class; weights have the mean 1 over the classes that occur.

  Args:
    pixels: number of labeled pixels of each class.
    images: number of labeled images that show each class.
    options: kind and parameters.

  >>> compute_class_weights(
  ...   np.array([900, 100, 0, 400]),
  ...   np.array([9, 1, 0, 4]),
  ...   LossClassWeightOptions('median'),
  ... ).round(3)
  array([0.667, 2.   , 1.   , 1.   ])
  """
  # A class that never occurs has no loss: its weight only has to be finite.
  weights = np.ones(len(pixels))
  occurs = pixels > 0
  if options.kind == 'none' or not occurs.any():
    return weights
  if options.kind == 'median':
    # The number of all pixels cancels in the ratio of two shares.
    counts = pixels[occurs].astype(np.float64)
    ratios = (np.median(counts) / counts) ** options.exponent
    weights[occurs] = np.clip(ratios, options.least, options.most)
    return weights
  # The constant factor 1 - β cancels when the mean is set to 1. In float64:
  # 1 - β ** n loses digits where β is near 1.
  effective = 1 - options.beta ** images[occurs].astype(np.float64)
  weights[occurs] = (1 / effective) / np.mean(1 / effective)
  return weights
