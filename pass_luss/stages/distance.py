"""Stage `distance`: distance matching by labeled regions (a protocol)."""

from collections.abc import Sequence
from typing import Any

from etils import epy

from input_pipeline import datasets
from pass_luss.protocols import protocol_options
from pass_luss.stages import base, represent
from runtime import console, files
from segcore.experiment import experiment_stage
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.benchmark import label_folders
  from pass_luss.protocols import distance as distance_lib
  from pass_luss.protocols import segment
  from segcore.eval import results as results_lib


class DistanceStage(base.InferenceStage):
  """Labels images by the nearest regions of labeled images."""

  name = 'distance'
  options: protocol_options.DistanceOptions
  is_report = True

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stage of the encoder."""
    return ('represent',)

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images of pretraining, the labeled ones and the splits."""
    block = self.options
    read = [self.image_input(), self.image_input(block.bank, 'label')]
    read += [self.image_input(split) for split in block.splits]
    if block.accuracy_from:
      read.append(self.image_input(block.accuracy_from))
    return experiment_stage.Inputs(tuple(read))

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Writes label maps of each split, and scores those with masks."""
    block = self.options
    step, matcher = self.build_matcher(workspace)
    labeled = self.open_images(block.bank, 'label', 'distance matching')
    bank = matcher.build_bank(labeled)
    console.print_line(f'{labeled.name}: {len(bank.labels)} regions')
    grid_maps = matcher.grid_label_function(bank)

    def maps(split: datasets.Split) -> Any:
      return segment.resize_label_maps(grid_maps(split))

    results, outputs = results_lib.Results(workspace, step), []
    for name in block.splits:
      split = self.open_images(name)
      folder = workspace.directory / name
      label_folders.write_missing_label_maps(
        split, maps, folder, workspace, block.short_side
      )
      outputs.append(folder)
      if 'label' in split.label_kinds:
        self._score(results, name, split, folder, matcher)
      else:
        outputs.append(
          segment.write_submission(split, folder, None, block.about)
        )
    written = results.write(
      stage='distance', protocol=block.describe(), step=step
    )
    return [*outputs, *written]

  def build_matcher(
    self, workspace: workspace_lib.Workspace
  ) -> 'tuple[int, distance_lib.DistanceMatcher]':
    """Returns the steps of the encoder's training, and the matcher."""
    context = self.exact_context
    trained_by = represent.RepresentStage(self.experiment, context)
    step, state = self.read_state(workspace.needed['represent'])
    return step, distance_lib.DistanceMatcher(
      trained_by.method(context).segmenter,
      state,
      self.options,
      context.mesh,
      context.operation.reading,
    )

  def _score(
    self,
    results: 'results_lib.Results',
    name: str,
    split: datasets.Split,
    folder: files.Path,
    matcher: 'distance_lib.DistanceMatcher',
  ) -> None:
    """Scores the label maps of a split, and its images as a whole."""
    block, more = self.options, {}
    if block.accuracy_from:
      tagged = self.open_images(block.accuracy_from)
      accuracy = matcher.image_accuracy(tagged, split)
      if accuracy is not None:
        more = {'knn_accuracy': accuracy}
    num_categories = len(split.classes) - 1
    base.add_label_map_scores(
      results, name, split, folder, num_categories, None, more
    )
    if block.rematch:
      match = segment.match_label_map_files(split, folder, num_categories)
      base.add_label_map_scores(
        results, f'{name}_rematched', split, folder, num_categories, match
      )
