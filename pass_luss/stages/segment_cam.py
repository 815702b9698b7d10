"""Stages `segment_cam` and `label_cam`: label maps of class activation maps."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epy

from input_pipeline import datasets
from pass_luss.stages import base, classify, segment
from pass_luss.weak import classifier_options
from runtime import files, json_files
from runtime.option_ranges import AtLeastOne
from segcore.experiment import experiment_stage
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.benchmark import label_folders
  from pass_luss.pseudo_labels import labeler as labeler_lib
  from pass_luss.stages import threshold
  from pass_luss.weak import image_classifier, image_tags, multi_scale
  from segcore.eval import short_side


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentCamOptions(segment.SegmentOptions):
  """Options of label maps by class activation maps of several scales.

  Attributes:
    inference: 'cam'.
    trained_by: stage that trains the classifier.
    scales: factors of the sides of the images, in order.
    size_multiple: number of pixels to whose multiples the sides of images are
      rounded, so that images share programs.
    climbing: options of AdvCAM; None for none.
  """

  inference: Literal['cam'] = 'cam'
  trained_by: Literal['classify', 'classify3'] = 'classify'
  scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
  size_multiple: AtLeastOne = 32
  climbing: classifier_options.AdvCamOptions | None = None

  def __post_init__(self):
    super().__post_init__()
    if not self.scales or min(self.scales) <= 0:
      raise ValueError(f'scales: expected factors > 0, got {self.scales}')

  def describe(self, by_names: bool) -> str:
    """Describes the protocol in words, for results.json.

    Args:
      by_names: whether categories are matched by name, not by overlap.
    """
    scales = ', '.join(f'{scale:g}' for scale in self.scales)
    how = f', {self.climbing.num_steps} steps' if self.climbing else ''
    return (
      f'{super().describe(by_names)}; scales {scales} and flips{how}; class of '
      'the image predicted'
    )


class SegmentCamStage(classify.ImageLabelStage, segment.LussSegmentationStage):
  """Segments images by the activation of their predicted class."""

  name = 'segment_cam'
  options: SegmentCamOptions

  @property
  def trainer(self) -> type[classify.ClassifyStage]:
    """Returns the kind of stage that the block names."""
    return classify.STAGES[self.options.trained_by]

  def build_label_maps(
    self, workspace: workspace_lib.Workspace, model: segment.TrainedModel
  ) -> 'tuple[label_folders.LabelMapFunction, labeler_lib.ForegroundThreshold]':
    """Builds the function of label maps, and the threshold."""
    block = self.options
    labeler = self.build_labeler(
      self.multi_scale_cams(model.method).predicted, model.state
    )
    choose_on = None
    if self.chooses_threshold:
      choose_on = self.open_images(
        block.match_on, 'label', 'a threshold', self.data
      )
    chosen = threshold.choose_attention_threshold(
      workspace,
      labeler,
      model.num_categories,
      block.threshold,
      choose_on,
      by_name=self.has_class_names,
    )
    return lambda split: labeler.label_maps(split, chosen.threshold), chosen

  def multi_scale_cams(
    self, method: 'image_classifier.ImageClassifier'
  ) -> 'multi_scale.MultiScaleCams':
    """Builds the multi-scale maps of a trained classifier."""
    block = self.options
    return multi_scale.MultiScaleCams(method, block.scales, block.climbing)

  def build_labeler(
    self, function: 'short_side.ForwardFn', state: Any
  ) -> 'labeler_lib.Labeler':
    """Builds the labeler of a function of category and activation.

    Args:
      function: function of state and images.
      state: the state that it reads.
    """
    block = self.options
    return labeler_lib.Labeler(
      short_side.FeatureMaps(
        function, block.short_side, input_multiple=block.size_multiple
      ),
      state,
      self.context.mesh,
      block.batch_size,
      self.context.operation.reading,
    )


@dataclasses.dataclass(frozen=True)
class LabelCamOptions:
  """Options of the label maps of training images.

  All that decides them is that of `segment_cam`, and its threshold.

  Attributes:
    batch_size: global number of images of a batch; changes no result.
  """

  batch_size: int = 16


class LabelCamStage(classify.ImageLabelStage, base.InferenceStage):
  """Labels the training images by the activation of their given class."""

  name = 'label_cam'
  options: LabelCamOptions

  @property
  def segmented_by(self) -> SegmentCamStage:
    """Returns the stage whose maps and threshold are used."""
    return SegmentCamStage(self.experiment, self.context)

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stages of the classifier, its threshold and the labels."""
    stage = self.segmented_by
    return (stage.trained_by.name, stage.name, *self.label_needs)

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images, with tags."""
    return experiment_stage.Inputs((self.image_input('', self.label_kind),))

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Writes a label map of each image."""
    stage = self.segmented_by
    split = self.open_tagged(workspace)
    category_of = image_tags.read_single_tags(split)
    trainer = stage.trained_by
    folder = workspace.needed[trainer.name]
    method = trainer.method(self.exact_context, len(split.classes))
    labeler = stage.build_labeler(
      stage.multi_scale_cams(method).given, self.read_state(folder)[1]
    )
    chosen = json_files.read_json(
      workspace.needed[stage.name] / threshold.FILE
    )['threshold']

    def maps(
      images: datasets.Split,
    ) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
      categories = np.array([category_of[name] for name in images.ids()])
      for category in np.unique(categories):
        part = images.select(np.flatnonzero(categories == category))
        state = multi_scale.CategoryState(labeler.state, np.int32(category))
        yield from dataclasses.replace(labeler, state=state).label_maps(
          part, chosen
        )

    labels = workspace.directory / 'train'
    label_folders.write_missing_label_maps(
      self.open_images(), maps, labels, workspace, stage.options.short_side
    )
    return [labels]
