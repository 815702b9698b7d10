"""Base class of the stages that train."""

from collections.abc import Sequence

from input_pipeline import datasets
from runtime import files
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib


def check_first_step(
  name: str, step: int, recipe: update_lib.RecipeOptions
) -> None:
  """Checks that losses begin before the training ends.

  Args:
    name: field of `learn` with their first step.
    step: value of this field.
    recipe: number of steps.

  Raises:
    ValueError: they do not.
  """
  if step >= recipe.num_steps:
    raise ValueError(
      f'learn.{name}: expected fewer than the {recipe.num_steps} steps in all, '
      f'got {step}'
    )


class ClassStage(experiment_stage.TrainingStage):
  """A stage that trains a network with a score for each class and pixel."""

  val_metric = 'miou'

  def check(self) -> None:
    """Checks batch, network and, where it is known, the number of classes."""
    super().check()
    num_classes = datasets.known_dataset_num_classes(self.options.data)
    if num_classes is not None:
      self.check_num_classes(num_classes)

  def check_num_classes(self, num_classes: int) -> None:
    """Checks that all losses are defined for a number of classes.

    Raises:
      UserError: one is not.
    """
    raise NotImplementedError

  def labeled_inputs(
    self, further: data_lib.Images | None
  ) -> experiment_stage.Inputs:
    """Returns the labeled split, further images, and the initial parameters.

    Args:
      further: data set and split of images without labels; None for none.
    """
    block = self.options
    read = [experiment_stage.SplitInput(block.data, block.split, 'label')]
    if further is not None:
      read.append(experiment_stage.SplitInput(further.data, further.split))
    return experiment_stage.Inputs(tuple(read), block.start)

  def write_outputs(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> Sequence[files.Path]:
    """Writes names and colors of the classes, those of the first stream."""
    first = next(iter(streams.values()))
    return data_lib.write_stage_classes(workspace, first.split)
