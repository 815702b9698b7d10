"""Stage `segment_pixels`: label maps of clusters of pixels (MDC, PiCIE)."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pass_luss.benchmark import label_folders
from pass_luss.dense import mini_batch_kmeans, pixel_clustering
from pass_luss.protocols import segment as segment_lib
from pass_luss.stages import represent_pixels, segment
from runtime import console
from runtime.option_ranges import AtLeastOne
from segcore.eval import evaluator, gather, short_side
from segcore.experiment import experiment_stage
from segcore.train import method as method_lib
from segcore.train import train_state
from segcore.train import workspace as workspace_lib


@dataclasses.dataclass(frozen=True)
class SegmentPixelsOptions(segment.SegmentOptions):
  """Options of label maps of clusters of pixels.

  Attributes:
    inference: 'logits'.
    short_side: short side of the resized images, in pixels.
    border: width of the border of the training images, in cells of the map;
      the cluster that covers most of it is 'other'.
  """

  inference: Literal['logits'] = 'logits'
  short_side: int = 320
  border: AtLeastOne = 1


class OtherCluster(NamedTuple):
  """The cluster that is 'other'.

  Attributes:
    index: number of the cluster.
    share: share of the borders of the training images that it covers.
  """

  index: int
  share: float

  def summary(self) -> dict[str, float]:
    """Returns the fields for results.json."""
    return {'other_cluster': self.index, 'other_share_of_border': self.share}


class SegmentPixelsStage(segment.LussSegmentationStage):
  """Segments images by the clusters of their pixels."""

  name = 'segment_pixels'
  options: SegmentPixelsOptions
  trainer = represent_pixels.RepresentPixelsStage

  def inputs(self) -> experiment_stage.Inputs:
    """Returns also the training images, whose borders are read."""
    inputs = super().inputs()
    return dataclasses.replace(
      inputs, splits=(*inputs.splits, self.image_input())
    )

  def build_label_maps(
    self, workspace: workspace_lib.Workspace, model: segment.TrainedModel
  ) -> tuple[label_folders.LabelMapFunction, OtherCluster]:
    """Builds the function of label maps, and chooses the cluster 'other'."""
    del workspace
    block, context = self.options, self.context
    num_clusters = 1 + model.num_categories
    other = self._find_other(model.method, model.state, num_clusters)
    maps = segment_lib.label_map_function(
      short_side.LabelMaps(
        OtherFirst(model.method, other.index, num_clusters), block.short_side
      ),
      model.state,
      block.batch_size,
      context.mesh,
      context.operation.reading,
    )
    return maps, other

  def _find_other(
    self,
    method: pixel_clustering.PixelClustering,
    state: train_state.TrainState,
    num_clusters: int,
  ) -> OtherCluster:
    """Finds the cluster that covers most of the border of training images."""
    block, context = self.options, self.context

    def count(
      state: train_state.TrainState, images: Float[Array, 'B H W 3']
    ) -> Float[Array, 'B K']:
      labels = jnp.argmax(method.predict(state, images), axis=-1)
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
    counts = gather.predict_in_order(predictions, state).sum(axis=0)
    index = int(np.argmax(counts))
    return OtherCluster(index, float(counts[index] / counts.sum()))


@dataclasses.dataclass(frozen=True)
class OtherFirst:
  """Scores of clusters, of which one is moved to the front.

  Attributes:
    method: model that predicts scores of clusters.
    other: number of the cluster that becomes category 0.
    num_clusters: number of clusters.
  """

  method: method_lib.ScoreModel
  other: int
  num_clusters: int

  @property
  def order(self) -> Sequence[int]:
    """Returns the cluster of each category."""
    rest = (i for i in range(self.num_clusters) if i != self.other)
    return (self.other, *rest)

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w K']:
    """Computes the scores of the categories."""
    scores = self.method.predict(state, images)
    return scores[..., np.array(self.order)]


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
