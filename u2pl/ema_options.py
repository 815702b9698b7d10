"""Options of the EMA teacher."""

import dataclasses
from typing import ClassVar, Literal


@dataclasses.dataclass(frozen=True)
class EmaOptions:
  """Options of the EMA teacher.

  Attributes:
    decay: largest decay of the moving average.
    copy_epochs: epochs after the warm-up in which the teacher is a copy of the
      student.
    statistics: source of the teacher's batch statistics: 'own' (its own forward
      passes in training mode), or the student's, as an 'ema' or a 'copy'.
  """

  # Whether the decay rises as 1 - 1/(k + 1), k steps after the warm-up, up to
  # the largest one; else it is that from the first step on.
  rises: ClassVar[bool] = True

  decay: float = 0.99
  copy_epochs: int = 1
  statistics: Literal['own', 'ema', 'copy'] = 'own'

  def __post_init__(self):
    if not 0 <= self.decay < 1:
      raise ValueError(f'decay: expected 0 <= decay < 1, got {self.decay}')
    if self.copy_epochs < 0:
      raise ValueError(
        f'copy_epochs: expected 0 or more, got {self.copy_epochs}'
      )


@dataclasses.dataclass(frozen=True)
class ConstantEmaOptions(EmaOptions):
  """Options of an EMA teacher of constant decay."""

  rises: ClassVar[bool] = False

  copy_epochs: int = 0
