"""Stage `cluster_images`: a cluster for each image, as its label."""

import dataclasses

from etils import epy

from pass_luss.pseudo_labels import label_options
from pass_luss.stages import cluster
from segcore.experiment import experiment_stage
from segcore.experiment import start as start_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from segcore.models import segmenter
  from segcore.train import train_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterImagesOptions(label_options.ClusterOptions):
  """Options of the clusters of images.

  Attributes:
    kind: 'image': average-pooled features are clustered.
    start: encoder whose features are clustered.
  """

  kind: label_options.Kind = 'image'
  start: start_lib.Start

  def __post_init__(self):
    super().__post_init__()
    if self.kind != 'image':
      raise ValueError(f"kind: expected 'image', got {self.kind!r}")
    if self.start.take != ('encoder',):
      raise ValueError(
        f"start.take: expected ('encoder',), got {self.start.take}: name a "
        'stage or a weight file in start.path'
      )


class ClusterImagesStage(cluster.ClusterStage):
  """Clusters the images by the features of any encoder."""

  name = 'cluster_images'
  options: ClusterImagesOptions

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stage of the encoder, if it is one of the experiment."""
    return self.options.start.needs(self.context.stages)

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images and the encoder."""
    return experiment_stage.Inputs((self.image_input(),), self.options.start)

  def build_network(self) -> 'segmenter.Segmenter':
    """Builds the encoder in float32."""
    side = self.options.crop
    return self.exact_context.build({}, (side, side))

  def network_state(
    self, workspace: workspace_lib.Workspace
  ) -> 'train_state.TrainState':
    """Reads the parameters of the encoder that `start` names."""
    side = self.options.crop
    variables = self.options.start.read(
      workspace, self.build_network(), (side, side)
    )
    return train_state.inference_train_state(variables, self.context.mesh)
