"""The fields of a U2PL config."""

import dataclasses
from typing import Literal

from segcore.experiment import program as program_lib
from segcore.experiment.reporting import EvaluateOptions
from u2pl.stages.adapt import AdaptOptions
from u2pl.stages.train import TrainOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(program_lib.Experiment):
  """A whole U2PL config, with a block for one of the two trainings.

  Attributes:
    train: semi-supervised training of student and teacher.
    adapt: training from one domain to another.
    evaluate: the reported evaluation.
  """

  program: Literal['u2pl.main']
  stages: tuple[str, ...] = ('train', 'evaluate')
  train: TrainOptions | None = None
  adapt: AdaptOptions | None = None
  evaluate: EvaluateOptions

  def __post_init__(self):
    if (self.train is None) == (self.adapt is None):
      given = 'none' if self.train is None else 'both'
      raise ValueError(
        f'expected a block in either train or adapt, got {given}'
      )
