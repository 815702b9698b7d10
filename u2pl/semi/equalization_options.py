"""Options of AEL and of U2PL on AEL (spec of the baselines §1)."""

import dataclasses
from typing import ClassVar, Literal

from runtime.option_ranges import (
  AtLeastOne,
  CheckedOptions,
  NonNegative,
  Positive,
  UnitInterval,
)
from u2pl import branch_options, ema_options, pseudo_labels
from u2pl import contrast as contrast_lib
from u2pl.semi import options as options_lib

# Labeled images of one GPU of the authors, which share draws; as many unlabeled
# ones are mixed into one.
GROUP = 2


@dataclasses.dataclass(frozen=True)
class PasteOptions(CheckedOptions):
  """Options of adaptive Copy-Paste of labeled images.

  Attributes:
    probability: probability that an image gets pixels of a second one.
    num_draws: number of draws of a class, with replacement, for the images of a
      group.
    excluded: classes that are never pasted.
    scales: least and largest factor by which second images are resized; each
      side of 1 is as probable.
  """

  probability: UnitInterval = 0.5
  num_draws: AtLeastOne = 3
  excluded: tuple[int, ...] = (0,)
  scales: tuple[float, float] = (0.1, 2.0)

  def __post_init__(self):
    super().__post_init__()
    low, high = self.scales
    if not 0 < low <= 1 <= high:
      raise ValueError(
        f'scales: expected 0 < low <= 1 <= high, got {self.scales}'
      )


@dataclasses.dataclass(frozen=True)
class ClassBoxOptions(CheckedOptions):
  """Options of adaptive CutMix of unlabeled images.

  Attributes:
    component: share of an image's area that a component of the drawn class must
      exceed for its bounding box to be pasted.
    image: least share of an image's area by which it shows a class.
  """

  component: UnitInterval = 0.005
  image: UnitInterval = 0.01


@dataclasses.dataclass(frozen=True)
class EqualizationOptions(options_lib.SystemOptions):
  """Options that AEL and U2PL on AEL share.

  Attributes:
    supervised: loss on labeled images.
    confidence: least probability of a pseudo-label that is learned.
    momentum: momentum of the confidence of the classes.
    gamma: exponent of the share of a class's pixels that are learned.
    paste: adaptive Copy-Paste.
    boxes: adaptive CutMix.
    reverse: weight of the reverse cross entropy in the consistency.
    weight: weight of the consistency, of labeled and of mixed images.
    teacher: EMA teacher.
    warmup_epochs: epochs of the supervised loss alone, at the start.
  """

  has_teacher: ClassVar[bool] = True
  mixing_group: ClassVar[int] = GROUP

  supervised: options_lib.SupervisedOptions = options_lib.SupervisedOptions()
  confidence: float = 0.0
  momentum: float = 0.999
  gamma: NonNegative[float] = 1.0
  paste: PasteOptions = PasteOptions()
  boxes: ClassBoxOptions = ClassBoxOptions()
  reverse: NonNegative[float] = 0.0
  weight: Positive[float] = 1.0
  teacher: ema_options.EmaOptions = ema_options.EmaOptions(copy_epochs=0)
  warmup_epochs: NonNegative[int] = 0

  def __post_init__(self):
    super().__post_init__()
    for name in ('confidence', 'momentum'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f'{name}: expected [0, 1), got {getattr(self, name)}')

  @property
  def paste_scales(self) -> tuple[float, float]:
    """Returns by which factors second labeled images are resized."""
    return self.paste.scales

  def check_batch_size(self, batch_size: int) -> None:
    """Checks that images come in pairs.

    Raises:
      ValueError: the batch is odd.
    """
    if batch_size % GROUP:
      raise ValueError(
        f'name: expected an even batch, whose unlabeled images are mixed in '
        f'pairs, got recipe.batch_size={batch_size}'
      )

  def check_num_classes(self, num_classes: int) -> None:
    """Checks that classes are left to paste.

    Raises:
      ValueError: all classes are excluded.
    """
    if {*range(num_classes)} <= {*self.paste.excluded}:
      raise ValueError(
        f'paste.excluded: expected fewer than all {num_classes} classes, got '
        f'{self.paste.excluded}'
      )


@dataclasses.dataclass(frozen=True)
class AelOptions(EqualizationOptions):
  """Options of AEL, adaptive equalization learning.

  Attributes:
    name: 'ael'.
  """

  name: Literal['ael'] = 'ael'


@dataclasses.dataclass(frozen=True)
class U2plAelOptions(branch_options.BranchOptions, EqualizationOptions):
  """Options of U2PL on AEL.

  Attributes:
    name: 'u2pl_ael'.
    contrast: contrastive loss between pixels.
    partition: share α_t of unreliable pixels.
    entropy_drop: mixed pixels that the consistency leaves out: the α_t percent
      of highest entropy, which are unreliable and may be negatives
      ('highest_paper'); or, as in the released code, those of lowest entropy,
      with negatives above the 80th percentile ('lowest_released').
    contrast_start: epoch from which on the contrastive loss is computed.
    prototype_momentum: m of Eq. 18 (U2PL+); 0 uses the class means of each
      step.
    denoise: prototypical denoising of the pseudo-labels (U2PL+): 'off', or with
      distances of 'raw' or of L2-normalized ('l2') representations.
  """

  needs_representations: ClassVar[bool] = True

  name: Literal['u2pl_ael'] = 'u2pl_ael'
  contrast: contrast_lib.ContrastOptions = contrast_lib.ContrastOptions()
  partition: pseudo_labels.PartitionOptions = pseudo_labels.PartitionOptions()
  entropy_drop: Literal['highest_paper', 'lowest_released'] = 'highest_paper'
  contrast_start: int = 20
  prototype_momentum: float = 0.0
  denoise: Literal['off', 'raw', 'l2'] = 'off'

  def __post_init__(self):
    super().__post_init__()
    self.check_branch('contrast')
    if self.contrast_start < 0:
      raise ValueError(
        f'contrast_start: expected 0 or more, got {self.contrast_start}'
      )
    if self.contrast.anchor_entropy != 'paper':
      raise ValueError(
        'contrast.anchor_entropy: expected paper, as entropy_drop chooses the '
        f'anchors, got {self.contrast.anchor_entropy}'
      )

  @property
  def follows_num_steps(self) -> bool:
    """Returns whether the share of dropped pixels falls until the end."""
    return self.partition.dynamic

  @property
  def full_loss_epoch(self) -> int:
    """Returns the epoch from which on the contrastive loss is computed."""
    return max(self.warmup_epochs, self.contrast_start)

  @property
  def student_heads(self) -> tuple[str, ...]:
    """Returns the heads of the student's forward passes."""
    return (*super().student_heads, 'rep')

  def check_num_classes(self, num_classes: int) -> None:
    """Checks that the contrastive loss is defined, and classes are pasted.

    Raises:
      ValueError: there are too few classes.
    """
    super().check_num_classes(num_classes)
    try:
      self.contrast.check_classes(num_classes)
    except ValueError as error:
      raise ValueError(f'contrast: {error}') from error
