"""Stage `finetune`: supervised training on few pixel labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epy

from input_pipeline import batch as batch_lib
from runtime import files
from segcore import types
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.ops import class_weights as class_weights_lib
from segcore.train import method as method_lib
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from segcore.experiment import evaluation
  from segcore.models import heads
  from segcore.models.layers import resize
  from segcore.ops import losses
  from segcore.train import loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions(data_lib.LabeledData):
  """Options of fine-tuning on the labeled images.

  Attributes:
    start: parameters of encoder and decoder before step 0.
    crop: name and fields of a crop (see `transforms.CROPS`).
    flips: directions of random flips.
    recipe: batch size, number of steps, optimizer.
    class_weights: weights of the classes in the loss, from the labeled images.
  """

  start: start_lib.Start = start_lib.Start()
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  recipe: update_lib.RecipeOptions
  class_weights: class_weights_lib.LossClassWeightOptions = (
    class_weights_lib.LossClassWeightOptions()
  )


@dataclasses.dataclass(frozen=True)
class Finetune(method_lib.SingleLossMethod):
  """Segments images by a head `logits`; all parts train.

  Where the decoder ends at a lower resolution, logits are upsampled bilinearly
  to that of the labels, as in inference.

  Attributes:
    class_weights: weight of each class in the loss; None for equal weights.
  """

  class_weights: tuple[float, ...] | None = None

  def loss(self, params, batch_stats, batch, keys) -> update_lib.LossOutput:
    """Computes the sum over labeled pixels of the cross entropy, in nats."""
    logits, batch_stats = self.forward(
      params,
      batch_stats,
      batch_lib.batch_images_to_symmetric(batch['image']),
      'logits',
      keys,
    )
    logits = resize.resize_bilinear(logits, batch['label'].shape[1:3])
    total, count = losses.labeled_cross_entropy(
      logits, batch['label'], batch['mask'], self.class_weights
    )
    return update_lib.LossOutput(total, count, {}, batch_stats)


class FinetuneStage(experiment_stage.TrainingStage):
  """Trains encoder, decoder and head on the labeled images."""

  name = 'finetune'
  options: FinetuneOptions
  val_metric = 'miou'

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the splits to read, and the source of the initial parameters."""
    block = self.options
    labeled = experiment_stage.SplitInput(block.data, block.split, 'label')
    return experiment_stage.Inputs((labeled,), block.start)

  def check_data(self) -> None:
    """Refuses images that are both trained on and evaluated on."""
    self.context.check_disjoint(
      self.options, self.experiment.evaluate.splits, self.name
    )

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of images with label maps."""
    del num_classes
    return batch_lib.batch_spec(
      self.options.recipe.batch_size, self.size, label=True
    )

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens the labeled images."""
    labeled = self.context.labeled(self.options, self.name)
    data_lib.require_same_stage_labels(workspace, labeled)
    data_lib.warn_of_unseen_classes(
      labeled, self.context.absent_classes(self.options, self.name)
    )
    stream = data_lib.ImageStream(labeled, *self.augmentations(), ('label',))
    return {'': stream}

  def method(self, context: context_lib.Context, num_classes: int) -> Finetune:
    """Builds the segmentation method."""
    # Small initial logits: the loss starts at log(num_classes).
    head = heads.ConvHead(num_classes, nearest=True, init_scale=0.1)
    net = context.build({'logits': head}, self.size)
    update = self.options.recipe.make_update(
      ('encoder', 'decoder', 'heads'), net.frozen_parameters
    )
    return Finetune(net, update)

  def trained_method(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> Finetune:
    """Builds the method with the weights of the classes."""
    return dataclasses.replace(
      super().trained_method(workspace, streams),
      class_weights=data_lib.stage_class_weights(
        workspace, streams[''].split, self.options.class_weights
      ),
    )

  def write_outputs(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> Sequence[files.Path]:
    """Writes names and colors of the classes."""
    return data_lib.write_stage_classes(workspace, streams[''].split)

  def evaluation(
    self, trained: Finetune, streams: data_lib.Streams
  ) -> 'loop.EvaluateFn':
    """Builds the evaluation of `val_split` and `follow` during training."""
    del streams
    return evaluation.build_training_stage_evaluation(
      self, trained, self.options
    )
