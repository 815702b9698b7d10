"""Stages `cluster_masks` and `segment_masks`: label maps of MaskContrast."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from etils import epy

from pass_luss import image_sizes
from pass_luss.stages import cluster, represent_masks, segment
from runtime import console, errors, files
from runtime.option_ranges import AtLeastOne
from segcore.experiment import experiment_stage
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.benchmark import label_folders
  from pass_luss.dense import mask_clusters
  from pass_luss.pseudo_labels import cluster as cluster_lib
  from pass_luss.pseudo_labels import features, labeler
  from segcore.eval import short_side

# Whitening of the descriptors, in the folder of `cluster_masks`.
_MEAN, _MATRIX = 'mean.npy', 'matrix.npy'


@dataclasses.dataclass(frozen=True)
class ClusterMasksOptions(image_sizes.WholeImageOptions):
  """Options of clusters of masks.

  Attributes:
    split: split whose masks are clustered; '' for the training images.
    rows_per_batch: number of images of a batch of mini-batch k-means.
    batch_size: global number of images of a batch of the network; does not
      change the result.
    seed: seed of k-means.
  """

  split: str = ''
  rows_per_batch: AtLeastOne = 1000
  batch_size: AtLeastOne = 16
  seed: int = 0


class ClusterMasksStage(cluster.ClusteredStage):
  """Clusters images by the descriptors of their masks."""

  name = 'cluster_masks'
  options: ClusterMasksOptions

  @property
  def trained_by(self) -> represent_masks.RepresentMasksStage:
    """Returns the stage that trains the network."""
    return represent_masks.RepresentMasksStage(
      self.experiment, self.exact_context
    )

  def inputs(self) -> experiment_stage.Inputs:
    """Returns the images whose masks are clustered."""
    return experiment_stage.Inputs((self.image_input(self.options.split),))

  def check_data(self) -> None:
    """Raises UserError if there are fewer images than clusters."""
    split = self.open_images(self.options.split)
    count = len(split.classes) - 1
    if len(split) < count:
      raise errors.UserError(
        f'config.images: expected at least {count} images to cluster, one for '
        f'each class, got {len(split)} in {split.name}: choose data with more '
        'images'
      )

  def run(self, workspace: workspace_lib.Workspace) -> Sequence[files.Path]:
    """Writes the whitening and the centroids."""
    block, context = self.options, self.context
    split = self.open_images(block.split)
    rows = features.extract_clustering_features(
      split,
      self.predictor(mask_clusters.descriptor_function(self.build_network())),
      self.network_state(workspace),
      block.batch_size,
      context.mesh,
      context.operation.reading,
      workspace,
    )
    console.print_line(
      f'{self.name}: {np.count_nonzero(rows.any(axis=1)):,} of {len(rows):,} '
      'images have salient pixels'
    )
    whitening = mask_clusters.fit_whitening(rows)
    kmeans = mask_clusters.RowKmeans(
      len(split.classes) - 1, block.rows_per_batch, block.seed
    )
    centroids = kmeans.fit((rows - whitening.mean) @ whitening.matrix)
    outputs = {
      _MEAN: whitening.mean,
      _MATRIX: whitening.matrix,
      cluster_lib.CENTROIDS: centroids,
    }
    if jax.process_index() == 0:
      for name, array in outputs.items():
        features.write_feature_array(workspace.directory / name, array)
    features.delete_feature_files(workspace)
    return [workspace.directory / name for name in outputs]

  def predictor(
    self, function: 'short_side.ForwardFn'
  ) -> 'short_side.FeatureMaps':
    """Builds the predictor that applies a function to resized images."""
    block = self.options
    return short_side.FeatureMaps(
      function, block.short_side, input_multiple=block.size_multiple
    )


@dataclasses.dataclass(frozen=True)
class SegmentMasksOptions(segment.SegmentOptions):
  """Options of label maps of MaskContrast.

  Attributes:
    inference: 'logits': those of saliency, and the cluster of the image.
  """

  inference: Literal['logits'] = 'logits'


class SegmentMasksStage(segment.LussSegmentationStage):
  """Segments images by their saliency and by the cluster of their mask."""

  name = 'segment_masks'
  options: SegmentMasksOptions
  trainer = represent_masks.RepresentMasksStage

  @property
  def needs(self) -> tuple[str, ...]:
    """Returns the stages of the network and of the clusters."""
    return (*super().needs, ClusterMasksStage.name)

  def build_label_maps(
    self, workspace: workspace_lib.Workspace, model: segment.TrainedModel
  ) -> 'tuple[label_folders.LabelMapFunction, None]':
    """Builds the function of label maps."""
    clustered = ClusterMasksStage(self.experiment, self.context)
    folder = workspace.needed[clustered.name]
    mean, matrix = (
      features.read_feature_array(folder / name) for name in (_MEAN, _MATRIX)
    )
    function = mask_clusters.category_function(
      model.method.segmenter,
      mask_clusters.Whitening(mean, matrix),
      np.asarray(cluster_lib.read_centroids(folder)),
    )
    by_category = labeler.Labeler(
      clustered.predictor(function),
      model.state,
      self.context.mesh,
      self.options.batch_size,
      self.context.operation.reading,
    )
    return (
      lambda split: by_category.label_maps(split, mask_clusters.THRESHOLD),
      None,
    )
