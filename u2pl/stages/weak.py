"""Stage `weak`: a network from labels of whole images."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from etils import epy

from input_pipeline import batch as batch_lib
from input_pipeline import datasets
from runtime import console, errors
from runtime import options as options_lib
from segcore import types
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib
from u2pl.stages import base, pixel_heads
from u2pl.weak import options as weak_options

with epy.lazy_imports():
  from input_pipeline import split_tags
  from input_pipeline.sources import fingerprints, tag_files
  from segcore.eval import evaluator
  from segcore.experiment import evaluation
  from segcore.models import heads as heads_lib
  from segcore.models import segmenter
  from segcore.train import loop
  from u2pl.weak import afa, panels


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeakOptions:
  """Options of weak supervision.

  Class 0 is the background, which no tag has to name.

  Attributes:
    data: data set with tags, or with masks, whose classes are the tags.
    split: name of the split that is trained on; its masks, if it has any, only
      measure the labels made from CAMs.
    tags: table or folder of labels of all images of the split, which replace
      those of the data set (see `tag_files`); '' to keep these.
    val_split: name of a split with masks that is evaluated during training; ''
      if there is none.
    follow: names of further splits with masks evaluated during training.
    learn: options of labels, losses and contrast.
    heads: options of the network's heads.
    start: parameters of encoder and decoder before step 0.
    crop: name and fields of a crop (see `transforms.CROPS`).
    flips: directions of random flips.
    recipe: images of a step, number of steps, optimizer.
  """

  data: datasets.DataOptions
  split: str = 'train'
  tags: str = options_lib.location_option(default='')
  val_split: str = 'val'
  follow: tuple[str, ...] = ()
  learn: weak_options.LearnOptions = weak_options.LearnOptions()
  heads: pixel_heads.HeadOptions = pixel_heads.HeadOptions()
  start: start_lib.Start = start_lib.Start()
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  recipe: update_lib.RecipeOptions

  def __post_init__(self):
    if self.recipe.accumulate != 1:
      raise ValueError(
        f'recipe.accumulate: expected 1, got {self.recipe.accumulate}: means '
        'over the classes of a batch and the bank need the whole batch'
      )
    if self.learn.needs_cams:
      base.check_first_step('class_steps', self.learn.class_steps, self.recipe)

  @property
  def evaluated(self) -> data_lib.LabeledData:
    """Returns the validation splits, the only ones that need masks."""
    return data_lib.LabeledData.of_validation(
      self.data, self.val_split, self.follow
    )


class WeakStage(base.ClassStage):
  """Trains on tags of images; reports on a split with masks, if any."""

  name = 'weak'
  options: WeakOptions

  @property
  def best_metric(self) -> str | None:
    """Returns the scalar of `val_metric`; None without a validation split."""
    return super().best_metric if self.options.val_split else None

  @property
  def zero_terms_until(self) -> int:
    """Returns the first step with all terms of the loss."""
    learn = self.options.learn
    return learn.class_steps + 1 if learn.contrast else 0

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the split to read, and the source of the initial parameters."""
    block = self.options
    kind = 'label' if block.learn.supervision == 'masks' else 'tags'
    if block.tags and kind == 'tags':
      kind = ''
    read = experiment_stage.SplitInput(block.data, block.split, kind)
    return experiment_stage.Inputs((read,), block.start)

  def content(self) -> dict[str, Any]:
    """Adds the tags that replace those of the data set."""
    content = super().content()
    if self.options.tags:
      path = pathlib.Path(self.options.tags)
      labels, _ = tag_files.read_image_tags(path, path, self._tagged.ids())
      content['tags'] = options_lib.options_digest(labels)
    return content

  def check_data(self) -> None:
    """Refuses leaking images, and data of a single class."""
    block, context = self.options, self.context
    trained = self._tagged
    self.check_num_classes(len(trained.classes))
    splits = (block.val_split, *block.follow)
    if 'evaluate' in self.experiment.stages:
      splits += self.experiment.evaluate.splits
    for name in dict.fromkeys(splits):
      if name and name != block.split:
        evaluated = context.open(block.data, name, 'label', self.name)
        fingerprints.check_splits_disjoint(
          trained.index, evaluated.index, (trained.name, evaluated.name)
        )

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of tagged images."""
    crop, _ = self.augmentations()
    return batch_lib.batch_spec(
      self.options.recipe.batch_size,
      self.size,
      label=self.options.learn.supervision == 'masks',
      num_tags=num_classes,
      valid=crop.ignores_padding,
    )

  def method(self, context: context_lib.Context, num_classes: int) -> 'afa.AFA':
    """Builds the method that the block `learn` describes."""
    block = self.options
    net = self.build_network(context, num_classes)
    return afa.AFA(
      segmenter=net,
      update=block.recipe.make_update(block.learn.parts, net.frozen_parameters),
      options=block.learn,
      num_classes=num_classes - 1,
    )

  def build_network(
    self, context: context_lib.Context, num_classes: int
  ) -> 'segmenter.Segmenter':
    """Builds the network with the heads that are trained."""
    block = self.options
    dtype = jnp.dtype(self.experiment.network.dtype)
    heads = {
      'tags': heads_lib.TagHead(num_classes - 1, block.learn.pooling),
      'logits': block.heads.build_classifier(
        num_classes, dtype, init_deviation=None
      ),
      'affinity': heads_lib.AffinityHead(),
      'rep': block.heads.build_representation(dtype),
    }
    return context.build(
      {name: heads[name] for name in block.learn.heads}, self.size
    )

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens the images with their tags."""
    del workspace
    split = self._tagged
    crop, flips = self.augmentations()
    # Masks of tagged images only measure the labels made from CAMs.
    kept = [kind for kind in ('tags', 'label') if kind in split.label_kinds]
    if crop.ignores_padding:
      kept.append('valid')
    console.print_line(
      f'weak: {len(split)} images of {split.name}, '
      f'{len(split.classes) - 1} classes beside {split.classes[0]}'
    )
    return {'': data_lib.ImageStream(split, crop, flips, tuple(kept))}

  def evaluation(
    self, trained: 'afa.AFA', streams: data_lib.Streams
  ) -> 'loop.EvaluateFn | None':
    """Builds the evaluation of a split with masks, and panels of labels."""
    block, functions = self.options, []
    if block.val_split:
      functions.append(
        evaluation.build_training_stage_evaluation(
          self, trained, block.evaluated
        )
      )
    if block.learn.needs_cams:
      stream = streams['']
      batch = data_lib.fixed_panel_batch(stream, evaluation.NUM_PANEL_ROWS)
      functions.append(
        panels.LabelPanels(
          trained, batch, stream.split.palette, self.context.mesh
        )
      )
    if not functions:
      return None
    return evaluator.combine_evaluation_summaries(*functions)

  @property
  def _tagged(self) -> datasets.Split:
    """Opens the images with their tags."""
    block = self.options
    split = self.context.open(block.data, block.split)
    if not block.tags:
      return split
    return split_tags.replace_tags(split, pathlib.Path(block.tags))

  def check_num_classes(self, num_classes: int) -> None:
    """Raises UserError unless there is a class beside the background."""
    if num_classes < 2:
      raise errors.UserError(
        f'{self.path}.data: expected the background and one class at least, '
        f'got {num_classes} in all'
      )
