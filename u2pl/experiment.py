"""The fields of a U2PL config."""

import dataclasses
from typing import Literal

from segcore.experiment import experiment_fields
from u2pl.stages.adapt import AdaptOptions
from u2pl.stages.evaluate import EvaluateOptions
from u2pl.stages.train import TrainOptions
from u2pl.stages.weak import WeakOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(experiment_fields.Experiment):
  """A whole U2PL config, with a block for one of the trainings.

  Attributes:
    train: semi-supervised training of student and teacher.
    adapt: training from one domain to another.
    weak: training on tags of images.
    evaluate: the reported evaluation.
  """

  program: Literal['u2pl.main']
  stages: tuple[str, ...] = ('train', 'evaluate')
  train: TrainOptions | None = None
  adapt: AdaptOptions | None = None
  weak: WeakOptions | None = None
  evaluate: EvaluateOptions

  def __post_init__(self):
    blocks = ('train', 'adapt', 'weak')
    given = [name for name in blocks if getattr(self, name) is not None]
    if len(given) != 1:
      raise ValueError(
        f'expected a block in one of {", ".join(blocks)}, got '
        f'{" and ".join(given) or "none"}'
      )
    if self.evaluate.cam_refinement and (
      self.weak is None or self.weak.learn.segmentation
    ):
      raise ValueError(
        'evaluate.cam_refinement: expected None unless CAMs are evaluated '
        f'(weak.learn.segmentation=False), got {self.evaluate.cam_refinement!r}'
      )
