"""Stage `train`: a semi-supervised system, on few labeled images."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from etils import epy

from input_pipeline import batch as batch_lib
from input_pipeline import datasets, splits
from runtime import console, errors
from segcore import types
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib
from u2pl.semi import system_options
from u2pl.stages import base

with epy.lazy_imports():
  from segcore.eval import evaluator
  from segcore.experiment import evaluation
  from segcore.models import heads as heads_lib
  from segcore.models import segmenter
  from segcore.train import loop
  from u2pl import panels
  from u2pl.semi import method as method_lib
  from u2pl.semi import systems
  from u2pl.stages import equalized_streams, two_crop_stream


@dataclasses.dataclass(frozen=True)
class HeadOptions:
  """Options of the heads of student and teacher.

  Attributes:
    kind: kind of the head 'logits': 'blocks' of convolution, norm and ReLU at a
      quarter of the resolution, or a single 'conv' at full resolution; or at
      the nearest one that the decoder has. 'shuffle' is a 1x1 and three
      doublings of the grid (CCT), from stride 8. 'classifier' is a 1x1 at a
      quarter of the resolution, after dropout.
    width: channels of the blocks, of logits and representations.
    kernel: height and width of the kernel of 'conv'.
    dropout_rate: share of the channels dropped in training, of each block of
      'blocks' and of the map that 'classifier' reads.
    representation: D, channels of a representation; its map has stride 4, or
      the nearest that the decoder has.
    auxiliary_stage: name of the encoder's map that the auxiliary head reads.
  """

  kind: Literal['blocks', 'conv', 'shuffle', 'classifier'] = 'blocks'
  width: int = 256
  kernel: int = 3
  dropout_rate: float = 0.1
  representation: int = 256
  auxiliary_stage: str = 'x3'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(data_lib.LabeledData):
  """Options of training on labeled and unlabeled images.

  Attributes:
    unlabeled: split of the unlabeled images, '' for `split`, that of the
      labeled ones. Images that are used as labeled are left out unless
      the system includes them.
    unlabeled_data: data set of the unlabeled images; None for `data`, that of
      the labeled ones.
    learn: options of a system: of its losses, and of a teacher.
    heads: options of the network's heads.
    start: parameters of encoder and decoder before step 0, for student and
      teacher.
    crop: name and fields of a crop (see `transforms.CROPS`), for both streams.
    flips: directions of random flips.
    steps_per_epoch: number of steps in which all unlabeled images are read
      once. Epochs are the unit of the warm-up, of copying the student to the
      teacher, and of the schedule of the share of unreliable pixels.
    recipe: images of each of the two streams, number of steps, optimizer.
  """

  unlabeled: str = ''
  unlabeled_data: datasets.DataOptions | None = None
  learn: system_options.Options
  heads: HeadOptions = HeadOptions()
  start: start_lib.Start = start_lib.Start()
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  steps_per_epoch: int
  recipe: update_lib.RecipeOptions

  def __post_init__(self):
    if self.steps_per_epoch < 1:
      raise ValueError(
        f'steps_per_epoch: expected >= 1, got {self.steps_per_epoch}'
      )
    if self.recipe.accumulate != 1:
      raise ValueError(
        f'recipe.accumulate: expected 1, got {self.recipe.accumulate}: '
        'percentiles, prototypes and the bank need the whole batch'
      )
    try:
      self.learn.check_batch_size(self.recipe.batch_size)
      self.learn.check_head(self.heads.kind)
    except ValueError as error:
      raise ValueError(f'learn.{error}') from error
    reads_unlabeled = self.learn.reads_unlabeled
    if reads_unlabeled and self.warmup_steps >= self.recipe.num_steps:
      raise ValueError(
        'learn.warmup_epochs: expected fewer than the '
        f'{self.recipe.num_steps} steps in all, got '
        f'{self.learn.warmup_epochs} of {self.steps_per_epoch} steps'
      )

  @property
  def unlabeled_images(self) -> data_lib.Images:
    """Returns data set and split of the unlabeled images."""
    return data_lib.Images(
      self.unlabeled_data or self.data, self.unlabeled or self.split
    )

  @property
  def warmup_steps(self) -> int:
    """Returns the number of steps of labeled images alone."""
    return self.learn.warmup_epochs * self.steps_per_epoch


class TrainStage(base.ClassStage):
  """Trains the network of a system, and whatever else its state has."""

  name = 'train'
  options: TrainOptions

  @property
  def zero_terms_until(self) -> int:
    """Returns the number of steps before all terms are computed."""
    return self.options.learn.full_loss_epoch * self.options.steps_per_epoch

  @property
  def follows_num_steps(self) -> bool:
    """Returns whether the losses depend on the length of the training."""
    return self.options.learn.follows_num_steps

  def check(self) -> None:
    """Checks batch, network, classes where they are known, and the crop."""
    super().check()
    try:
      self.options.learn.check_image_size(self.size)
    except ValueError as error:
      raise errors.UserError(f'config.train.crop.size: {error}') from error

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the splits to read, and the source of the initial parameters."""
    block = self.options
    return self.labeled_inputs(
      block.unlabeled_images if block.learn.reads_unlabeled else None
    )

  def check_data(self) -> None:
    """Refuses leaking images, and too few classes for the contrastive loss."""
    self.context.check_disjoint(
      self.options, self.experiment.evaluate.splits, self.name
    )
    labeled = self.context.labeled(self.options, self.name)
    self.check_num_classes(len(labeled.classes))

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of one stream, or of both."""
    del num_classes
    block = self.options
    spec = functools.partial(
      batch_lib.batch_spec, block.recipe.batch_size, self.size, label=True
    )
    if not block.learn.reads_unlabeled:
      return spec()
    crop, _ = self.augmentations()
    equalizes = block.learn.paste_scales is not None
    unlabeled = spec(
      valid=crop.ignores_padding,
      paired=equalizes,
      two_crops=block.learn.needs_two_crops,
    )
    pasted = {'pasted': spec()} if equalizes else {}
    return {'labeled': spec(), 'unlabeled': unlabeled, **pasted}

  def method(
    self, context: context_lib.Context, num_classes: int
  ) -> 'method_lib.SemiSupervised':
    """Builds the method that the block `learn` describes."""
    block = self.options
    net = self.build_network(context, num_classes)
    return systems.METHODS[type(block.learn)](
      segmenter=net,
      update=block.recipe.make_update(
        segmenter.SUBMODULES, net.frozen_parameters
      ),
      options=block.learn,
      num_classes=num_classes,
      steps_per_epoch=block.steps_per_epoch,
    )

  def trained_method(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> 'method_lib.SemiSupervised':
    """Builds the method with the weights of the classes."""
    weights = data_lib.stage_class_weights(
      workspace,
      self.context.labeled(self.options, self.name),
      self.options.learn.supervised.class_weights,
    )
    fields: dict[str, Any] = {'class_weights': weights}
    if 'unlabeled' in streams:
      fields['num_unlabeled'] = len(streams['unlabeled'].split)
    method = super().trained_method(workspace, streams)
    return dataclasses.replace(method, **fields)

  def build_network(
    self, context: context_lib.Context, num_classes: int
  ) -> 'segmenter.Segmenter':
    """Builds the network of student and teacher."""
    return context.build(self._heads(num_classes), self.size)

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens labeled and unlabeled images, equally many of both."""
    block = self.options
    labeled = self.context.labeled(block, self.name)
    data_lib.require_same_stage_labels(workspace, labeled)
    data_lib.warn_of_unseen_classes(
      labeled, self.context.absent_classes(block, self.name)
    )
    augmentations = self.augmentations()

    def stream(split: datasets.Split, *keep: str) -> data_lib.ImageStream:
      return data_lib.ImageStream(split, *augmentations, keep)

    batch = block.recipe.batch_size
    if not block.learn.reads_unlabeled:
      self._log_epoch(f'{len(labeled)} labeled images', len(labeled) / batch)
      return {'': stream(labeled, 'label')}
    unlabeled = self._open_unlabeled()
    self._log_epoch(
      f'{len(labeled)} labeled and {len(unlabeled)} unlabeled images',
      len(unlabeled) / batch,
    )
    entries = splits.repeat_images_to_length(
      len(labeled), max(len(labeled), len(unlabeled)), block.recipe.seed
    )
    # Labels of unlabeled images only measure the teacher's accuracy.
    kept = ['label'] if 'label' in unlabeled.label_kinds else []
    if augmentations[0].ignores_padding:
      kept.append('valid')
    streams = {
      'labeled': stream(labeled.select(entries), 'label'),
      'unlabeled': stream(unlabeled, *kept),
    }
    if block.learn.needs_two_crops:
      streams['unlabeled'] = two_crop_stream.TwoCropStream(
        unlabeled, *augmentations, tuple(kept)
      )
    if scales := block.learn.paste_scales:
      streams |= equalized_streams.equalized_streams(
        labeled, streams, scales, block.steps_per_epoch
      )
    return streams

  def evaluation(
    self, trained: 'method_lib.SemiSupervised', streams: data_lib.Streams
  ) -> 'loop.EvaluateFn':
    """Builds the evaluation during training, with panels of unlabeled images.

    The splits are `val_split` and those of `follow`.
    """
    block = self.options
    evaluate = evaluation.build_training_stage_evaluation(self, trained, block)
    if not block.learn.reads_unlabeled:
      return evaluate
    panel = panels.TeacherPanels(
      trained,
      _panel_batch(streams, block.learn.mixing_group),
      streams['labeled'].split.palette,
      evaluation.NUM_PANEL_ROWS,
      self.context.mesh,
    )
    return evaluator.combine_evaluation_summaries(evaluate, panel)

  def _heads(self, num_classes: int) -> dict[str, Any]:
    block = self.options
    blocks = functools.partial(
      heads_lib.ConvBlocksHead,
      width=block.heads.width,
      nearest=True,
      dropout_rate=block.heads.dropout_rate,
      dtype=jnp.dtype(self.experiment.network.dtype),
    )
    if block.heads.kind == 'blocks':
      heads = {'logits': blocks(num_classes)}
    elif block.heads.kind == 'shuffle':
      heads = {'logits': heads_lib.ShuffleHead(num_classes, nearest=True)}
    elif block.heads.kind == 'classifier':
      heads = {
        'logits': heads_lib.PixelClassifier(
          num_classes, nearest=True, dropout_rate=block.heads.dropout_rate
        )
      }
    else:
      heads = {
        'logits': heads_lib.ConvHead(
          num_classes,
          kernel=block.heads.kernel,
          nearest=True,
          init_scale=0.1,
        )
      }
    if block.learn.needs_representations:
      heads['rep'] = blocks(block.heads.representation)
    if block.learn.supervised.auxiliary:
      heads['aux'] = blocks(
        num_classes,
        num_blocks=1,
        reads='encoder',
        map_name=block.heads.auxiliary_stage,
      )
    return heads | block.learn.further_heads(num_classes, heads['logits'])

  def _open_unlabeled(self) -> datasets.Split:
    """Opens the unlabeled images: not held out, and by default not labeled.

    Of another data set, images of the validation split are left out, too; they
    are compared by content, as names may recur.

    Raises:
      UserError: none is left.
    """
    block = self.options
    images = block.unlabeled_images
    split = self.context.open(images.data, images.split)
    labeled, *excluded = self.context.labeled_and_held_out(block, self.name)
    if not block.learn.includes_labeled:
      excluded.append(labeled)
    if images.data == block.data:
      names = {name for other in excluded for name in other.ids()}
      rest = [i for i, name in enumerate(split.ids()) if name not in names]
    else:
      excluded.append(self.context.open(block.data, block.val_split))
      digests = np.concatenate([other.index.digests for other in excluded])
      rest = np.flatnonzero(~np.isin(split.index.digests, digests)).tolist()
    if not rest:
      raise errors.UserError(
        f'config.train.subset: all {len(split)} images are labeled: label '
        'fewer, or name another split in config.train.unlabeled'
      )
    return split.select(np.array(rest))

  def _log_epoch(self, images: str, batches: float) -> None:
    console.print_line(
      f'train: {images}, {batches:.1f} batches; an epoch is '
      f'{self.options.steps_per_epoch} steps'
    )

  def check_num_classes(self, num_classes: int) -> None:
    """Raises UserError where a loss of the system is not defined."""
    try:
      self.options.learn.check_num_classes(num_classes)
    except ValueError as error:
      raise errors.UserError(f'config.train.learn.{error}') from error


def _panel_batch(streams: data_lib.Streams, group: int) -> dict[str, Any]:
  """Builds the fixed batch that the panel shows, of whole groups of images."""
  count = -(-evaluation.NUM_PANEL_ROWS // group) * group
  return {
    name: data_lib.fixed_panel_batch(stream, count)
    for name, stream in streams.items()
  }
