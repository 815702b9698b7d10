"""Stage `classify`: pretraining of the encoder on image-level labels."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from etils import epy

from input_pipeline import batch as batch_lib
from input_pipeline import datasets
from runtime import errors
from segcore import types
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.train import method as method_lib
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from segcore.eval import evaluator, inference, metrics
  from segcore.experiment import evaluation
  from segcore.models import heads
  from segcore.ops import losses
  from segcore.train import loop

# Images whose number of tags is checked before training.
_NUM_CHECKED = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
  """Options of the classifier.

  Attributes:
    data: data set with tags.
    split: name of the training split.
    val_split: name of the validation split.
    kind: 'softmax' where an image has one class, 'sigmoid' where several.
    crop: name and fields of a crop (see `transforms.CROPS`).
    flips: directions of random flips.
    recipe: batch size, number of steps, optimizer.
  """

  data: datasets.DataOptions
  split: str = 'train'
  val_split: str = 'val'
  kind: Literal['softmax', 'sigmoid']
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  recipe: update_lib.RecipeOptions


@dataclasses.dataclass(frozen=True)
class Classify(method_lib.SingleLossMethod):
  """Classifies whole images by a head `tags` on the encoder.

  Attributes:
    kind: 'softmax' where each image has one class, 'sigmoid' where it may have
      several.
  """

  kind: Literal['softmax', 'sigmoid']

  head = 'tags'

  def loss(self, params, batch_stats, batch, keys) -> update_lib.LossOutput:
    """Computes the sum over images of the cross entropy of tags, in nats."""
    scores, batch_stats = self.forward(
      params,
      batch_stats,
      batch_lib.batch_images_to_symmetric(batch['image']),
      self.head,
      keys,
    )
    total, count = losses.masked_sum_and_count(
      losses.tag_cross_entropy(scores, batch['tags'], self.kind),
      batch['mask'],
    )
    return update_lib.LossOutput(total, count, {}, batch_stats)


class ClassifyStage(experiment_stage.TrainingStage):
  """Trains the encoder to classify images."""

  name = 'classify'
  options: ClassifyOptions
  val_metric = 'accuracy'

  def inputs(self) -> experiment_stage.Inputs:
    """Returns both splits, with tags."""
    block = self.options
    return experiment_stage.Inputs(
      tuple(
        experiment_stage.SplitInput(block.data, split, 'tags')
        for split in (block.split, block.val_split)
      )
    )

  def check_data(self) -> None:
    """Refuses 'softmax' for images with several tags."""
    block = self.options
    for name in (block.split, block.val_split):
      split = self.context.open(block.data, name, 'tags', self.name)
      check_classify_stage_tags(split, block.kind)

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of images with tags."""
    return batch_lib.batch_spec(
      self.options.recipe.batch_size,
      self.size,
      label=False,
      num_tags=num_classes,
    )

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens the training split."""
    block = self.options
    split = self.context.open(block.data, block.split, 'tags', self.name)
    stream = data_lib.ImageStream(split, *self.augmentations(), ('tags',))
    return {'': stream}

  def method(self, context: context_lib.Context, num_classes: int) -> Classify:
    """Builds the classifier with a head of `num_classes` scores."""
    net = context.build({'tags': heads.PoolHead(num_classes)}, self.size)
    update = self.options.recipe.make_update(
      ('encoder', 'heads'), net.frozen_parameters
    )
    return Classify(net, update, self.options.kind)

  def evaluation(
    self, trained: Classify, streams: data_lib.Streams
  ) -> 'loop.EvaluateFn':
    """Builds the evaluation of the accuracy on the validation split."""
    block = self.options
    val = self.context.open(block.data, block.val_split, 'tags', self.name)
    accuracy = evaluation.build_stage_evaluator(
      self.context,
      val,
      inference.ImageScores(trained, self.context.size_multiple),
      metrics.Accuracy.empty(),
      'tags',
      block.recipe.batch_size,
    )
    return evaluator.combine_evaluators({block.val_split: accuracy})


def check_classify_stage_tags(split: datasets.Split, kind: str) -> None:
  """Raises UserError for 'softmax' where an image does not have one tag."""
  if kind != 'softmax':
    return
  for i in range(min(len(split), _NUM_CHECKED)):
    record = split.records[i]
    if len(record['tags']) != 1:
      raise errors.UserError(
        f"config.classify.kind: expected 'sigmoid', got 'softmax': image "
        f'{record["id"].decode()} of {split.name} has {len(record["tags"])} '
        'tags'
      )
