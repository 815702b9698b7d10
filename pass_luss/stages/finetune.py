"""Stages `finetune` and `semi`: training to segment (step 3)."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from etils import epy

from input_pipeline import batch as batch_lib
from input_pipeline import datasets
from pass_luss.stages import base
from runtime import files
from segcore import types
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.ops import color_augment
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss import finetune as finetune_lib
  from pass_luss.benchmark import label_folders
  from pass_luss.pretrain import heads as heads_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
  """Options of fine-tuning, on pseudo-labels or on given masks.

  Attributes:
    split: name of the split whose masks are trained on; '' for the
      pseudo-labels of the images.
    crop: name and fields of a crop (see `transforms.CROPS`).
    flips: directions of random flips.
    reduction: factor by which label maps are downsampled.
    recipe: batch size, number of steps, optimizer.
    repeated_upsampling: whether logits are upsampled by 2 repeatedly, instead
      of at once to the size of the reduced label maps.
    output_stride: output stride of the encoder, reached by dilating its last
      blocks; 0 for that of `network`.
    colors: color augmentation.
  """

  split: str = ''
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  reduction: int = 2
  recipe: update_lib.RecipeOptions
  repeated_upsampling: bool = False
  output_stride: int = 0
  colors: color_augment.ColorOptions = color_augment.ColorOptions()

  def __post_init__(self):
    if self.reduction < 1:
      raise ValueError(f'reduction: expected 1 or more, got {self.reduction}')


class SegmenterStage(base.PassStage, experiment_stage.TrainingStage):
  """Trains the pretrained encoder to segment."""

  level = 'pixels'

  @property
  def num_classes_from(self) -> datasets.DataOptions:
    """Returns the data set of the images."""
    return self.experiment.images.data

  def settings(self) -> dict[str, object]:
    """Returns network, block and images."""
    return {**super().settings(), 'images': self.experiment.images}

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of images with label maps."""
    del num_classes
    return batch_lib.batch_spec(
      self.options.recipe.batch_size, self.size, label=True
    )

  def method(
    self, context: context_lib.Context, num_classes: int
  ) -> 'finetune_lib.Finetune':
    """Builds the segmentation method."""
    block = self.options
    dtype = jnp.dtype(context.network.dtype)
    heads = {'logits': heads_lib.Classifier(num_classes, dtype=dtype)}
    context = context.with_output_stride(block.output_stride)
    net = context.build(heads, self.size)
    return finetune_lib.Finetune(
      net,
      block.recipe.make_update(('encoder', 'heads'), net.frozen_parameters),
      self.level,
      block.reduction,
      block.repeated_upsampling,
      block.colors,
    )

  @abc.abstractmethod
  def open_labeled(self, workspace: workspace_lib.Workspace) -> datasets.Split:
    """Opens the images with the label maps that are trained on."""

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens images with label maps."""
    split = self.open_labeled(workspace)
    return {'': data_lib.ImageStream(split, *self.augmentations(), ('label',))}

  def write_outputs(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> Sequence[files.Path]:
    """Writes names and colors of the classes."""
    return data_lib.write_stage_classes(workspace, streams[''].split)


class FinetuneStage(SegmenterStage):
  """Trains on the pseudo-labels of stage `label`."""

  name = 'finetune'
  options: FinetuneOptions

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stages of the encoder and of the pseudo-labels."""
    return ('represent', 'label')

  @property
  def level(self) -> str:
    """Returns 'images' where each image has one category, else 'pixels'."""
    return 'images' if self.experiment.cluster.kind == 'image' else 'pixels'

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images and the pretrained encoder."""
    return experiment_stage.Inputs(
      (self.image_input(),), start_lib.Start('represent', ('encoder',))
    )

  def open_labeled(self, workspace: workspace_lib.Workspace) -> datasets.Split:
    """Opens the images with their pseudo-labels."""
    images = self.open_images()
    return label_folders.with_pseudo_labels(
      images, workspace.needed['label'] / 'train', len(images.classes) - 1
    )


class SemiStage(SegmenterStage):
  """Trains on the masks of few images: the semi-supervised protocol."""

  name = 'semi'
  options: FinetuneOptions

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images with masks and the pretrained encoder."""
    return experiment_stage.Inputs(
      (self.image_input(self.options.split, 'label'),),
      start_lib.Start('represent', ('encoder',)),
    )

  def open_labeled(self, workspace: workspace_lib.Workspace) -> datasets.Split:
    """Opens the images with their masks."""
    return self.open_images(self.options.split, 'label', self.name)
