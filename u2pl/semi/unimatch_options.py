"""Options of UniMatch and its V2, and of their strong views."""

import dataclasses
from typing import ClassVar, Literal

from runtime.option_ranges import (
  AtLeastOne,
  CheckedOptions,
  NonNegative,
  Positive,
)
from segcore.ops import color_augment
from u2pl import box_masks, ema_options
from u2pl.semi import options as options_lib
from u2pl.semi import pseudoseg_options

# Probabilities and strengths of both versions.
COLORS = dataclasses.replace(
  pseudoseg_options.COLORS, jitter=0.8, gray=0.2, blur=0.5
)


@dataclasses.dataclass(frozen=True)
class ViewOptions(CheckedOptions):
  """Options of the strong views of unlabeled images.

  Attributes:
    color: color augmentation; each view of an image has its own draws.
    boxes: boxes whose pixels come from a partner; each view has its own.
    group: number of consecutive images of which the one at the mirrored place
      is the partner; divides the batch.
  """

  color: color_augment.ColorOptions = COLORS
  boxes: box_masks.BoxOptions = box_masks.BoxOptions()
  group: AtLeastOne = 2


@dataclasses.dataclass(frozen=True)
class StrongViewSystemOptions(options_lib.SystemOptions):
  """Options that both versions have.

  Attributes:
    supervised: loss on labeled images.
    confidence: τ, least probability of a pseudo-label that is learned.
    views: strong views.
    weight: factor of the losses on unlabeled images.
    warmup_epochs: epochs of the supervised loss alone, at the start.
  """

  group_path: ClassVar[str] = 'views.group'

  supervised: options_lib.SupervisedOptions = options_lib.SupervisedOptions()
  confidence: float = 0.95
  views: ViewOptions = ViewOptions()
  weight: Positive[float] = 1.0
  warmup_epochs: NonNegative[int] = 0

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.confidence < 1:
      raise ValueError(f'confidence: expected [0, 1), got {self.confidence}')

  @property
  def mixing_group(self) -> int:
    """Returns the number of consecutive images mixed with each other."""
    return self.views.group


@dataclasses.dataclass(frozen=True)
class UniMatchOptions(StrongViewSystemOptions):
  """Options of UniMatch: two strong views and perturbed features.

  Attributes:
    name: 'unimatch'.
    strong_weight: weight of the loss of each of the two strong views.
    feature_weight: weight of the loss of the perturbed features.
    dropout_rate: share of the channels of the encoder's maps that are dropped.
  """

  name: Literal['unimatch'] = 'unimatch'
  strong_weight: NonNegative[float] = 0.25
  feature_weight: NonNegative[float] = 0.5
  dropout_rate: float = 0.5

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(
        f'dropout_rate: expected [0, 1), got {self.dropout_rate}'
      )


@dataclasses.dataclass(frozen=True)
class UniMatchV2Options(StrongViewSystemOptions):
  """Options of UniMatch V2.

  Attributes:
    name: 'unimatch_v2'.
    teacher: EMA teacher; its batch statistics are averaged, too.
  """

  has_teacher: ClassVar[bool] = True

  name: Literal['unimatch_v2'] = 'unimatch_v2'
  teacher: ema_options.EmaOptions = ema_options.EmaOptions(
    decay=0.996, copy_epochs=0, statistics='ema'
  )

  def __post_init__(self):
    super().__post_init__()
    if self.teacher.statistics == 'own':
      raise ValueError(
        "teacher.statistics: expected 'ema' or 'copy', as the teacher has no "
        "pass in training mode, got 'own'"
      )
