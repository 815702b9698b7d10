"""Stages `classify` and `classify1` to `classify3`: image-level labels.

The network of `classify` is a classifier or SEAM's. The rounds of SC-CAM follow
it: each trains on the sub-categories that `subdivide` found by the network
before it (spec comparators §4).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from etils import epy

from input_pipeline import batch as batch_lib
from input_pipeline import datasets
from pass_luss.stages import base
from pass_luss.weak import classifier_options
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
  from pass_luss.pseudo_labels import cluster as cluster_lib
  from pass_luss.weak import (
    image_classifier,
    image_tags,
    methods,
    subcategories,
  )

# Name of the stage whose clusters are the labels of images, where it runs.
_CLUSTERS = 'cluster_images'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
  """Options of training by image-level labels.

  Attributes:
    learn: method; its class is that of the options.
    crop: name and fields of a crop.
    flips: directions of random flips.
    colors: color augmentation.
    recipe: batch size, number of steps, optimizer.
    start: parameters of the encoder before step 0.
  """

  learn: classifier_options.Options = classifier_options.ClassifierOptions()
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  colors: color_augment.ColorOptions = color_augment.ColorOptions()
  recipe: update_lib.RecipeOptions
  start: start_lib.Start = start_lib.Start()


class ImageLabelStage(base.PassStage):
  """A stage that reads image-level labels: tags, or clusters of images."""

  @property
  def uses_clusters(self) -> bool:
    """Returns whether clusters are the labels, instead of tags."""
    return _CLUSTERS in self.experiment.stages

  @property
  def label_kind(self) -> str:
    """Returns the kind of label that the images must have."""
    return '' if self.uses_clusters else 'tags'

  @property
  def label_needs(self) -> tuple[str, ...]:
    """Returns the stage of the clusters, if they are the labels."""
    return (_CLUSTERS,) if self.uses_clusters else ()

  @property
  def has_class_names(self) -> bool:
    """Returns whether the labels are classes, which have names."""
    return not self.uses_clusters

  def settings(self) -> dict[str, object]:
    """Returns also the images and the kind of their labels."""
    labels = 'clusters' if self.uses_clusters else 'truth'
    images = self.experiment.images
    return {**super().settings(), 'images': images, 'labels': labels}

  def open_tagged(self, workspace: workspace_lib.Workspace) -> datasets.Split:
    """Opens the images with their labels as tags."""
    images = self.open_images('', self.label_kind, self.name)
    if not self.uses_clusters:
      return images
    return image_tags.with_cluster_tags(
      images,
      cluster_lib.read_cluster_assignments(workspace.needed[_CLUSTERS]),
    )


class ClassifyStage(ImageLabelStage, experiment_stage.TrainingStage):
  """Trains a network by the classes of images."""

  name = 'classify'
  options: ClassifyOptions

  @property
  def num_classes_from(self) -> datasets.DataOptions:
    """Returns the data set of the images."""
    return self.experiment.images.data

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stages of the start and of the labels."""
    return tuple(dict.fromkeys((*super().needs, *self.label_needs)))

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images, with tags, and the start."""
    return experiment_stage.Inputs(
      (self.image_input('', self.label_kind),), self.options.start
    )

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of images with tags, whose padding is marked."""
    learn = self.options.learn
    return batch_lib.batch_spec(
      self.options.recipe.batch_size,
      self.size,
      num_tags=methods.METHODS[type(learn)].num_tags(learn, num_classes - 1),
      valid=True,
    )

  def method(
    self, context: context_lib.Context, num_classes: int
  ) -> 'image_classifier.ImageClassifier':
    """Builds the classifier on the network, and its update."""
    block = self.options
    cls = methods.METHODS[type(block.learn)]
    heads = cls.heads(block.learn, num_classes - 1)
    net = context.build(heads, self.size)
    update = block.recipe.make_update(
      ('encoder', 'heads'), net.frozen_parameters
    )
    return cls(net, update, block.learn, block.colors)

  def trained_method(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> 'image_classifier.ImageClassifier':
    """Builds the classifier of the classes of the images."""
    del workspace, streams
    return self.method(self.context, len(self.open_images().classes))

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens the images with their tags."""
    keep = ('tags', 'valid')
    split = self.open_trained(workspace)
    return {'': data_lib.ImageStream(split, *self.augmentations(), keep)}

  def open_trained(self, workspace: workspace_lib.Workspace) -> datasets.Split:
    """Opens the images with all tags that are trained on."""
    return self.open_tagged(workspace)

  def write_outputs(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> Sequence[files.Path]:
    """Writes names and colors of the classes."""
    del streams
    return data_lib.write_stage_classes(workspace, self.open_tagged(workspace))


class ClassifyRoundStage(ClassifyStage):
  """Trains on classes and their sub-categories, which a stage assigned.

  Attributes:
    subdivided_by: name of that stage.
  """

  subdivided_by: ClassVar[str]

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stages of start, labels and sub-categories."""
    return (*super().needs, self.subdivided_by)

  def open_trained(self, workspace: workspace_lib.Workspace) -> datasets.Split:
    """Opens the images with classes and sub-categories as tags."""
    return image_tags.with_subcategory_tags(
      self.open_tagged(workspace),
      subcategories.read_subcategories(workspace.needed[self.subdivided_by]),
      self.options.learn.num_subcategories,
    )


class ClassifyRound1Stage(ClassifyRoundStage):
  """Trains the first round of SC-CAM."""

  name = 'classify1'
  options: ClassifyOptions
  subdivided_by = 'subdivide1'


class ClassifyRound2Stage(ClassifyRoundStage):
  """Trains the second round of SC-CAM."""

  name = 'classify2'
  options: ClassifyOptions
  subdivided_by = 'subdivide2'


class ClassifyRound3Stage(ClassifyRoundStage):
  """Trains the third round of SC-CAM."""

  name = 'classify3'
  options: ClassifyOptions
  subdivided_by = 'subdivide3'


STAGES: Mapping[str, type[ClassifyStage]] = {
  each.name: each
  for each in (
    ClassifyStage,
    ClassifyRound1Stage,
    ClassifyRound2Stage,
    ClassifyRound3Stage,
  )
}
