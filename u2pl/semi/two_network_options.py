"""Options of the systems of two networks, CPS and GCT."""

import dataclasses
from typing import Annotated, Literal

from runtime.option_ranges import (
  AtLeastOne,
  CheckedOptions,
  NonNegative,
  Positive,
  Range,
  UnitInterval,
)
from u2pl.semi import options as options_lib


def detector_layers(num_levels: int) -> list[tuple[int, int]]:
  """Returns factor of the width, and stride, of all but the last layer.

  Args:
    num_levels: number of levels of the flaw detector.
  """
  deeper = [
    (2**level, stride) for level in range(1, num_levels) for stride in (2, 1)
  ]
  return [(1, 2), *deeper]


@dataclasses.dataclass(frozen=True)
class DetectorOptions(CheckedOptions):
  """Options of the flaw detector.

  Attributes:
    width: channels of its first convolution.
    num_levels: number of levels of its convolutions, 4 in the paper; fewer for
      small images.
    learning_rate: learning rate of Adam with the decays 0.9 and 0.99.
    schedule: schedule of the rate, to 0 at the last step or constant.
    weight: weight of the detector's loss.
    after_update: whether it learns of the predictions of the networks after
      their update, for which they are applied again, or before it.
  """

  width: Annotated[int, Range(2)] = 64
  num_levels: AtLeastOne = 4
  learning_rate: Positive[float] = 1e-4
  schedule: Literal['poly', 'constant'] = 'poly'
  weight: Positive[float] = 10.0
  after_update: bool = False

  def count_cells(self, side: int) -> int:
    """Returns the cells of an axis of the detector's map, before it is resized.

    Args:
      side: pixels of the axis.

    >>> [DetectorOptions(num_levels=n).count_cells(513) for n in (4, 2)]
    [15, 127]
    """
    strides = [stride for _, stride in detector_layers(self.num_levels)]
    for stride in (*strides, 2):
      side = (side - 2) // stride + 1
    return side


@dataclasses.dataclass(frozen=True)
class CpsOptions(options_lib.SystemOptions):
  """Options of CPS, cross pseudo supervision.

  Attributes:
    name: 'cps'.
    supervised: loss on labeled images, of each network.
    weight: λ, weight of the cross pseudo supervision.
    cutmix: whether it is that of mixed unlabeled images alone, else that of
      labeled and unlabeled images as they are.
    pair: partner of an image in CutMix: another image of its group ('other'),
      as the authors meant it, or a second crop of the image itself ('self'), as
      in their code.
    num_boxes: number of boxes of an image's mask; see
      `box_masks.xor_box_masks`.
    group: number of consecutive unlabeled images that are mixed with each
      other, in pairs; divides the batch. It has an effect with CutMix and
      'other' alone.
    warmup_epochs: epochs of the supervised loss alone, at the start.
  """

  name: Literal['cps'] = 'cps'
  supervised: options_lib.SupervisedOptions = options_lib.SupervisedOptions()
  weight: Positive[float] = 1.5
  cutmix: bool = False
  pair: Literal['other', 'self'] = 'other'
  num_boxes: AtLeastOne = 3
  group: Annotated[int, Range(2)] = 2
  warmup_epochs: NonNegative[int] = 0

  @property
  def mixing_group(self) -> int:
    """Returns the number of consecutive images mixed with each other."""
    return self.group if self.cutmix and not self.needs_two_crops else 1

  @property
  def needs_two_crops(self) -> bool:
    """Returns whether batches have two crops of each unlabeled image."""
    return self.cutmix and self.pair == 'self'


@dataclasses.dataclass(frozen=True)
class GctOptions(options_lib.SystemOptions):
  """Options of GCT, guided collaborative training.

  Attributes:
    name: 'gct'.
    supervised: loss on labeled images, of each network.
    detector: flaw detector.
    threshold: ξ, least value of a handled flaw map that counts as a flaw.
    correction: weight of the flaw correction.
    consistency: weight of the dynamic consistency.
    ramp_epochs: epochs in which the latter rises; 0 for none.
    joint: whether labeled and unlabeled images are one forward pass, with
      common batch statistics, else one each.
    weight: factor of both weights.
    warmup_epochs: epochs of the supervised losses alone, at the start.
  """

  name: Literal['gct'] = 'gct'
  supervised: options_lib.SupervisedOptions = options_lib.SupervisedOptions()
  detector: DetectorOptions = DetectorOptions()
  threshold: UnitInterval = 0.6
  correction: NonNegative[float] = 1.0
  consistency: NonNegative[float] = 100.0
  ramp_epochs: NonNegative[int] = 5
  joint: bool = True
  weight: Positive[float] = 1.0
  warmup_epochs: NonNegative[int] = 0

  @property
  def follows_num_steps(self) -> bool:
    """Returns whether the detector's rate follows the training's length."""
    return self.detector.schedule != 'constant'

  def check_image_size(self, size: tuple[int, int]) -> None:
    """Raises ValueError for images of which the detector leaves one cell."""
    # A map of one value finds no flaw in any place.
    detector = self.detector
    if detector.count_cells(min(size)) < 2:
      raise ValueError(
        f'expected sides of which the flaw detector of gct leaves 2 cells, got '
        f'{size[0]}x{size[1]}: lower '
        f'learn.detector.num_levels={detector.num_levels}'
      )
