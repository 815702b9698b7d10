"""The fields of a U2PL config."""

import dataclasses
from typing import Literal

from segcore.experiment import program as program_lib
from segcore.experiment.reporting import EvaluateOptions
from u2pl.stages.train import TrainOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(program_lib.Experiment):
  """A whole U2PL config.

  Attributes:
    train: training of student and teacher.
    evaluate: the reported evaluation.
  """

  program: Literal['u2pl.main']
  stages: tuple[str, ...] = ('train', 'evaluate')
  train: TrainOptions
  evaluate: EvaluateOptions
