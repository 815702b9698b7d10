"""Stage `evaluate`: reports a trained network.

Of semi-supervised training the teacher is reported, after adaptation the
student, in weak supervision the one network that there is.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from etils import epy

from segcore.eval import protocols
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage, reporting
from u2pl.stages import adapt, train, weak

with epy.lazy_imports():
  from segcore.train import method
  from u2pl.weak import afa

# Fields of a checkpoint that the reported network is read from.
_STUDENT = ('step', 'params', 'batch_stats')
_TEACHER = ('teacher_params', 'teacher_batch_stats')
# Trainings, one of which an experiment has.
_TRAININGS = (train.TrainStage, adapt.AdaptStage, weak.WeakStage)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(reporting.EvaluateOptions):
  """Options of the reported evaluation of U2PL's trainings.

  Attributes:
    cam_refinement: 'par' to evaluate CAMs after pixel-adaptive refinement, by
      the options of the labels made from CAMs; None to evaluate them as they
      are.
  """

  cam_refinement: Literal['par'] | None = None


class EvaluateStage(reporting.EvaluateStage):
  """Evaluates the teacher or, where there is none, the trained network."""

  options: EvaluateOptions

  @property
  def trained_by(self) -> str:
    """Returns the name of the stage that has trained the network."""
    return self._training_stage.name

  @property
  def checkpoint_fields(self) -> tuple[str, ...]:
    """Returns the names of the fields of a checkpoint that are read."""
    return (*_STUDENT, *(_TEACHER if self.experiment.train else ()))

  @property
  def labeled_data(self) -> data_lib.LabeledData:
    """Returns the data of training; else that of its validation split."""
    options = self._training_stage.options
    return options if self.experiment.train else options.evaluated

  @property
  def protocol(self) -> protocols.ProtocolOptions:
    """Returns the inference protocol."""
    if self.experiment.train:
      return super().protocol
    crop, _ = self._training_stage.augmentations()
    return self.options.protocol_after(crop)

  def scores(self, num_classes: int) -> 'method.ScoreModel':
    """Builds the model whose scores are evaluated."""
    net = self._training_stage.build_network(self.context, num_classes)
    if self.experiment.weak:
      return afa.build_scores(
        net, self.experiment.weak.learn, self.options.cam_refinement
      )
    return method.HeadScores(net)

  def select_variables(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the teacher's variables; else the student's (see the class)."""
    block = self.experiment.train
    has_teacher = (
      block is not None
      and block.learn.has_teacher
      and fields['step'] > block.warmup_steps
    )
    prefix = 'teacher_' if has_teacher else ''
    return {
      'step': fields['step'],
      'params': fields[f'{prefix}params'],
      'batch_stats': fields.get(f'{prefix}batch_stats', {}),
    }

  @property
  def _training_stage(self) -> experiment_stage.TrainingStage:
    """Returns the stage that has trained the network."""
    stage = next(
      each
      for each in _TRAININGS
      if getattr(self.experiment, each.name) is not None
    )
    return stage(self.experiment, self.context)
