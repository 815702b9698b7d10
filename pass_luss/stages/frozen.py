"""Parts of the stages that score the features of an encoder without training.

`frozen_knn`, `frozen_distance` and `frozen_kmeans` take any encoder, from a
weight file or a finished stage, and any data with masks (spec comparators
§8.1.3).
"""

import abc
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epy

from input_pipeline import datasets
from pass_luss.stages import base
from runtime import console, errors, files, json_files
from runtime import options as options_lib
from runtime.option_ranges import CheckedOptions, NonNegative
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.models import network_options
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.protocols import frozen_encoder, patch_rows
  from pass_luss.pseudo_labels import features
  from segcore.eval import class_report, evaluator, metrics
  from segcore.eval import results as results_lib
  from segcore.experiment import evaluation
  from segcore.models import network as network_lib
  from segcore.models import segmenter as segmenter_lib
  from segcore.train import train_state
  from segcore.weights import describe, load

# Bytes of the rows of features, at most: each device has all of them.
_MAX_ROW_BYTES = 16e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenOptions(data_lib.LabeledData, CheckedOptions):
  """Options of all protocols of a frozen encoder.

  Predictions follow from the labeled images; `val_split` and the splits in
  `follow` are scored.

  Attributes:
    start: weights of the encoder: a weight file, a stage, or 'package:NAME' for
      the weight file of an installed package.
    untrained: whether the encoder's parameters are random, for comparison.
    seed: seed of random parameters and of all sampling.
    stride: stride of the map whose cells are the features; of several maps the
      deepest one is used. 0 for the largest stride.
    short_side: short side of images, in pixels, rounded to a multiple of the
      stride; 0 for 448, or for 224 at strides of at most 8.
    batch_size: global number of images of a batch; changes no result.
  """

  start: start_lib.Start = start_lib.Start()
  untrained: bool = False
  seed: NonNegative[int] = 0
  stride: NonNegative[int] = 0
  short_side: NonNegative[int] = 0
  batch_size: int = 8

  def __post_init__(self):
    super().__post_init__()
    if self.split in (self.val_split, *self.follow):
      raise ValueError(
        'val_split, follow: expected other splits than that of the labeled '
        f'images, got {self.split!r}: choose another one, or held_out'
      )
    if self.start.path and self.start.take != ('encoder',):
      raise ValueError(
        f"start.take: expected ('encoder',), got {self.start.take}"
      )
    if not self.start.path and not self.untrained:
      raise ValueError(
        "start.path: expected weights of an encoder, got '': name a weight "
        'file, a finished stage or a package, or set untrained'
      )


class FitInputs(NamedTuple):
  """Holds what a protocol reads to fit its predictions.

  Attributes:
    encoder: encoder with its weights.
    labeled: images with masks.
    workspace: workspace of the stage.
  """

  encoder: 'frozen_encoder.FrozenEncoder'
  labeled: datasets.Split
  workspace: workspace_lib.Workspace


class FrozenFit(NamedTuple):
  """Predictions that a protocol derives from the labeled images.

  Attributes:
    predict: function from a split to the predictions of its label maps.
    state: training state, with which the predictions are called.
    fields: further entries of results.json.
  """

  predict: 'Callable[[datasets.Split], evaluator.Predictions]'
  state: 'train_state.TrainState'
  fields: dict[str, Any]


class FrozenStage(base.InferenceStage):
  """A stage that scores an encoder by labeled images, without training."""

  is_report = True
  options: FrozenOptions

  @abc.abstractmethod
  def fit(self, inputs: FitInputs) -> FrozenFit:
    """Fits the predictions to the labeled images."""

  @abc.abstractmethod
  def describe_protocol(self, encoder: 'frozen_encoder.FrozenEncoder') -> str:
    """Describes the protocol in words, for results.json."""

  def settings(self) -> Any:
    """Returns the settings that results depend on: encoder and options."""
    block = options_lib.omit_option_fields(self.options, 'batch_size')
    return {self.name: block, 'encoder': self.experiment.network.encoder}

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the splits to read, with masks, and the encoder's weights."""
    block = self.options
    names = dict.fromkeys((block.split, *self.scored()))
    return experiment_stage.Inputs(
      tuple(
        experiment_stage.SplitInput(block.data, name, 'label') for name in names
      ),
      block.start,
    )

  def scored(self) -> tuple[str, ...]:
    """Returns the names of the splits that are scored."""
    return (self.options.val_split, *self.options.follow)

  def reported_metrics(self) -> tuple[str, ...]:
    """Returns the metrics of the confusion matrix of each split."""
    values = metrics.ConfusionMatrix.empty(2).compute()
    names = evaluator.evaluation_scalars(values)
    return tuple(f'{split}/{name}' for split in self.scored() for name in names)

  def check_data(self) -> None:
    """Raises UserError if splits share images."""
    self.context.check_disjoint(self.options, (), self.name)

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Scores the splits; writes results.json and pictures."""
    begin, block = time.monotonic(), self.options
    labeled = self.context.labeled(block, self.name)
    encoder = self.load_encoder(workspace)
    protocol = self.describe_protocol(encoder)
    console.print_line(f'{self.name}: {protocol}')
    fitted = self.fit(FitInputs(encoder, labeled, workspace))
    results = results_lib.Results(workspace)
    for name in self.scored():
      split = self.context.evaluated(block, name, self.name)
      evaluated = evaluator.Evaluator(
        fitted.predict(split),
        (metrics.ConfusionMatrix.empty(len(labeled.classes)),),
        'label',
        evaluation.NUM_PANEL_ROWS,
      )(fitted.state)
      results.add(name, evaluated.values, split, evaluated.panel)
      for line in class_report.describe_classes(
        name, split.classes, evaluated.values['iou']
      ):
        console.print_line(line)
    written = results.write(
      stage=self.name,
      protocol=protocol,
      step=0,
      encoder=self.encoder_name,
      num_labeled=len(labeled),
      seconds=round(time.monotonic() - begin, 1),
      **fitted.fields,
    )
    features.delete_feature_files(workspace)
    if jax.process_index() == 0:
      for line in format_frozen_results(workspace.directory.parent):
        console.print_line(line)
    return written

  @property
  def encoder_name(self) -> str:
    """Returns the path or the name of the encoder, for reports."""
    block = self.options
    name = block.start.path or self.experiment.network.encoder['name']
    return f'untrained {name}' if block.untrained else name

  def load_encoder(
    self, workspace: workspace_lib.Workspace
  ) -> 'frozen_encoder.FrozenEncoder':
    """Builds the encoder of the config, or of the weights, and loads them.

    Raises:
      UserError: weights cannot be read, are of no known encoder, or do not fit
        the config; or there is no map of the stride.
    """
    block, variables, path = self.options, {}, None
    if block.start.path:
      path = block.start.locate(workspace)
      variables = load.read_weight_variables(path)
    net = self._build_network(path, variables)
    side = frozen_encoder.probe_side(net.encoder)
    images = jnp.zeros((1, side, side, 3))
    if block.untrained:
      variables = jax.jit(net.init)(jax.random.PRNGKey(block.seed), images)
    else:
      variables = load.select_weight_parts(
        variables,
        jax.eval_shape(net.init, jax.random.PRNGKey(0), images),
        ('encoder',),
        str(path),
        getattr(net.encoder, 'grid', None),
      )
    state = train_state.inference_train_state(variables, self.context.mesh)
    try:
      return frozen_encoder.FrozenEncoder.build(
        net, state, block.stride, block.short_side
      )
    except ValueError as error:
      raise errors.UserError(f'{self.path}.stride: {error}') from error

  def _build_network(
    self, path: files.Path | None, variables: dict[str, Any]
  ) -> 'segmenter_lib.Segmenter':
    """Builds the encoder of the config, or the one that the weights are for."""
    encoder = self.experiment.network.encoder
    if encoder['name'] == describe.OF_WEIGHTS:
      if path is None:
        raise errors.UserError(
          f'config.network.encoder.name: expected one of '
          f'{", ".join(network_lib.ENCODERS)} where {self.path}.start has no '
          f'path, got {describe.OF_WEIGHTS!r}'
        )
      encoder = describe.encoder_of_weights(path, variables)
      fields = ', '.join(f'{k}={v!r}' for k, v in encoder.items())
      console.print_line(f'encoder: {fields}')
    return network_lib.build_network(
      network_options.NetworkOptions(encoder), {}, 'config.network'
    )

  def row_extractor(
    self,
    encoder: 'frozen_encoder.FrozenEncoder',
    workspace: workspace_lib.Workspace,
  ) -> 'patch_rows.RowExtractor':
    """Builds the extractor of the rows of the labeled images."""
    return patch_rows.RowExtractor(
      encoder.state,
      self.options.batch_size,
      self.context.mesh,
      self.context.operation.reading,
      workspace,
    )

  def check_rows(self, count: int, least: int, width: int, field: str) -> None:
    """Checks that there are enough rows and that they fit into memory.

    Args:
      count: largest possible number of rows of all labeled images.
      least: number of rows that are needed.
      width: number of values of a row.
      field: name of the option that requires `least` rows.

    Raises:
      UserError: there are too few or too many rows.
    """
    if count < least:
      raise errors.UserError(
        f'{self.path}.{field}: expected at most {count}, the number of patches '
        f'of the labeled images, got {least}'
      )
    if 4 * count * width > _MAX_ROW_BYTES:
      raise errors.UserError(
        f'{self.path}.rows_per_image: expected at most '
        f'{_MAX_ROW_BYTES / 1e9:.0f} GB of rows, got {count:,} of {width} '
        f'values, {4 * count * width / 1e9:.0f} GB: set it, or take fewer '
        'labeled images'
      )


def format_frozen_results(workdir: files.Path) -> list[str]:
  """Formats the results of all frozen encoders in a work folder as a table."""
  rows = [('stage', 'split', 'mIoU', 'pixels', 'seconds', 'encoder')]
  for path in sorted(workdir.glob('frozen_*/results.json')):
    results = json_files.read_json(path)
    for name, entry in results['splits'].items():
      percent = (
        '-' if value is None else f'{100 * value:.2f}'
        for value in (entry['metrics'][m] for m in ('miou', 'pixel_accuracy'))
      )
      stage = results['stage']
      if 'matching' in results:
        stage = f'{stage} ({results["matching"]})'
      seconds = f'{results["seconds"]:.0f}'
      rows.append((stage, name, *percent, seconds, results['encoder']))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.rjust(width) if 2 <= i <= 4 else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
