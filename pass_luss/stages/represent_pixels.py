"""Stage `represent_pixels`: training on clusters of pixels (MDC, PiCIE)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from etils import epy

from input_pipeline import batch as batch_lib
from input_pipeline import datasets, transforms
from pass_luss.dense import dense_options
from pass_luss.stages import base, represent
from runtime import files
from runtime.option_ranges import AtLeastOne, CheckedOptions
from segcore import types
from segcore.experiment import context as context_lib
from segcore.experiment import data as data_lib
from segcore.experiment import start as start_lib
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from input_pipeline.sources import masks
  from pass_luss.dense import (
    base_image,
    cluster_head,
    epoch_clusters,
    image_batches,
    methods,
    pixel_clustering,
  )
  from segcore.distributed import sharding
  from segcore.train import callbacks


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentPixelsOptions(CheckedOptions):
  """Options of training on clusters of pixels.

  Attributes:
    learn: method; its class is that of the options.
    base_side: side of the images from which views are computed, in pixels: a
      center crop of images of this short side.
    side: side of the images of the network, in pixels.
    kmeans: clustering at the start of each epoch.
    recipe: batch size, number of steps, optimizer.
    start: parameters of the encoder before step 0.
  """

  learn: dense_options.Options
  base_side: AtLeastOne = 640
  side: AtLeastOne = 320
  kmeans: dense_options.KmeansOptions = dense_options.KmeansOptions()
  recipe: update_lib.RecipeOptions
  start: start_lib.Start = start_lib.Start()

  def __post_init__(self):
    super().__post_init__()
    if self.base_side < self.side:
      raise ValueError(
        f'base_side: expected at least side={self.side}, got {self.base_side}'
      )
    represent.check_whole_batch(self.recipe)


class RepresentPixelsStage(base.ImagesStage):
  """Trains a network to predict the clusters of its own pixels."""

  name = 'represent_pixels'
  options: RepresentPixelsOptions

  @property
  def size(self) -> tuple[int, int]:
    """Returns height and width of the images of the network."""
    return (self.options.side, self.options.side)

  @property
  def size_path(self) -> str:
    """Returns the path of the field that sets the size."""
    return f'{self.path}.side'

  def check(self) -> None:
    """Checks that batches and images fit devices and network."""
    super().check()
    sharding.check_batch_divides_devices(
      self.options.kmeans.batch_size,
      self.context.mesh,
      f'{self.path}.kmeans.batch_size',
    )

  def batch_spec(self, num_classes: int) -> types.BatchSpec:
    """Returns the spec of base images and their indices."""
    del num_classes
    rows, side = self.options.recipe.batch_size, self.options.base_side
    return {
      **batch_lib.batch_spec(rows, (side, side)),
      'index': jax.ShapeDtypeStruct((rows,), jnp.int32),
    }

  def method(
    self, context: context_lib.Context, num_classes: int
  ) -> 'pixel_clustering.PixelClustering':
    """Builds the method, with a cluster for each class and 'other'."""
    block = self.options
    count = block.learn.clusters or num_classes
    net = context.build(
      {cluster_head.NAME: cluster_head.ClusterHead(count)}, self.size
    )
    update = block.recipe.make_update(
      ('encoder', 'decoder'), net.frozen_parameters
    )
    cls = methods.METHODS[type(block.learn)]
    return cls(net, update, block.learn, count, block.side)

  def streams(self, workspace: workspace_lib.Workspace) -> data_lib.Streams:
    """Opens the images, with their indices."""
    del workspace
    return {
      '': data_lib.ImageStream(
        self.open_images(),
        base_image.BaseImage(self.options.base_side),
        transforms.RandomFlip(kinds=()),
        ('index',),
      )
    }

  def refresh(
    self,
    trained: 'pixel_clustering.PixelClustering',
    streams: data_lib.Streams,
    workspace: workspace_lib.Workspace,
  ) -> 'callbacks.Refresh':
    """Returns the clustering at the start of each epoch."""
    recipe, stream = self.options.recipe, streams['']
    every = max(len(stream.split) // recipe.batch_size, 1)
    images = image_batches.ImageBatches(
      stream.open(),
      self.options.kmeans.batch_size,
      self.context.mesh,
      self.context.operation.reading,
      workspace,
    )
    clusters = epoch_clusters.EpochClusters(
      trained, images, self.options.kmeans, every, recipe.seed
    )
    return callbacks.Refresh(0, every, clusters)

  def write_outputs(
    self, workspace: workspace_lib.Workspace, streams: data_lib.Streams
  ) -> Sequence[files.Path]:
    """Writes names and colors of the categories."""
    split = streams[''].split
    count = self.options.learn.clusters or len(split.classes)
    return data_lib.write_stage_classes(
      workspace, with_categories(split, count - 1)
    )


def with_categories(split: datasets.Split, count: int) -> datasets.Split:
  """Returns a split whose classes are 'other' and generated categories.

  Args:
    split: the images.
    count: number of categories without 'other'.
  """
  return dataclasses.replace(
    split,
    classes=('other', *(f'category {i + 1}' for i in range(count))),
    palette=masks.voc_palette(count + 1),
  )
