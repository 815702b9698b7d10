"""The fields of a DDeP config."""

import dataclasses
from typing import Literal

from ddep.stages.classify import ClassifyOptions
from ddep.stages.denoise import DenoiseOptions
from ddep.stages.finetune import FinetuneOptions
from segcore.experiment import experiment_fields
from segcore.experiment.reporting import EvaluateOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(experiment_fields.Experiment):
  """A whole DDeP config.

  Attributes:
    classify: pretraining of the encoder; None where it comes from elsewhere.
    denoise: denoising pretraining.
    finetune: training on pixel labels.
    evaluate: the reported evaluation.
  """

  program: Literal['ddep.main']
  denoise: DenoiseOptions
  finetune: FinetuneOptions
  evaluate: EvaluateOptions
  classify: ClassifyOptions | None = None
