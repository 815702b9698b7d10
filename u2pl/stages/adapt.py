"""Stage `adapt`: a student and its EMA teacher, from one domain to another."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from etils import epy

from input_pipeline import batch as batch_lib
from input_pipeline import samplers
from runtime import console, errors
from segcore import types
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib
from u2pl.adapt import options as adapt_options
from u2pl.stages import base, pixel_heads

with epy.lazy_imports():
  from input_pipeline.sources import fingerprints
  from segcore.eval import evaluator
  from segcore.experiment import evaluation
  from segcore.models import heads as heads_lib
  from segcore.models import segmenter
  from segcore.train import loop
  from u2pl import panels
  from u2pl.adapt import daformer

SOURCE, TARGET = 'source', 'target'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetOptions(data_lib.Images):
  """Images of the target domain; their labels are not trained on.

  The data set has the classes of the source.

  Attributes:
    crop: name and fields of a crop, of the size of the source's.
  """

  crop: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptOptions(data_lib.LabeledData):
  """Options of domain adaptation; `data` and `split` are the source.

  `val_split` and `follow` are splits of the target's data set.

  Attributes:
    target: images of the target domain.
    learn: options of the losses and of the teacher.
    rare_classes: options of rare class sampling of source images; None reads
      each of them once in each epoch.
    heads: options of the network's heads.
    start: parameters of encoder and decoder before step 0, for student,
      teacher and the frozen encoder of the feature distance.
    crop: name and fields of a crop (see `transforms.CROPS`) of source images.
    flips: directions of random flips, in both domains.
    recipe: images of each domain, number of steps, optimizer.
  """

  target: TargetOptions
  learn: adapt_options.LearnOptions = adapt_options.LearnOptions()
  rare_classes: samplers.RareClassOptions | None = samplers.RareClassOptions()
  heads: pixel_heads.HeadOptions = pixel_heads.HeadOptions()
  start: start_lib.Start = start_lib.Start()
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  recipe: update_lib.RecipeOptions

  def __post_init__(self):
    if self.recipe.accumulate != 1:
      raise ValueError(
        f'recipe.accumulate: expected 1, got {self.recipe.accumulate}: classes '
        'that are mixed, weights and the bank need the whole batch'
      )
    learn = self.learn
    if learn.needs_representations:
      base.check_first_step('start_step', learn.start_step, self.recipe)

  @property
  def evaluated(self) -> data_lib.LabeledData:
    """Returns the target's validation splits, the only ones with masks."""
    return data_lib.LabeledData.of_validation(
      self.target.data, self.val_split, self.follow
    )


class AdaptStage(base.ClassStage):
  """Trains a student on source and target images; reports on the target."""

  name = 'adapt'
  options: AdaptOptions

  @property
  def zero_terms_until(self) -> int:
    """Returns the first step with all terms of the loss."""
    learn = self.options.learn
    return learn.start_step if learn.needs_representations else 0

  @property
  def follows_num_steps(self) -> bool:
    """Returns whether the share of unreliable pixels falls until the end."""
    learn = self.options.learn
    return learn.needs_entropy and learn.partition.dynamic

  def check(self) -> None:
    """Checks batch, network, crops and, where it is known, the classes."""
    super().check()
    crop, _ = self._target_augmentations()
    if crop.size != self.size:
      raise errors.UserError(
        f'{self.path}.target.crop.size: expected {self.size}, that of '
        f'{self.path}.crop, got {crop.size}'
      )

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the splits to read, and the source of the initial parameters."""
    block = self.options
    return self.labeled_inputs(
      block.target if block.learn.self_training else None
    )

  def check_data(self) -> None:
    """Refuses leaking images, and domains of different classes."""
    block, context = self.options, self.context
    source = context.labeled(block, self.name)
    target = context.open(block.target.data, block.target.split)
    if source.classes != target.classes:
      raise errors.UserError(
        f'{self.path}.target.data: expected the classes of {source.name}, '
        f'{", ".join(source.classes)}, got {", ".join(target.classes)}'
      )
    self.check_num_classes(len(source.classes))
    names = (block.val_split, *block.follow, *self.experiment.evaluate.splits)
    for name in dict.fromkeys(names):
      evaluated = context.open(block.target.data, name, 'label', self.name)
      for trained in (source, target):
        if name != block.target.split:
          fingerprints.check_splits_disjoint(
            trained.index, evaluated.index, (trained.name, evaluated.name)
          )

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of both streams, or of the source alone."""
    del num_classes
    block = self.options
    spec = functools.partial(
      batch_lib.batch_spec, block.recipe.batch_size, self.size
    )
    streams = {SOURCE: spec(label=True)}
    if block.learn.self_training:
      crop, _ = self._target_augmentations()
      streams[TARGET] = spec(label=True, valid=crop.ignores_padding)
    return streams

  def method(
    self, context: context_lib.Context, num_classes: int
  ) -> 'daformer.DAFormer':
    """Builds the method that the block `learn` describes."""
    block = self.options
    net = self.build_network(context, num_classes)
    return daformer.DAFormer(
      segmenter=net,
      update=block.recipe.make_update(
        segmenter.SUBMODULES, net.frozen_parameters
      ),
      options=block.learn,
      num_classes=num_classes,
    )

  def build_network(
    self, context: context_lib.Context, num_classes: int
  ) -> 'segmenter.Segmenter':
    """Builds the network of student and teacher."""
    block = self.options
    dtype = jnp.dtype(self.experiment.network.dtype)
    heads: dict[str, Any] = {
      'logits': block.heads.build_classifier(num_classes, dtype, stride=1)
    }
    if block.learn.feature_distance:
      heads[adapt_options.FEATURES] = heads_lib.EncoderMap()
    if block.learn.needs_representations:
      heads['rep'] = block.heads.build_representation(dtype)
    return context.build(heads, self.size)

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens source and target images, equally many of both in a batch."""
    block = self.options
    source = self.context.labeled(block, self.name)
    data_lib.require_same_stage_labels(workspace, source)
    sampler = None
    if block.rare_classes:
      sampler = samplers.RareClassSampler.from_pixels(
        source.class_pixels(), block.rare_classes, source.classes
      )
    streams = {
      SOURCE: data_lib.ImageStream(
        source, *self.augmentations(), ('label',), sampler
      )
    }
    text = f'adapt: {len(source)} images of {source.name}'
    if block.learn.self_training:
      target = self.context.open(block.target.data, block.target.split)
      crop, flips = self._target_augmentations()
      # Labels of target images only measure the teacher's accuracy.
      kept = ['label'] if 'label' in target.label_kinds else []
      if crop.ignores_padding:
        kept.append('valid')
      # With the sampler of rare classes, the authors draw both with
      # replacement.
      uniform = sampler and samplers.UniformSampler(len(target))
      streams[TARGET] = data_lib.ImageStream(
        target, crop, flips, tuple(kept), uniform
      )
      text += f', {len(target)} of {target.name}'
    console.print_line(text)
    return streams

  def evaluation(
    self, trained: 'daformer.DAFormer', streams: data_lib.Streams
  ) -> 'loop.EvaluateFn':
    """Builds the evaluation on the target, with panels of mixed images."""
    evaluate = evaluation.build_training_stage_evaluation(
      self, trained, self.options.evaluated
    )
    if TARGET not in streams:
      return evaluate
    panel = panels.TeacherPanels(
      trained,
      {
        name: data_lib.fixed_panel_batch(stream, evaluation.NUM_PANEL_ROWS)
        for name, stream in streams.items()
      },
      streams[SOURCE].split.palette,
      evaluation.NUM_PANEL_ROWS,
      self.context.mesh,
      stream=TARGET,
    )
    return evaluator.combine_evaluation_summaries(evaluate, panel)

  def _target_augmentations(self) -> tuple[Any, Any]:
    """Builds the crop and the flips of target images."""
    block = self.options
    return data_lib.augmentations_from_config(
      block.target.crop, block.flips, f'{self.path}.target'
    )

  def check_num_classes(self, num_classes: int) -> None:
    """Raises UserError where a loss would be 0, or a class is unknown."""
    learn = self.options.learn
    if learn.contrast:
      try:
        learn.contrast.check_classes(num_classes)
      except ValueError as error:
        raise errors.UserError(f'{self.path}.learn.contrast: {error}') from None
    distance = learn.feature_distance
    if distance and max(distance.classes) >= num_classes:
      raise errors.UserError(
        f'{self.path}.learn.feature_distance.classes: expected ids below '
        f'{num_classes}, the number of classes, got {distance.classes}'
      )
