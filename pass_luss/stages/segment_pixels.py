"""Stage `segment_pixels`: label maps of clusters of pixels (MDC, PiCIE)."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epy
from jaxtyping import Array, Float, Int

from input_pipeline import transforms
from pass_luss.dense import dense_options
from pass_luss.stages import represent_pixels, segment
from runtime import console, errors
from runtime.option_ranges import AtLeastOne
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_stage
from segcore.train import workspace as workspace_lib

with epy.lazy_imports():
  from pass_luss.benchmark import label_folders, matching
  from pass_luss.dense import (
    base_image,
    fresh_clusters,
    image_batches,
    mini_batch_kmeans,
    pixel_clustering,
  )
  from pass_luss.protocols import segment as segment_lib
  from segcore.distributed import sharding
  from segcore.eval import evaluator, gather, short_side
  from segcore.eval import metrics as metrics_lib
  from segcore.train import method as method_lib
  from segcore.train import train_state
  from segcore.weights import checkpoint_reader


@dataclasses.dataclass(frozen=True)
class SegmentPixelsOptions(segment.SegmentOptions):
  """Options of label maps of clusters of pixels.

  Attributes:
    inference: 'logits'.
    short_side: short side of the resized images, in pixels.
    other: how the cluster 'other' is chosen: 'border', the one that covers most
      of the border of the training images; or 'match', the one that is left to
      'other' if all clusters are matched on `match_on`, where 'other' counts as
      present in each image.
    border: width of the border, in cells of the map.
    classifier: scores of the clusters: the 'trained' classifier, which is the
      centroids of view 1 with PiCIE; the centroids of its 'view2'; or 'fresh'
      ones of whole images.
    fresh_split: split whose center crops have the fresh centroids; '' for the
      training images.
    kmeans: clustering for fresh centroids.
    seed: seed of that.
  """

  inference: Literal['logits'] = 'logits'
  short_side: int = 320
  other: Literal['border', 'match'] = 'border'
  border: AtLeastOne = 1
  classifier: Literal['trained', 'view2', 'fresh'] = 'trained'
  fresh_split: str = ''
  kmeans: dense_options.KmeansOptions = dense_options.KmeansOptions()
  seed: int = 0

  def __post_init__(self):
    super().__post_init__()
    if self.fresh_split and self.classifier != 'fresh':
      raise ValueError(
        "fresh_split: expected '' unless classifier='fresh', got "
        f'{self.fresh_split!r}'
      )

  def describe(self, by_names: bool) -> str:
    """Describes the protocol in words, for results.json.

    Args:
      by_names: whether categories are matched by name, not by overlap.
    """
    parts = [super().describe(by_names)]
    if self.other == 'match':
      parts.append("'other' is the cluster that matching leaves")
    if self.classifier == 'view2':
      parts.append('centroids of view 2')
    if self.classifier == 'fresh':
      parts.append(
        f'fresh centroids of {self.fresh_split or "training images"}'
      )
    return '; '.join(parts)


class OtherCluster(NamedTuple):
  """The cluster that is 'other'.

  Attributes:
    index: number of the cluster.
    share: share of the border that it covers, or of the images in which it
      occurs.
    of: what the share is of: the 'border' of the training images, or the
      'images' of the split on which clusters are matched.
  """

  index: int
  share: float
  of: Literal['border', 'images']

  def summary(self) -> dict[str, int | float]:
    """Returns the fields for results.json."""
    return {
      'other_cluster': self.index,
      f'other_share_of_{self.of}': self.share,
    }


class SegmentPixelsStage(segment.LussSegmentationStage):
  """Segments images by the clusters of their pixels."""

  name = 'segment_pixels'
  options: SegmentPixelsOptions
  trainer = represent_pixels.RepresentPixelsStage

  def check(self) -> None:
    """Checks batches, and that the trained method has the classifier.

    Raises:
      UserError: the classifier is that of a view which the method lacks, or the
        devices do not divide a batch.
    """
    super().check()
    block, learn = self.options, self.trained_by.options.learn
    if block.classifier == 'view2' and learn.name != 'picie':
      raise errors.UserError(
        f'{self.path}.classifier: expected trained or fresh with MDC, which '
        'has one view, got view2'
      )
    if block.classifier == 'fresh':
      sharding.check_batch_divides_devices(
        block.kmeans.batch_size,
        self.context.mesh,
        f'{self.path}.kmeans.batch_size',
      )

  def inputs(self) -> experiment_stage.Inputs:
    """Returns also the images whose pixels are clustered, or borders read."""
    block, inputs = self.options, super().inputs()
    read = [''] if block.other == 'border' else []
    if block.classifier == 'fresh' and block.fresh_split not in read:
      read.append(block.fresh_split)
    more = (self.image_input(split) for split in read)
    return dataclasses.replace(inputs, splits=(*inputs.splits, *more))

  def build_label_maps(
    self, workspace: workspace_lib.Workspace, model: segment.TrainedModel
  ) -> 'tuple[label_folders.LabelMapFunction, OtherCluster]':
    """Builds the function of label maps, and chooses the cluster 'other'."""
    block, context = self.options, self.context
    state = self._with_classifier(workspace, model)
    model = model._replace(state=state)
    find = {'border': self._find_at_border, 'match': self._match_other}
    other = find[block.other](model)
    maps = segment_lib.label_map_function(
      short_side.LabelMaps(
        OtherFirst(model.method, other.index, 1 + model.num_categories),
        block.short_side,
      ),
      state,
      block.batch_size,
      context.mesh,
      context.operation.reading,
    )
    return maps, other

  def _with_classifier(
    self, workspace: workspace_lib.Workspace, model: segment.TrainedModel
  ) -> 'train_state.TrainState':
    """Returns the trained state with the chosen classifier."""
    block, context = self.options, self.context
    if block.classifier == 'trained':
      return model.state
    if block.classifier == 'view2':
      fields = checkpoint_reader.read_checkpoint_fields(
        workspace.needed[self.trained_by.name] / 'checkpoints',
        ('clusterings',),
      )
      return pixel_clustering.with_centroids(
        model.state,
        jax.device_put(
          fields['clusterings']['view2']['centroids'],
          sharding.replicated_sharding(context.mesh),
        ),
      )
    split = self.open_images(block.fresh_split)
    console.print_line(
      f'{self.name}: clustering the pixels of {len(split):,} images'
    )
    stream = data_lib.ImageStream(
      split,
      base_image.BaseImage(block.short_side),
      transforms.RandomFlip(kinds=()),
    )
    return fresh_clusters.cluster_whole_images(
      model.method,
      model.state,
      image_batches.ImageBatches(
        stream.open(),
        block.kmeans.batch_size,
        context.mesh,
        context.operation.reading,
        workspace,
      ),
      block.kmeans,
      1 + model.num_categories,
      block.seed,
    )

  def _match_other(self, model: segment.TrainedModel) -> OtherCluster:
    """Finds the cluster that a matching of all clusters leaves to 'other'."""
    block, context = self.options, self.context
    split = self.open_images(block.match_on, 'label', 'matching', self.data)
    predictions = evaluator.Predictions(
      split,
      short_side.LabelMaps(model.method, block.short_side),
      block.batch_size,
      context.mesh,
      ('label',),
      context.operation.reading,
    )
    return match_other_cluster(
      (
        (labels, example['label'])
        for labels, example in predictions(model.state)
      ),
      1 + model.num_categories,
      len(split.classes) - 1,
      len(split),
    )

  def _find_at_border(self, model: segment.TrainedModel) -> OtherCluster:
    """Finds the cluster that covers most of the border of training images."""
    block, context = self.options, self.context
    num_clusters = 1 + model.num_categories

    def count(
      state: train_state.TrainState, images: Float[Array, 'B H W 3']
    ) -> Float[Array, 'B K']:
      labels = jnp.argmax(model.method.predict(state, images), axis=-1)
      return count_border_pixels(labels, block.border, num_clusters)

    split = self.open_images()
    console.print_line(
      f'{self.name}: counting the clusters at the border of {len(split):,} '
      "images, to find 'other'"
    )
    predictions = evaluator.Predictions(
      split,
      short_side.FeatureMaps(count, block.short_side, block.short_side),
      block.batch_size,
      context.mesh,
      (),
      context.operation.reading,
    )
    counts = gather.predict_in_order(predictions, model.state).sum(axis=0)
    index = int(np.argmax(counts))
    share = float(counts[index] / counts.sum())
    return OtherCluster(index, share, 'border')


@dataclasses.dataclass(frozen=True)
class OtherFirst:
  """Scores of clusters, of which one is moved to the front.

  Attributes:
    method: model that predicts scores of clusters.
    other: number of the cluster that becomes category 0.
    num_clusters: number of clusters.
  """

  method: 'method_lib.ScoreModel'
  other: int
  num_clusters: int

  @property
  def order(self) -> Sequence[int]:
    """Returns the cluster of each category."""
    rest = (i for i in range(self.num_clusters) if i != self.other)
    return (self.other, *rest)

  def predict(
    self, state: 'train_state.TrainState', images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w K']:
    """Computes the scores of the categories."""
    scores = self.method.predict(state, images)
    return scores[..., np.array(self.order)]


def match_other_cluster(
  maps: Iterable[tuple[Int[np.ndarray, 'H W'], Int[np.ndarray, 'H W']]],
  num_clusters: int,
  num_classes: int,
  num_images: int,
) -> OtherCluster:
  """Finds the cluster that a matching of all clusters leaves to 'other'.

  Clusters are matched with classes and 'other' by the number of images in which
  both occur, where 'other' occurs in each image.

  Args:
    maps: cluster of each pixel, from 0, and mask of each image of this host.
    num_clusters: number of clusters.
    num_classes: number C of classes without 'other'.
    num_images: number of images of all hosts.

  Raises:
    UserError: there are fewer clusters than classes with 'other'.
  """
  other = 1 + num_classes
  if num_clusters < other:
    raise errors.UserError(
      f'segment_pixels.other: expected border with {num_clusters} clusters, '
      f"fewer than {num_classes} classes and 'other', got match"
    )
  counts = matching.Cooccurrence.empty(num_clusters, other)
  pairs = (
    matching.present_category_ids(1 + labels, mask) for labels, mask in maps
  )
  merged = metrics_lib.merge_metrics_across_hosts(
    counts.update_all(
      (clusters, np.append(classes, other)) for clusters, classes in pairs
    )
  )
  index = merged.match().classes.index(other) - 1
  share = float(merged.counts[index, -1] / num_images)
  return OtherCluster(index, share, 'images')


def count_border_pixels(
  labels: Array, border: int, num_clusters: int
) -> Float[Array, 'B K']:
  """Counts the pixels of each cluster at the border of each map.

  Args:
    labels: cluster of each pixel, [B, h, w].
    border: width of the border, in pixels.
    num_clusters: number of clusters.
  """
  inside = jnp.zeros(labels.shape[1:], bool)
  inside = inside.at[border:-border, border:-border].set(True)
  at_border = jnp.where(inside, -1, labels)
  return jax.vmap(
    lambda each: mini_batch_kmeans.count_pixels(each, num_clusters)
  )(at_border)
