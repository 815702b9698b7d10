"""Stages `subdivide1` to `subdivide3`: SC-CAM's sub-categories of images."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
from etils import epy

from pass_luss import image_sizes
from pass_luss.stages import base, classify
from runtime import files
from runtime.option_ranges import AtLeastOne
from segcore.experiment import experiment_stage
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.pseudo_labels import features
  from pass_luss.weak import image_tags, subcategories
  from segcore.eval import short_side


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubdivideOptions(image_sizes.WholeImageOptions):
  """Options of the k-means of the images of each class.

  Attributes:
    iterations: largest number of assignments and updates.
    restarts: number of k-means runs, of which the best is kept.
    batch_size: global number of images of a batch; changes no result.
    seed: seed of the initial centroids.
  """

  iterations: AtLeastOne = 300
  restarts: AtLeastOne = 10
  batch_size: AtLeastOne = 64
  seed: int = 0


class SubdivideStage(classify.ImageLabelStage, base.InferenceStage):
  """Divides the images of each class by the features of a classifier.

  Attributes:
    features_of: name of the stage that trained the classifier.
    read_by: name of the stage that trains on the sub-categories.
  """

  options: SubdivideOptions
  features_of: ClassVar[str]
  read_by: ClassVar[str]

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stages of the classifier and of the labels."""
    return (self.features_of, *self.label_needs)

  @property
  def count(self) -> int:
    """Returns the number of sub-categories of a class."""
    return getattr(self.experiment, self.read_by).learn.num_subcategories

  def settings(self) -> Any:
    """Returns block, images, labels and the number of sub-categories."""
    return {**super().settings(), 'count': self.count}

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images, with tags."""
    return experiment_stage.Inputs((self.image_input('', self.label_kind),))

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Writes the sub-categories of all images."""
    block, context = self.options, self.exact_context
    split = self.open_tagged(workspace)
    trainer = classify.STAGES[self.features_of](self.experiment, self.context)
    net = trainer.method(context, len(split.classes)).segmenter
    extracted = features.extract_clustering_features(
      split,
      short_side.FeatureMaps(
        subcategories.pooled_feature_function(net),
        block.short_side,
        input_multiple=block.size_multiple,
      ),
      self.read_state(workspace.needed[self.features_of])[1],
      block.batch_size,
      context.mesh,
      context.operation.reading,
      workspace,
    )
    assigned = subcategories.assign_subcategories(
      extracted,
      image_tags.read_image_tags(split),
      self.count,
      block.restarts,
      block.iterations,
      block.seed,
    )
    # On host 0 only; all hosts compute the same.
    if jax.process_index() == 0:
      subcategories.write_subcategories(workspace.directory, assigned)
    features.delete_feature_files(workspace)
    return [workspace.directory / subcategories.FILE]


class Subdivide1Stage(SubdivideStage):
  """Divides by the features of the plain classifier."""

  name = 'subdivide1'
  options: SubdivideOptions
  features_of, read_by = 'classify', 'classify1'


class Subdivide2Stage(SubdivideStage):
  """Divides by the features of the first round."""

  name = 'subdivide2'
  options: SubdivideOptions
  features_of, read_by = 'classify1', 'classify2'


class Subdivide3Stage(SubdivideStage):
  """Divides by the features of the second round."""

  name = 'subdivide3'
  options: SubdivideOptions
  features_of, read_by = 'classify2', 'classify3'
