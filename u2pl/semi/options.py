"""Options of semi-supervised training: losses, EMA teacher, contrast."""

import dataclasses
from typing import Literal

from u2pl import contrast as contrast_lib
from u2pl import ema, pseudo_labels
from u2pl import mixing as mixing_lib


@dataclasses.dataclass(frozen=True)
class SupervisedOptions:
  """The loss of labeled images.

  Attributes:
    kind: mean cross entropy, or that of the hardest pixels ('ohem').
    threshold: of 'ohem': pixels whose class is less probable are hard.
    kept_per_image: of 'ohem': at least so many pixels count, times the batch.
    auxiliary: weight of the same loss at a head `aux`; 0 for none.
  """

  kind: Literal['ce', 'ohem'] = 'ce'
  threshold: float = 0.7
  kept_per_image: int = 50_000
  auxiliary: float = 0.0

  def __post_init__(self):
    for name in ('threshold', 'kept_per_image', 'auxiliary'):
      if getattr(self, name) < 0:
        raise ValueError(
          f'{name}: found {getattr(self, name)}, expected 0 or more'
        )


@dataclasses.dataclass(frozen=True)
class ConsistencyOptions:
  """The loss of unlabeled images against the teacher's labels.

  Attributes:
    filtered: whether unreliable pixels are left out, and the rest weighs the
      more (Eqs. 12-14).
    forward: ξ₁, of the cross entropy.
    reverse: ξ₂, of the reverse cross entropy; above 0 it is U2PL+'s.
    denoise: whether labels are mended by the prototypes: 'off', or by 'raw' or
      'l2'-normalized distances (Eqs. 19-20).
    mixing: strong augmentation.
    weight: of all of it, against the labeled images' 1.
  """

  filtered: bool = True
  forward: float = 1.0
  reverse: float = 0.0
  denoise: Literal['off', 'raw', 'l2'] = 'off'
  mixing: mixing_lib.MixingOptions = mixing_lib.MixingOptions()
  weight: float = 1.0

  def __post_init__(self):
    if self.weight <= 0:
      raise ValueError(f'weight: found {self.weight}, expected more than 0')
    if min(self.forward, self.reverse) < 0 or not self.forward + self.reverse:
      raise ValueError(
        f'forward={self.forward}, reverse={self.reverse}: expected 0 or more, '
        'and one of them above 0'
      )


@dataclasses.dataclass(frozen=True)
class LearnOptions:
  """What is learned from, beside the labeled images.

  Attributes:
    supervised: loss of labeled images.
    consistency: loss of unlabeled ones; None learns from labels alone.
    contrast: between pixels; None for none. Needs consistency.
    partition: share of unreliable pixels.
    prototype_momentum: of U2PL+'s prototypes (Eq. 18); 0 takes each step's
      means, as U2PL does.
    teacher: how it follows the student.
    warmup_epochs: of labeled images alone.
  """

  supervised: SupervisedOptions = SupervisedOptions()
  consistency: ConsistencyOptions | None = ConsistencyOptions()
  contrast: contrast_lib.ContrastOptions | None = contrast_lib.ContrastOptions()
  partition: pseudo_labels.Partition = pseudo_labels.Partition()
  prototype_momentum: float = 0.0
  teacher: ema.EmaOptions = ema.EmaOptions()
  warmup_epochs: int = 1

  def __post_init__(self):
    if self.contrast and not self.consistency:
      raise ValueError('contrast: found without consistency, expected both')
    if not 0 <= self.prototype_momentum < 1:
      raise ValueError(
        f'prototype_momentum: found {self.prototype_momentum}, expected '
        '0 <= momentum < 1'
      )
    if self.warmup_epochs < 0:
      raise ValueError(
        f'warmup_epochs: found {self.warmup_epochs}, expected 0 or more'
      )

  @property
  def needs_representations(self) -> bool:
    """Whether the network needs a head `rep`."""
    mended = self.consistency and self.consistency.denoise != 'off'
    return bool(self.contrast or mended)
