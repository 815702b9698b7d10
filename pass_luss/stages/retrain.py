"""Stages `retrain` and `segment_retrained`: fine-tuning on labels of CAMs."""

import dataclasses

from etils import epy

from input_pipeline import datasets
from pass_luss.stages import classify, finetune, segment, segment_cam
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.benchmark import label_folders


class RetrainStage(classify.ImageLabelStage, finetune.SegmenterStage):
  """Trains the classifier's encoder on the label maps of `label_cam`."""

  name = 'retrain'
  options: finetune.FinetuneOptions

  @property
  def _classifier(self) -> str:
    """Returns the name of the stage that trains the classifier."""
    return self.experiment.segment_cam.trained_by

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stages of the encoder and of the label maps."""
    return (self._classifier, segment_cam.LabelCamStage.name)

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images and the classifier's encoder."""
    return experiment_stage.Inputs(
      (self.image_input(),), start_lib.Start(self._classifier, ('encoder',))
    )

  def open_labeled(self, workspace: workspace_lib.Workspace) -> datasets.Split:
    """Opens the images with the label maps of their class."""
    images = self.open_images()
    folder = workspace.needed[segment_cam.LabelCamStage.name] / 'train'
    labeled = label_folders.with_pseudo_labels(
      images, folder, len(images.classes) - 1
    )
    if self.uses_clusters:
      return labeled
    return dataclasses.replace(
      labeled, classes=images.classes, palette=images.palette
    )


class SegmentRetrainedStage(
  classify.ImageLabelStage, segment.LussSegmentationStage
):
  """Segments images by the network that was trained on labels of CAMs."""

  name = 'segment_retrained'
  options: segment.SegmentOptions
  trainer = RetrainStage
