"""Stage `label`: a pseudo-label map for each training image (step 2c)."""

import functools
from collections.abc import Sequence

import numpy as np
from etils import epy

from input_pipeline import datasets, splits
from pass_luss.pseudo_labels import label_options
from pass_luss.stages import base, cluster
from runtime import files
from segcore.experiment import experiment_stage
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.benchmark import label_folders
  from pass_luss.protocols import segment
  from pass_luss.pseudo_labels import cluster as cluster_lib
  from pass_luss.pseudo_labels import labeler as labeler_lib
  from pass_luss.stages import threshold
  from segcore.eval import results as results_lib
  from segcore.eval import short_side
  from segcore.experiment import evaluation


_ADVICE = (
  '; look at pictures/attention.png: saliency=rc, or a folder of maps, takes '
  'the place of attention'
)


class LabelStage(cluster.ClusteredStage):
  """Labels the images by the nearest centroids, and scores such labels."""

  name = 'label'
  options: label_options.LabelOptions

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stage that trains the network, and the clustering."""
    return (self.trained_by.name, 'cluster')

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images, and the splits whose masks are needed."""
    masked = [self.image_input(split, 'label') for split in self.masked()]
    return experiment_stage.Inputs((self.image_input(), *masked))

  def check_data(self) -> None:
    """Refuses supplied saliency maps that are not complete."""
    labeler_lib.foreground_function(self.options.saliency, self.image_ids())

  @property
  def chooses_threshold(self) -> bool:
    """Returns whether a threshold is chosen, which needs masks."""
    attended = self.experiment.cluster.kind == 'attended'
    uses_threshold = attended or bool(self.options.saliency)
    return self.options.threshold < 0 and uses_threshold

  def reported(self) -> list[str]:
    """Returns the scored splits; clusters are matched on the first one."""
    block = self.options
    # Categories are matched on `choose_on`, whatever else is reported.
    names = [block.choose_on, *block.report] if block.report else []
    return [*dict.fromkeys(names)]

  def reported_metrics(self) -> tuple[str, ...]:
    """Returns any metric of the splits that are scored."""
    return tuple(f'{split}/*' for split in self.reported())

  def masked(self) -> list[str]:
    """Returns the splits whose masks are needed."""
    chosen = [self.options.choose_on] if self.chooses_threshold else []
    return [*dict.fromkeys([*self.reported(), *chosen])]

  def image_ids(self) -> list[str]:
    """Returns the ids of all images that are labeled."""
    names = ('', *self.masked())
    return [i for name in names for i in self.open_images(name).ids()]

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Writes label maps of the images and of the reported splits."""
    block = self.options
    train = self.open_images()
    num_categories = len(train.classes) - 1
    step, labeler = self.build_labeler(workspace)
    foreground = labeler_lib.foreground_function(
      block.saliency, self.image_ids()
    )
    chosen = self.choose_threshold(
      workspace, labeler, num_categories, foreground
    )
    maps = functools.partial(
      labeler.label_maps, threshold=chosen.threshold, foreground=foreground
    )
    train_maps = functools.partial(
      maps, image_categories=self._image_categories(workspace, train)
    )
    folder = workspace.directory / 'train'
    label_folders.write_missing_label_maps(
      train, train_maps, folder, workspace, block.short_side
    )
    outputs = [folder, workspace.directory / threshold.FILE]
    results, match = results_lib.Results(workspace, step), None
    for name in self.reported():
      split = self.open_images(name, 'label', 'a report')
      labels = workspace.directory / name
      label_folders.write_missing_label_maps(
        split, maps, labels, workspace, block.short_side
      )
      if match is None:
        match = segment.match_label_map_files(split, labels, num_categories)
      base.add_label_map_scores(
        results, name, split, labels, num_categories, match
      )
      outputs.append(labels)
    rows = splits.evenly_spaced_image_indices(
      len(train), evaluation.NUM_PANEL_ROWS
    )
    panel = labeler.draw_panel(train.select(np.array(rows)), folder, foreground)
    if panel is not None:
      results.write_panel('attention', panel)
    written = results.write(
      stage='label',
      protocol=self._describe_protocol(),
      step=step,
      **chosen.summary(),
    )
    return [*outputs, *written]

  def _describe_protocol(self) -> str:
    """Describes the protocol in words for results.json."""
    kind = self.experiment.cluster.kind
    text = self.options.describe(kind)
    if kind == 'attended' and self.experiment.attend.fresh_projection:
      text += '; attention trained with a projection of its own'
    return text

  def build_labeler(
    self, workspace: workspace_lib.Workspace
  ) -> 'tuple[int, labeler_lib.Labeler]':
    """Returns the steps of the network's training, and the labeler."""
    block = self.options
    categories = labeler_lib.pseudo_category_function(
      self.build_network(),
      cluster_lib.read_centroids(workspace.needed['cluster']),
      self.experiment.cluster.kind,
    )
    step, state = self.read_state(workspace.needed[self.trained_by.name])
    return step, labeler_lib.Labeler(
      short_side.FeatureMaps(categories, block.short_side),
      state,
      self.context.mesh,
      block.batch_size,
      self.context.operation.reading,
    )

  def choose_threshold(
    self,
    workspace: workspace_lib.Workspace,
    labeler: 'labeler_lib.Labeler',
    num_categories: int,
    foreground: 'labeler_lib.ForegroundFunction | None' = None,
  ) -> 'labeler_lib.ForegroundThreshold':
    """Returns the given threshold, or the best one on `choose_on`.

    Args:
      workspace: workspace of the stage.
      labeler: labeler of images by the nearest centroids.
      num_categories: number of categories without 'other'.
      foreground: function of the foreground of an image, such as supplied
        saliency; None for attention.
    """
    block = self.options
    choose_on = None
    if self.chooses_threshold:
      choose_on = self.open_images(block.choose_on, 'label', 'a threshold')
    return threshold.choose_attention_threshold(
      workspace,
      labeler,
      num_categories,
      block.threshold,
      choose_on,
      foreground,
      advice='' if block.saliency else _ADVICE,
    )

  def _image_categories(
    self, workspace: workspace_lib.Workspace, train: datasets.Split
  ) -> dict[str, int] | None:
    """Returns the category of each image by id, where whole images have one."""
    if self.experiment.cluster.kind != 'image':
      return None
    assignments = cluster_lib.read_cluster_assignments(
      workspace.needed['cluster']
    )
    return labeler_lib.categories_by_id(train.ids(), assignments)
