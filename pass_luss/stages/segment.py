"""Stages `segment`, `segment_semi`, `segment_on`: label maps and scores."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
from etils import epy

from input_pipeline import datasets
from pass_luss.protocols import protocol_options
from pass_luss.stages import base, finetune
from runtime import errors, files, json_files
from runtime.option_ranges import CheckedOptions
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage, stage
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.benchmark import label_folders, matching
  from pass_luss.protocols import segment as segment_lib
  from pass_luss.pseudo_labels import labeler as labeler_lib
  from pass_luss.stages import threshold
  from segcore.eval import predict, short_side
  from segcore.eval import results as results_lib
  from segcore.train import method as method_lib
  from segcore.train import train_state

# Of the matched categories and classes.
_MATCH_FILE = 'match.json'


@dataclasses.dataclass(frozen=True)
class SegmentOptions(CheckedOptions):
  """Options of label maps of whole splits, and their scores.

  Attributes:
    splits: names of the splits to segment; those with masks are scored.
    match_on: the split on which generated categories are matched with classes;
      a network trained on masks has classes, which are matched by their names.
    inference: 'logits', or 'cam': the activation of the image's category.
    threshold: threshold of class activation maps ('cam'); if negative, it is
      chosen on the split `match_on`.
    short_side: short side of the resized images, in pixels.
    batch_size: global number of images; changes no result.
    about: description of the method in a submission.
  """

  splits: tuple[str, ...] = ('val', 'test')
  match_on: str = 'val'
  inference: Literal['logits', 'cam'] = 'logits'
  threshold: float = -1.0
  short_side: int = 256
  batch_size: int = 16
  about: protocol_options.SubmissionInfo = protocol_options.SubmissionInfo()

  def __post_init__(self):
    super().__post_init__()
    if not self.splits:
      raise ValueError('splits: expected at least one, got ()')

  def describe(self, by_names: bool) -> str:
    """Describes the protocol in words, for results.json.

    Args:
      by_names: whether categories are matched by name, not by overlap.
    """
    how = 'by their names' if by_names else f'on {self.match_on}'
    return (
      f'{self.inference}, short side {self.short_side}; categories matched '
      f'with classes {how}'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentOnOptions(SegmentOptions):
  """Options of segmenting another, smaller data set (spec PASS §5.6).

  Categories or classes that none of its classes is matched with become 'other'.

  Attributes:
    data: the data set.
    trained_by: the stage that trains the network.
  """

  data: datasets.DataOptions
  trained_by: Literal['finetune', 'semi']


@runtime_checkable
class Choice(Protocol):
  """A choice that a stage makes by its data, such as a threshold."""

  def summary(self) -> Mapping[str, Any]:
    """Returns the fields for results.json."""


class TrainedModel(NamedTuple):
  """A network that was trained to segment.

  Attributes:
    method: method that trained it.
    state: its training state.
    num_categories: number of its categories without 'other'.
  """

  method: 'method_lib.Method'
  state: 'train_state.TrainState'
  num_categories: int


class LussSegmentationStage(base.InferenceStage):
  """Segments splits, matches categories with classes, and scores."""

  is_report = True

  @property
  @abc.abstractmethod
  def trainer(self) -> type[experiment_stage.TrainingStage]:
    """Returns the kind of stage that trains the network."""

  @property
  def trained_by(self) -> experiment_stage.TrainingStage:
    """Returns the stage that trains the network."""
    return self.trainer(self.experiment, self.context)

  @property
  def data(self) -> datasets.DataOptions:
    """Returns the data set that is segmented."""
    return self.experiment.images.data

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stage that trains the network."""
    return (self.trained_by.name,)

  @property
  def has_class_names(self) -> bool:
    """Returns whether the network was trained on masks."""
    return isinstance(self.trained_by, finetune.SemiStage)

  @property
  def chooses_threshold(self) -> bool:
    """Returns whether a threshold is chosen, which needs masks."""
    return self.options.inference == 'cam' and self.options.threshold < 0

  def segmented(self) -> list[str]:
    """Returns the splits that are segmented; `match_on` is the first."""
    matched = [] if self.has_class_names else [self.options.match_on]
    return [*dict.fromkeys([*matched, *self.options.splits])]

  def reported_metrics(self) -> tuple[str, ...]:
    """Returns all splits; those without masks have no metrics."""
    return tuple(f'{split}/*' for split in self.segmented())

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the splits to read; masks are required where they are matched."""
    read = [(split, '') for split in self.segmented()]
    if not self.has_class_names or self.chooses_threshold:
      read.append((self.options.match_on, 'label'))
    return experiment_stage.Inputs(
      tuple(
        experiment_stage.SplitInput(self.data, split, kind)
        for split, kind in read
      )
    )

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Writes label maps and the match; scores splits with masks."""
    block, names = self.options, self.segmented()
    first = self.open_images(
      names[0],
      '' if self.has_class_names else 'label',
      'matching',
      self.data,
    )
    folder = workspace.needed[self.trained_by.name]
    classes = json_files.read_json(folder / data_lib.CLASSES_FILE)['classes']
    match = None
    if self.has_class_names:
      match = matching.match_classes_by_name(classes, first.classes)
    num_categories = len(classes) - 1
    method = self.trained_by.method(self.exact_context, num_categories + 1)
    step, state = self.read_state(folder)
    maps, chosen = self.build_label_maps(
      workspace, TrainedModel(method, state, num_categories)
    )
    path = workspace.directory / _MATCH_FILE
    results = results_lib.Results(workspace, step)
    outputs = [path, *data_lib.write_stage_classes(workspace, first)]
    for name in names:
      split = self.open_images(name, data=self.data)
      labels = workspace.directory / name
      label_folders.write_missing_label_maps(
        split, maps, labels, workspace, block.short_side
      )
      outputs.append(labels)
      if name == names[0]:
        match = match or segment_lib.match_label_map_files(
          split, labels, num_categories
        )
        if jax.process_index() == 0:
          match.write(path)
      if 'label' in split.label_kinds:
        base.add_label_map_scores(
          results, name, split, labels, num_categories, match
        )
      else:
        outputs.append(
          segment_lib.write_submission(split, labels, path, block.about)
        )
    written = results.write(
      stage=self.name,
      protocol=block.describe(self.has_class_names),
      step=step,
      **(chosen.summary() if chosen else {}),
    )
    return [*outputs, *written]

  def build_label_maps(
    self, workspace: workspace_lib.Workspace, model: TrainedModel
  ) -> 'tuple[label_folders.LabelMapFunction, Choice | None]':
    """Builds the function of label maps, and what is chosen for it.

    This is the threshold of 'cam'; a subclass may choose something else.

    Args:
      workspace: workspace of the stage.
      model: network that segments.
    """
    method, state = model.method, model.state
    block, context = self.options, self.context
    reading = context.operation.reading
    if block.inference == 'logits':
      predictor = short_side.LabelMaps(method, block.short_side)
      maps = segment_lib.label_map_function(
        predictor, state, block.batch_size, context.mesh, reading
      )
      return maps, None
    labeler = labeler_lib.Labeler(
      short_side.FeatureMaps(method.activation, block.short_side),
      state,
      context.mesh,
      block.batch_size,
      reading,
    )
    choose_on = None
    if self.chooses_threshold:
      choose_on = self.open_images(
        block.match_on, 'label', 'a threshold', self.data
      )
    chosen = threshold.choose_attention_threshold(
      workspace, labeler, model.num_categories, block.threshold, choose_on
    )
    return lambda split: labeler.label_maps(split, chosen.threshold), chosen


class SegmentStage(LussSegmentationStage):
  """Segments images by the network that was fine-tuned on pseudo-labels."""

  name = 'segment'
  options: SegmentOptions
  trainer = finetune.FinetuneStage

  def load_model(self, workdir: files.Path) -> 'predict.Model':
    """Loads the fine-tuned network; its categories have their classes' names.

    Raises:
      UserError: fine-tuning or matching is not finished.
    """
    folder, matched = workdir / self.trained_by.name, workdir / self.name
    for needed in (folder, matched):
      stage.require_finished_stage(needed, 'predict')
    trained = json_files.read_json(folder / data_lib.CLASSES_FILE)
    known = json_files.read_json(matched / data_lib.CLASSES_FILE)
    match = matching.Match.read(
      matched / _MATCH_FILE, len(known['classes']) - 1
    )
    block = self.options
    if block.inference != 'logits':
      raise errors.UserError(
        f"config.segment.inference: expected 'logits' for predictions, got "
        f'{block.inference!r}'
      )
    method = self.trained_by.method(self.exact_context, len(trained['classes']))
    return predict.Model(
      state=self.read_state(folder)[1],
      predictor=short_side.LabelMaps(method, block.short_side),
      classes=tuple(known['classes'][i] for i in match.classes),
      palette=tuple(tuple(known['palette'][i]) for i in match.classes),
      batch_size=block.batch_size,
      mesh=self.context.mesh,
      reading=self.context.operation.reading,
      image_options=self.data.reading,
    )


class SegmentSemiStage(LussSegmentationStage):
  """Segments images by the network that was trained on few masks."""

  name = 'segment_semi'
  options: SegmentOptions
  trainer = finetune.SemiStage


class SegmentOnStage(LussSegmentationStage):
  """Segments another data set by either network."""

  name = 'segment_on'
  options: SegmentOnOptions | None

  @property
  def data(self) -> datasets.DataOptions:
    """Returns the data set that is segmented."""
    return self.options.data

  @property
  def trainer(self) -> type[finetune.SegmenterStage]:
    """Returns the kind of stage that the block names."""
    stages = {
      cls.name: cls for cls in (finetune.FinetuneStage, finetune.SemiStage)
    }
    return stages[self.options.trained_by]
