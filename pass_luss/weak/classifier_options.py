"""Options of classifiers of images and of class activation maps."""

import dataclasses
from typing import Literal

from runtime.option_ranges import (
  AtLeastOne,
  CheckedOptions,
  NonNegative,
  UnitInterval,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierOptions(CheckedOptions):
  """Options of a classifier of whole images.

  Attributes:
    name: 'classifier'.
    dropout_rate: share of the channels of the deepest map that are dropped in
      training, for each image.
    fixed_norms: whether the encoder's batch norms use their running statistics
      in training, which then stay as they are.
  """

  name: Literal['classifier'] = 'classifier'
  dropout_rate: NonNegative[float] = 0.5
  fixed_norms: bool = True

  def __post_init__(self):
    super().__post_init__()
    if self.dropout_rate >= 1:
      raise ValueError(f'dropout_rate: expected < 1, got {self.dropout_rate}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeamOptions(ClassifierOptions):
  """Options of SEAM: the second image, and what is compared with it.

  Attributes:
    name: 'seam'.
    scale: factor of the sides of the second image.
    hardest: share of all values at which the two images differ most that the
      cross regularization counts.
    module_maps: names of the encoder's maps that the pixel correlation module
      reads: those before the deepest one.
  """

  name: Literal['seam'] = 'seam'
  scale: float = 0.3
  hardest: float = 0.2
  module_maps: tuple[str, str] = ('x2', 'x3')

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.scale < 1:
      raise ValueError(f'scale: expected 0 < scale < 1, got {self.scale}')
    if not 0 < self.hardest <= 1:
      raise ValueError(f'hardest: expected (0, 1], got {self.hardest}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScCamOptions(ClassifierOptions):
  """Options of SC-CAM: sub-categories, and the maps that segment.

  Attributes:
    name: 'sc_cam'.
    num_subcategories: number K of sub-categories of each class.
    sub_weight: weight of the loss of sub-categories.
    evidence: maps that segment: those of the 'classes', or at each pixel the
      largest of those of the class's 'subcategories'.
  """

  name: Literal['sc_cam'] = 'sc_cam'
  num_subcategories: AtLeastOne = 10
  sub_weight: NonNegative[float] = 5.0
  evidence: Literal['classes', 'subcategories'] = 'classes'


# Blocks that `learn` may be; the first one is that without a name.
Options = ClassifierOptions | SeamOptions | ScCamOptions


@dataclasses.dataclass(frozen=True)
class AdvCamOptions(CheckedOptions):
  """Options of AdvCAM; the defaults are those for a classifier on VOC.

  Attributes:
    num_steps: number T of steps at each scale; fewer below scale 1.
    step_size: largest change of a standardized pixel in a step.
    weight: λ, weight of the regularization.
    threshold: share of the largest value from which a region is discriminative,
      so that its changes are penalized.
    accumulate: what is added up: the 'regions' of Grad-CAM, or the 'evidence'
      of the method, as the refined maps of SEAM.
  """

  num_steps: AtLeastOne = 27
  step_size: NonNegative[float] = 0.08
  weight: NonNegative[float] = 7.0
  threshold: UnitInterval = 0.5
  accumulate: Literal['regions', 'evidence'] = 'regions'
