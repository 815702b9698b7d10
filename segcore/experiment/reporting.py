"""The stage `evaluate`: reports a trained segmentation network."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from etils import epy

from input_pipeline import transforms
from runtime import console, errors, files, json_files, options
from segcore.eval import metrics, protocols
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage, stage
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from input_pipeline import crop_scale
  from segcore.cost import topology as topology_lib
  from segcore.distributed import sharding
  from segcore.eval import class_report, predict
  from segcore.eval import evaluator as evaluator_lib
  from segcore.eval import results as results_lib
  from segcore.experiment import evaluation
  from segcore.ops import dense_crf
  from segcore.train import method, train_state
  from segcore.weights import checkpoint_reader


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
  """Options of the reported evaluation.

  Attributes:
    splits: names of splits of the training's data set; of the training split,
      the labeled images are evaluated.
    batch_size: global number of images of a batch.
    protocol: inference protocol.
    which: checkpoint to evaluate: 'last' is the state after the last step,
      'best' the best one on `val_split`.
    training_scale: whether images are resized so that the network gets them at
      the scale of the crops it was trained on.
    framed: whether each split is also reported as NAME_framed, where the
      padding around images smaller than the protocol's window counts as
      class 0.
    miou_without: further means of IoU, by the name of the metric, with the
      names of the classes that each leaves out; the network still predicts
      these classes. {'miou16': ('terrain', 'truck', 'train')} is the published
      mean of networks trained on SYNTHIA.
  """

  splits: tuple[str, ...] = ('val',)
  batch_size: int = 8
  protocol: protocols.ProtocolOptions
  which: Literal['last', 'best'] = 'last'
  training_scale: bool = False
  framed: bool = False
  miou_without: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    reserved = metrics.ConfusionMatrix.empty(2).compute()
    for name, classes in self.miou_without.items():
      if name in reserved:
        raise ValueError(f'miou_without: expected a new name, got {name!r}')
      if isinstance(classes, str) or not all(
        isinstance(each, str) for each in classes
      ):
        raise ValueError(
          f'miou_without.{name}: expected names of classes, got {classes!r}'
        )
    if self.framed and self.protocol.padding_mode != 'mean':
      raise ValueError(
        "framed=True: expected protocol.padding_mode='mean', got "
        f'{self.protocol.padding_mode!r}, which pads no border'
      )

    for name in ('short_side', 'long_side', 'fit_sides'):
      value = getattr(self.protocol, name)
      if self.training_scale and np.any(value):
        raise ValueError(
          f'training_scale=True contradicts protocol.{name}={value}: set '
          'training_scale to False'
        )

  def protocol_after(self, crop: Any) -> protocols.ProtocolOptions:
    """Returns the protocol for a network that was trained on such crops.

    Raises:
      UserError: `training_scale` is set, and the crops have no fixed scale.
    """
    if not self.training_scale:
      return self.protocol
    if not isinstance(crop, transforms.InceptionCrop):
      raise errors.UserError(
        'config.evaluate.training_scale: expected training on crops named '
        f'inception or fitted, got {type(crop).__name__}: set it to False'
      )
    side = crop_scale.short_side_at_crop_scale(crop)
    return dataclasses.replace(self.protocol, short_side=side)

  @property
  def paddings(self) -> dict[str, transforms.CenterCrop | None]:
    """Returns the padding of images by the suffix of the result's name."""
    if not self.framed:
      return {'': None}
    padded = transforms.CenterCrop(self.protocol.window, 'paper')
    return {'': None, '_framed': padded}


class EvaluateStage(experiment_stage.ExperimentStage):
  """Evaluates whole images by the protocol of the config, and predicts.

  A method subclasses it, naming the stage that has trained the network.

  Attributes:
    trained_by: name of the stage that has trained the network.
    checkpoint_fields: names of the fields of a checkpoint that are read.
  """

  name = 'evaluate'
  is_report = True
  options: EvaluateOptions
  trained_by: ClassVar[str]
  checkpoint_fields: ClassVar[tuple[str, ...]] = (
    'step',
    'params',
    'batch_stats',
  )

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stage that has trained the network."""
    return (self.trained_by,)

  @property
  @abc.abstractmethod
  def labeled_data(self) -> data_lib.LabeledData:
    """Returns the data block of the training stage."""

  @property
  def protocol(self) -> protocols.ProtocolOptions:
    """Returns the inference protocol."""
    block = self.labeled_data
    crop, _ = data_lib.augmentations_from_config(
      block.crop, block.flips, f'config.{self.trained_by}'
    )
    return self.options.protocol_after(crop)

  @abc.abstractmethod
  def scores(self, num_classes: int) -> 'method.ScoreModel':
    """Builds the network whose scores are evaluated."""

  def select_variables(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Selects 'step', 'params' and 'batch_stats' of the evaluated network.

    Args:
      fields: fields of the checkpoint by name.
    """
    return dict(fields)

  def settings(self) -> Any:
    """Returns the options without the batch size, which changes no result."""
    return options.omit_option_fields(self.options, 'batch_size')

  def reported_metrics(self) -> tuple[str, ...]:
    """Returns the metrics of the confusion matrix of each split."""
    values = metrics.ConfusionMatrix.empty(2).compute()
    names = evaluator_lib.evaluation_scalars(values)
    return tuple(
      f'{split}{suffix}/{name}'
      for split in self.options.splits
      for suffix in self.options.paddings
      for name in (*names, *self.options.miou_without)
    )

  def check(self) -> None:
    """Checks that batches divide among the devices."""
    sharding.check_batch_divides_devices(
      self.options.batch_size, self.context.mesh, f'{self.path}.batch_size'
    )
    self._check_crf()

  def inputs(self) -> experiment_stage.Inputs:
    """Returns no inputs: this stage reads the data of its training stage."""
    return experiment_stage.Inputs()

  def check_data(self) -> None:
    """Refuses unknown names of classes."""
    if self.options.miou_without:
      labeled = self.context.labeled(self.labeled_data, self.trained_by)
      self._class_subsets(labeled.classes)

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Evaluates each split; writes results.json, curves and pictures."""
    block, context, labeled = self.options, self.context, self.labeled_data
    context.check_disjoint(labeled, block.splits, self.trained_by)
    classes = context.labeled(labeled, self.trained_by).classes
    scores = self.scores(len(classes))
    step, state = self._read_state(workspace.needed[self.trained_by])
    results = results_lib.Results(workspace, step)
    for name in block.splits:
      split = context.evaluated(labeled, name, self.trained_by)
      for suffix, padding in block.paddings.items():
        evaluator = evaluation.build_stage_segmentation_evaluator(
          context,
          scores,
          split,
          block.batch_size,
          self.protocol,
          log_progress=True,
          padding=padding,
          class_subsets=self._class_subsets(classes),
        )
        evaluated = evaluator(state)
        results.add(f'{name}{suffix}', evaluated.values, split, evaluated.panel)
        undefined = evaluator_lib.undefined_evaluation_values(evaluated.values)
        miou = ', '.join(
          f'{shown} {evaluated.values[name]:.4f}'
          for name, shown in (
            ('miou', 'mIoU'),
            *((name, name) for name in block.miou_without),
          )
        )
        console.print_line(
          f'{split.name}{suffix}: {undefined or miou} over {len(split)} images'
        )
        for line in class_report.describe_evaluation(
          f'{name}{suffix}', split.classes, evaluated.values
        ):
          console.print_line(line)
    return results.write(
      protocol=self.protocol.describe(), which=block.which, step=step
    )

  def load_model(self, workdir: files.Path) -> 'predict.Model':
    """Loads the trained network of a run.

    Raises:
      UserError: the training of the run is not finished.
    """
    self._check_crf()
    folder = workdir / self.trained_by
    stage.require_finished_stage(folder, 'predict')
    classes = json_files.read_json(folder / data_lib.CLASSES_FILE)
    num_classes = len(classes['classes'])
    _, state = self._read_state(folder)
    return predict.Model(
      state=state,
      predictor=evaluation.build_stage_predictor(
        self.context,
        self.scores(num_classes),
        num_classes,
        self.protocol,
      ),
      classes=tuple(classes['classes']),
      palette=tuple((r, g, b) for r, g, b in classes['palette']),
      batch_size=self.options.batch_size,
      mesh=self.context.mesh,
      reading=self.context.operation.reading,
      image_options=self.labeled_data.data.reading,
    )

  def dry_run(
    self, compiles: bool, topology: 'topology_lib.Topology | None'
  ) -> Iterable[str]:
    """Reports the protocol in words; only the data tell the images' sizes."""
    del compiles, topology
    block = self.options
    return [
      f'{", ".join(block.splits)}: {self.protocol.describe()}',
      f'by the {block.which} state of {self.trained_by}, {block.batch_size} '
      'images at once',
    ]

  def _check_crf(self) -> None:
    """Raises UserError if the protocol needs a package that is missing."""
    if self.options.protocol.crf:
      dense_crf.require_crf_package(f'{self.path}.protocol.crf')

  def _class_subsets(
    self, classes: Sequence[str]
  ) -> dict[str, tuple[int, ...]]:
    return evaluation.class_subsets_without(
      classes, self.options.miou_without, f'{self.path}.miou_without'
    )

  def _read_state(
    self, folder: files.Path
  ) -> 'tuple[int, train_state.TrainState]':
    """Reads the step and the state that are reported."""
    kept = 'best' if self.options.which == 'best' else 'checkpoints'
    if kept == 'best' and not any((folder / kept).glob('[0-9]*')):
      raise errors.UserError(
        f"{self.path}.which: expected 'last', as {self.trained_by} has kept no "
        f'best state (no label of {self.labeled_data.val_split} was counted), '
        "got 'best'"
      )
    fields = checkpoint_reader.read_checkpoint_fields(
      folder / kept, self.checkpoint_fields
    )
    variables = self.select_variables(fields)
    state = train_state.inference_train_state(variables, self.context.mesh)
    return int(variables['step']), state
