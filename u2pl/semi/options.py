"""Options of semi-supervised training: losses, EMA teacher, contrast."""

import dataclasses
from typing import ClassVar, Literal

from etils import epy

from runtime.option_ranges import CheckedOptions, NonNegative, Positive
from segcore.ops import class_weights as class_weights_lib
from segcore.ops import color_augment, photometric_distortion
from u2pl import branch_options, ema_options, pseudo_labels
from u2pl import contrast as contrast_lib
from u2pl import mixing as mixing_lib

with epy.lazy_imports():
  import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class SupervisedOptions(CheckedOptions):
  """Options of the loss on labeled images.

  Attributes:
    kind: cross entropy of all labeled pixels ('ce'), or of the hardest of them
      ('ohem', online hard example mining).
    threshold: probability of the true class below which a pixel is hard, for
      'ohem'.
    kept_per_image: least number of pixels that 'ohem' keeps, per image of the
      global batch.
    auxiliary: weight of the same loss on the head `aux`; 0 for no such head.
    align_corners: whether logits are upsampled to the labels with corners on
      corners, as the authors of U2PL do; else with half-pixel centers.
    class_weights: weights of the classes, from the labeled images.
  """

  kind: Literal['ce', 'ohem'] = 'ce'
  threshold: NonNegative[float] = 0.7
  kept_per_image: NonNegative[int] = 50_000
  auxiliary: NonNegative[float] = 0.0
  align_corners: bool = True
  class_weights: class_weights_lib.LossClassWeightOptions = (
    class_weights_lib.LossClassWeightOptions()
  )


@dataclasses.dataclass(frozen=True)
class ConsistencyOptions:
  """Options of the loss on unlabeled images.

  Attributes:
    filtered: whether unreliable pixels are left out and the others weighted up
      by the inverse of the share that is kept (Eqs. 12-14).
    forward: ξ₁ of Eq. 16, weight of the cross entropy.
    reverse: ξ₂ of Eq. 16, weight of the reverse cross entropy; U2PL has 0.
    denoise: prototypical denoising of the pseudo-labels (Eqs. 19-20): 'off', or
      with distances of 'raw' or of L2-normalized ('l2') representations.
    mixing: strong augmentation.
    weight: weight of this loss; that of the supervised loss is 1.
    confidence: least probability that the teacher gives a pseudo-label on the
      weak view, before denoising, for the student to learn it. Pixels below it
      add 0 to the mean of the loss (Sohn et al. 2020, FixMatch, Eq. 4); with
      `filtered` the weight stays that of the share of reliable pixels.
    color: color augmentation of the student's strong view, after mixing, with
      draws of its own for each image. The teacher sees the images without it.
  """

  filtered: bool = True
  forward: float = 1.0
  reverse: float = 0.0
  denoise: Literal['off', 'raw', 'l2'] = 'off'
  mixing: mixing_lib.MixingOptions = mixing_lib.MixingOptions()
  weight: float = 1.0
  confidence: float = 0.0
  color: color_augment.ColorOptions = color_augment.ColorOptions()

  def __post_init__(self):
    if not 0 <= self.confidence < 1:
      raise ValueError(f'confidence: expected [0, 1), got {self.confidence}')
    if self.weight <= 0:
      raise ValueError(f'weight: expected more than 0, got {self.weight}')
    if min(self.forward, self.reverse) < 0 or not self.forward + self.reverse:
      raise ValueError(
        'forward and reverse: expected 0 or more, and one of them above 0, got '
        f'forward={self.forward}, reverse={self.reverse}'
      )


class SystemOptions(CheckedOptions):
  """Base class of the options of a system: what a training stage reads of them.

  A subclass is a dataclass with the two fields below. All but `LearnOptions`
  have a field `name`, a Literal, by which a config selects them.

  Attributes:
    group_path: field with the number of images of a group, for messages.
    reads_unlabeled: whether batches have a stream of unlabeled images.
    has_teacher: whether the state has an EMA teacher, which is reported.
    mixing_group: number of consecutive images mixed with each other.
    paste_scales: factors by which second labeled images are resized; None
      without them, and with unlabeled images that are not paired.
    needs_representations: whether the network needs a head `rep`.
    follows_num_steps: whether the losses depend on the training's length.
    needs_two_crops: whether batches have two crops of each unlabeled image.
    includes_labeled: whether the labeled images are among the unlabeled ones,
      too; a field of some systems.
    supervised: loss on labeled images.
    warmup_epochs: epochs of the supervised loss alone, at the start.
  """

  # What a system with other values overrides, be it by a property.
  group_path: ClassVar[str] = 'group'
  reads_unlabeled: ClassVar[bool] = True
  has_teacher: ClassVar[bool] = False
  mixing_group: ClassVar[int] = 1
  paste_scales: ClassVar[tuple[float, float] | None] = None
  needs_representations: ClassVar[bool] = False
  follows_num_steps: ClassVar[bool] = False
  needs_two_crops: ClassVar[bool] = False
  includes_labeled: ClassVar[bool] = False

  supervised: SupervisedOptions
  warmup_epochs: int

  @property
  def full_loss_epoch(self) -> int:
    """Returns the epoch from which on all terms of the loss are computed."""
    return self.warmup_epochs

  @property
  def student_heads(self) -> tuple[str, ...]:
    """Returns the heads of the student's forward pass."""
    return ('logits', 'aux') if self.supervised.auxiliary else ('logits',)

  def further_heads(
    self, num_classes: int, logits: 'nn.Module'
  ) -> 'dict[str, nn.Module]':
    """Builds the heads that no other system has, by name.

    Args:
      num_classes: number of classes.
      logits: the head `logits`.
    """
    del num_classes, logits
    return {}

  def check_head(self, kind: str) -> None:
    """Checks that the losses can use a kind of the head `logits`.

    Raises:
      ValueError: they cannot.
    """
    del kind

  def check_image_size(self, size: tuple[int, int]) -> None:
    """Checks that images of a size are large enough.

    Raises:
      ValueError: they are too small.
    """
    del size

  def check_batch_size(self, batch_size: int) -> None:
    """Checks that whole groups of unlabeled images are mixed.

    Raises:
      ValueError: groups do not divide the batch.
    """
    if batch_size % self.mixing_group:
      raise ValueError(
        f'{self.group_path}: expected a divisor of the batch of {batch_size}, '
        f'got {self.mixing_group}'
      )

  def check_num_classes(self, num_classes: int) -> None:
    """Checks that the losses are defined for a number of classes.

    Raises:
      ValueError: there are too few classes.
    """
    del num_classes


@dataclasses.dataclass(frozen=True)
class LearnOptions(branch_options.BranchOptions, SystemOptions):
  """Options of Mean Teacher, U2PL and U2PL+.

  Attributes:
    supervised: loss on labeled images.
    consistency: loss on unlabeled images; None trains on labels alone.
    contrast: contrastive loss between pixels; None for none. Requires
      `consistency`.
    partition: share of unreliable pixels.
    prototype_momentum: m of Eq. 18 (U2PL+); 0 uses the class means of each
      step, as U2PL does.
    teacher: EMA teacher.
    warmup_epochs: epochs of the supervised loss alone, at the start.
    distortion: photometric distortion of labeled images; None for none.
      Requires training on labels alone.
  """

  group_path: ClassVar[str] = 'consistency.mixing.group'

  supervised: SupervisedOptions = SupervisedOptions()
  consistency: ConsistencyOptions | None = ConsistencyOptions()
  contrast: contrast_lib.ContrastOptions | None = contrast_lib.ContrastOptions()
  partition: pseudo_labels.PartitionOptions = pseudo_labels.PartitionOptions()
  prototype_momentum: float = 0.0
  teacher: ema_options.EmaOptions = ema_options.EmaOptions()
  warmup_epochs: NonNegative[int] = 1
  distortion: photometric_distortion.DistortionOptions | None = None

  def __post_init__(self):
    super().__post_init__()
    self.check_branch('consistency')
    if self.distortion and self.consistency:
      raise ValueError(
        'distortion: expected None with consistency, whose strong view has '
        'colors of its own'
      )

  @property
  def reads_unlabeled(self) -> bool:
    """Returns whether batches have a stream of unlabeled images."""
    return self.consistency is not None

  @property
  def has_teacher(self) -> bool:
    """Returns whether the state has an EMA teacher, which is reported."""
    return self.consistency is not None

  @property
  def mixing_group(self) -> int:
    """Returns the number of consecutive images mixed with each other."""
    return self.consistency.mixing.group if self.consistency else 1

  @property
  def follows_num_steps(self) -> bool:
    """Returns whether the share of unreliable pixels falls until the end."""
    return self.consistency is not None and self.partition.dynamic

  @property
  def needs_representations(self) -> bool:
    """Returns whether the network needs a head `rep`."""
    denoises = self.consistency and self.consistency.denoise != 'off'
    return bool(self.contrast or denoises)

  @property
  def reads_strong_view(self) -> bool:
    """Returns whether the teacher has to see the strong view in training mode.

    Its entropy filters pixels, its representations are contrasted, or its batch
    statistics are those of this pass.
    """
    filters = self.consistency is not None and self.consistency.filtered
    own_statistics = self.teacher.statistics == 'own'
    return filters or self.needs_representations or own_statistics

  @property
  def student_heads(self) -> tuple[str, ...]:
    """Returns the heads of the student's forward pass."""
    heads = ('logits', 'rep') if self.contrast else ('logits',)
    return (*heads, 'aux') if self.supervised.auxiliary else heads

  @property
  def teacher_heads(self) -> tuple[str, ...]:
    """Returns the heads of the teacher's forward pass in training mode."""
    return ('logits', 'rep') if self.needs_representations else ('logits',)

  def check_num_classes(self, num_classes: int) -> None:
    """Checks that the contrastive loss is defined.

    Raises:
      ValueError: there are too few classes.
    """
    if self.contrast:
      try:
        self.contrast.check_classes(num_classes)
      except ValueError as error:
        raise ValueError(f'contrast: {error}') from error


@dataclasses.dataclass(frozen=True)
class MseTeacherOptions(SystemOptions):
  """Options of the mean teacher of squared errors.

  Attributes:
    name: 'mt_mse'.
    supervised: loss on labeled images.
    consistency: weight of the squared error.
    weight: factor of this weight.
    teacher: EMA teacher, which is not evaluated.
    warmup_epochs: epochs of the supervised loss alone, at the start.
  """

  name: Literal['mt_mse'] = 'mt_mse'
  supervised: SupervisedOptions = SupervisedOptions()
  consistency: Positive[float] = 100.0
  weight: Positive[float] = 1.0
  teacher: ema_options.ConstantEmaOptions = ema_options.ConstantEmaOptions()
  warmup_epochs: NonNegative[int] = 0
