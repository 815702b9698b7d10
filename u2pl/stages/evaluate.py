"""Stage `evaluate`: reports the network of semi-supervised or adapted training.

Of the former the teacher is reported, of the latter the student.
"""

from collections.abc import Mapping
from typing import Any

from segcore.eval import protocols
from segcore.experiment import data as data_lib
from segcore.experiment import reporting
from segcore.train import method
from u2pl.stages import adapt, train

# Fields of a checkpoint that the reported network is read from.
_STUDENT = ('step', 'params', 'batch_stats')
_TEACHER = ('teacher_params', 'teacher_batch_stats')


class EvaluateStage(reporting.EvaluateStage):
  """Evaluates the teacher; the student after adaptation, or in the warm-up."""

  @property
  def trained_by(self) -> str:
    """Returns the name of the stage that has trained the network."""
    return 'adapt' if self._adapts else 'train'

  @property
  def checkpoint_fields(self) -> tuple[str, ...]:
    """Returns the names of the fields of a checkpoint that are read."""
    return _STUDENT if self._adapts else (*_STUDENT, *_TEACHER)

  @property
  def labeled_data(self) -> data_lib.LabeledData:
    """Returns the data of training; of the target after adaptation."""
    experiment = self.experiment
    return experiment.adapt.evaluated if self._adapts else experiment.train

  @property
  def protocol(self) -> protocols.ProtocolOptions:
    """Returns the inference protocol."""
    if not self._adapts:
      return super().protocol
    crop, _ = self._training_stage.augmentations()
    return self.options.protocol_after(crop)

  def scores(self, num_classes: int) -> method.HeadScores:
    """Builds the head of the trained network."""
    return method.HeadScores(
      self._training_stage.build_network(self.context, num_classes)
    )

  def select_variables(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the teacher's variables; else the student's (see the class)."""
    train_block = self.experiment.train
    has_teacher = (
      not self._adapts
      and train_block.learn.has_teacher
      and fields['step'] > train_block.warmup_steps
    )
    prefix = 'teacher_' if has_teacher else ''
    return {
      'step': fields['step'],
      'params': fields[f'{prefix}params'],
      'batch_stats': fields.get(f'{prefix}batch_stats', {}),
    }

  @property
  def _adapts(self) -> bool:
    return self.experiment.adapt is not None

  @property
  def _training_stage(self) -> train.TrainStage | adapt.AdaptStage:
    """Returns the stage that has trained the network."""
    stage = adapt.AdaptStage if self._adapts else train.TrainStage
    return stage(self.experiment, self.context)
