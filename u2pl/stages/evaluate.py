"""Stage `evaluate`: reports the teacher, or a network without one."""

from collections.abc import Mapping
from typing import Any

from segcore.experiment import reporting
from segcore.train import method
from u2pl.stages import train


class EvaluateStage(reporting.EvaluateStage):
  """Evaluates the teacher; the network itself where there is none yet."""

  trained_by = 'train'
  checkpoint_fields = (
    'step',
    'params',
    'batch_stats',
    'teacher_params',
    'teacher_batch_stats',
  )

  @property
  def labeled_data(self) -> train.TrainOptions:
    """Returns the data of training."""
    return self.experiment.train

  def scores(self, num_classes: int) -> method.HeadScores:
    """Builds the head of the trained network."""
    trained_by = train.TrainStage(self.experiment, self.context)
    return method.HeadScores(
      trained_by.build_network(self.context, num_classes)
    )

  def select_variables(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the teacher's variables, or the student's during the warm-up."""
    block = self.labeled_data
    has_teacher = (
      block.learn.has_teacher and fields['step'] > block.warmup_steps
    )
    prefix = 'teacher_' if has_teacher else ''
    return {
      'step': fields['step'],
      'params': fields[f'{prefix}params'],
      'batch_stats': fields.get(f'{prefix}batch_stats', {}),
    }
