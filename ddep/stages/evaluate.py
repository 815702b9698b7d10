"""Stage `evaluate`: reports the fine-tuned network."""

from ddep.stages import finetune
from segcore.experiment import reporting


class EvaluateStage(reporting.EvaluateStage):
  """Evaluates the network that stage `finetune` has trained."""

  trained_by = 'finetune'

  @property
  def labeled_data(self) -> finetune.FinetuneOptions:
    """Returns the data of fine-tuning."""
    return self.experiment.finetune

  def scores(self, num_classes: int) -> finetune.Finetune:
    """Builds the fine-tuned network."""
    trained_by = finetune.FinetuneStage(self.experiment, self.context)
    return trained_by.method(self.context, num_classes)
