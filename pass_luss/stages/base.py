"""Parts that the stages of PASS share."""

from collections.abc import Iterable, Mapping
from typing import Any

from etils import epy

from input_pipeline import datasets
from runtime import files, options
from segcore import types
from segcore.experiment import context as context_lib
from segcore.experiment import experiment_stage

with epy.lazy_imports():
  from pass_luss.benchmark import matching
  from pass_luss.protocols import segment
  from segcore.cost import topology as topology_lib
  from segcore.distributed import sharding
  from segcore.eval import results as results_lib
  from segcore.train import train_state
  from segcore.weights import checkpoint_reader


class PassStage(experiment_stage.ExperimentStage):
  """A stage of PASS: most work on the images that are clustered."""

  @property
  def exact_context(self) -> context_lib.Context:
    """Returns the context with float32 activations, for inference."""
    return self.context.with_network(dtype='float32')

  def open_images(
    self,
    split: str = '',
    kind: str = '',
    purpose: str = '',
    data: datasets.DataOptions | None = None,
  ) -> datasets.Split:
    """Opens a split of the images.

    Args:
      split: name of the split; '' for the images that are clustered.
      kind: kind of label it must have: 'label', 'tags' or '' for none.
      purpose: description of the work that needs labels, for the message.
      data: another data set than that of the images, if given.
    """
    images = self.experiment.images
    return self.context.open(
      data or images.data, split or images.split, kind, purpose
    )

  def image_input(
    self, split: str = '', kind: str = ''
  ) -> experiment_stage.SplitInput:
    """Returns a split of the images as an input; arguments as `open_images`."""
    images = self.experiment.images
    return experiment_stage.SplitInput(images.data, split or images.split, kind)

  def read_state(
    self, folder: files.Path
  ) -> 'tuple[int, train_state.TrainState]':
    """Reads step and variables of the last checkpoint of a stage folder."""
    fields = checkpoint_reader.read_checkpoint_fields(
      folder / 'checkpoints', ('step', 'params', 'batch_stats')
    )
    state = train_state.inference_train_state(fields, self.context.mesh)
    return int(fields['step']), state


class ViewsStage(PassStage, experiment_stage.TrainingStage):
  """A stage that trains on views; its block has `large` and `crop`."""

  @property
  def size(self) -> tuple[int, int]:
    """Returns height and width of a large view."""
    return self.options.large.size

  @property
  def size_path(self) -> str:
    """Returns the path of the field that sets the size."""
    return f'{self.path}.large.size'

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of views."""
    del num_classes
    return self.options.crop.spec(self.options.recipe.batch_size)


class ImagesStage(PassStage, experiment_stage.TrainingStage):
  """A stage that trains on the images that are clustered, without labels."""

  @property
  def num_classes_from(self) -> datasets.DataOptions:
    """Returns the data set of the images."""
    return self.experiment.images.data

  def settings(self) -> Any:
    """Returns network, block and images."""
    return {**super().settings(), 'images': self.experiment.images}

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images, and the source of the initial parameters."""
    return experiment_stage.Inputs((self.image_input(),), self.options.start)


class InferenceStage(PassStage):
  """A stage that applies a trained network; its block has a `batch_size`."""

  def settings(self) -> Any:
    """Returns block and images, without fields that change no result."""
    # `about` is the text of a submission.
    block = options.omit_option_fields(self.options, 'batch_size', 'about')
    return {self.name: block, 'images': self.experiment.images}

  def check(self) -> None:
    """Checks that batches divide among the devices."""
    sharding.check_batch_divides_devices(
      self.options.batch_size, self.context.mesh, f'{self.path}.batch_size'
    )

  def dry_run(
    self, compiles: bool, topology: 'topology_lib.Topology | None'
  ) -> Iterable[str]:
    """Reports that there is no estimate: the images decide the cost."""
    del compiles, topology
    return ('no cost is estimated: it depends on the images',)


def add_label_map_scores(
  results: 'results_lib.Results',
  name: str,
  split: datasets.Split,
  labels: files.Path,
  num_categories: int,
  match: 'matching.Match | None',
  more: Mapping[str, float] | None = None,
) -> None:
  """Scores the label maps of a split, logs the scores and draws a panel.

  Args:
    results: the stage's results; the scores are added to them.
    name: name of the result.
    split: the images with their masks.
    labels: folder of the label maps.
    num_categories: number of categories without the background.
    match: class of each category; None where categories are classes.
    more: further scores, by name.
  """
  values = {
    **segment.score_label_map_files(split, labels, num_categories, match),
    **(more or {}),
  }
  segment.log_label_map_scores(values, split, f'{name} ({split.name})')
  panel = segment.draw_label_map_panel(split, labels, num_categories, match)
  results.add(name, values, split, panel)
