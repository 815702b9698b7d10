"""Fully connected conditional random field, by the package pydensecrf2.

  refined = refine_by_crf(probs, image)      # [H, W, C]; host, one image

Source: Krähenbühl & Koltun 2011; constants as in AFA (Ru et al. 2022).
"""

import dataclasses
import importlib.util

import numpy as np
from etils import epy
from jaxtyping import Float, UInt8

from runtime import errors

with epy.lazy_imports():
  from pydensecrf import densecrf  # An extra: most installations lack it.

# Module of the package, which is compiled when it is installed.
_MODULE = 'pydensecrf'
# Least probability, so that no energy is infinite.
_LEAST_PROBABILITY = 1e-5


@dataclasses.dataclass(frozen=True)
class CrfOptions:
  """Options of the field: two Gaussian kernels, and mean-field iterations.

  Attributes:
    num_iterations: number of mean-field updates.
    smoothness_distance: standard deviation of the kernel of positions, in
      pixels.
    smoothness_weight: its weight.
    appearance_distance: standard deviation of positions in the kernel of
      positions and colors, in pixels.
    appearance_color: standard deviation of colors in it, of 0 to 255.
    appearance_weight: its weight.
  """

  num_iterations: int = 10
  smoothness_distance: float = 3.0
  smoothness_weight: float = 3.0
  appearance_distance: float = 64.0
  appearance_color: float = 5.0
  appearance_weight: float = 4.0

  def __post_init__(self):
    if self.num_iterations < 1:
      raise ValueError(
        f'num_iterations: expected >= 1, got {self.num_iterations}'
      )
    for field in dataclasses.fields(self)[1:]:
      value = getattr(self, field.name)
      if value <= 0:
        raise ValueError(f'{field.name}: expected above 0, got {value}')


def require_crf_package(path: str) -> None:
  """Checks that the package is installed.

  Args:
    path: path of the option that asks for it, for the message.

  Raises:
    UserError: the package is missing.
  """
  if importlib.util.find_spec(_MODULE) is None:
    raise errors.UserError(
      f'{path}: expected the package pydensecrf2, which computes dense CRFs, '
      'got none: pip install pydensecrf2==1.1 (the extra `crf` of this '
      'project; it needs a C++ compiler), or leave the option out'
    )


def refine_by_crf(
  probs: Float[np.ndarray, 'H W C'],
  image: UInt8[np.ndarray, 'H W 3'],
  options: CrfOptions = CrfOptions(),
) -> Float[np.ndarray, 'H W C']:
  """Computes the mean field of the classes of each pixel.

  Unary energies are -log of the probabilities; the pairwise ones favor equal
  classes of pixels that are near, and of near pixels of similar color. Both
  kernels are normalized symmetrically.

  Args:
    probs: probability of each class.
    image: the image, RGB.
    options: kernels and number of iterations.

  Raises:
    UserError: the package is missing.
  """
  require_crf_package('crf')
  height, width, num_classes = probs.shape
  energies = -np.log(np.clip(probs, _LEAST_PROBABILITY, 1.0))
  field = densecrf.DenseCRF2D(width, height, num_classes)
  field.setUnaryEnergy(
    np.ascontiguousarray(energies.reshape(-1, num_classes).T, dtype=np.float32)
  )
  field.addPairwiseGaussian(
    sxy=options.smoothness_distance, compat=options.smoothness_weight
  )
  field.addPairwiseBilateral(
    sxy=options.appearance_distance,
    srgb=options.appearance_color,
    rgbim=np.ascontiguousarray(image),
    compat=options.appearance_weight,
  )
  refined = np.array(field.inference(options.num_iterations), np.float32)
  return refined.T.reshape(height, width, num_classes)
