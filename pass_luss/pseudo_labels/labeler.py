"""Step 2c of PASS: generates pseudo-labels of the training images (spec §3.3).

A pixel gets the category of its nearest centroid, or 'other' where its
attention is below a threshold.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int16, UInt8

from input_pipeline import datasets
from input_pipeline import loader as loader_lib
from input_pipeline.sources import masks
from pass_luss.benchmark import label_folders, png_format
from pass_luss.pretrain import embedding_ops
from pass_luss.pseudo_labels import attention as attention_lib
from pass_luss.pseudo_labels import (
  label_options,
  saliency,
  threshold_sweep,
)
from runtime import files, threads
from segcore.eval import evaluator, panels
from segcore.eval import short_side as short_side_lib
from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize
from segcore.train import train_state

# From an example to the foreground probability of its pixels, [H, W] in [0, 1].
ForegroundFunction = Callable[[Mapping[str, Any]], np.ndarray]


class ForegroundThreshold(NamedTuple):
  """Threshold of the foreground and where it comes from.

  Attributes:
    threshold: threshold τ; pixels of lower foreground are 'other'.
    miou: mIoU on the split it was chosen on; None where a config sets it.
    chosen_on: name of that split; '' where a config sets it.
    foreground_auc: probability that a pixel of an object has more foreground
      than one of 'other', on that split; None where it is unknown.
  """

  threshold: float
  miou: float | None = None
  chosen_on: str = ''
  foreground_auc: float | None = None

  def summary(self) -> dict[str, Any]:
    """Returns the fields for results.json.

    Scores on the split `chosen_on` are optimistic: the best of all candidates.
    """
    return {
      'threshold': self.threshold,
      'chosen_on': self.chosen_on,
      'foreground_auc': self.foreground_auc,
    }


def pseudo_category_function(
  segmenter: segmenter_lib.Segmenter,
  centroids: Float[np.ndarray, 'K D'],
  kind: label_options.Kind,
) -> short_side_lib.ForwardFn:
  """Builds the function from images to categories and attention of cells.

  Args:
    segmenter: the network; of kind 'attended', with the head `attention`.
    centroids: centroids of the categories 1…K.
    kind: unit of clustering; attention is 1 unless it is 'attended'.

  Returns:
    A function of state and images that returns [B, h, w, 2]: the category of
    the centroid of the largest cosine similarity, and the attention in [0, 1].
  """
  centroids = embedding_ops.l2_normalize_embeddings(jnp.asarray(centroids))

  def categories_and_attention(
    state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w 2']:
    if kind == 'attended':
      maps, weights = attention_lib.features_and_attention(
        segmenter, state, images
      )
      attention = jnp.mean(weights, axis=-1)
    else:
      deepest = segmenter.apply(
        train_state.train_state_variables(state), images, method='deepest_map'
      )
      maps = embedding_ops.upsample_embeddings(deepest)
      attention = jnp.ones(maps.shape[:3])
      if kind == 'image':
        # Centroids are of whole images: all cells get the image's category.
        mean = jnp.mean(maps, axis=(1, 2), keepdims=True)
        maps = jnp.broadcast_to(mean, maps.shape)
    similarities = embedding_ops.prototype_similarities(
      embedding_ops.l2_normalize_embeddings(maps), centroids.T
    )
    categories = 1 + jnp.argmax(similarities, axis=-1)
    return jnp.stack([categories.astype(jnp.float32), attention], axis=-1)

  return categories_and_attention


def categories_by_id(
  ids: Sequence[str], clusters: Int[np.ndarray, 'N']
) -> dict[str, int]:
  """Returns the category 1…K of each image that was clustered as a whole.

  Args:
    ids: ids of the images, in the order in which they were clustered.
    clusters: cluster of each image, from 0.
  """
  return dict(zip(ids, (1 + clusters).tolist(), strict=True))


def foreground_function(
  name: str, ids: Sequence[str]
) -> ForegroundFunction | None:
  """Builds the function that replaces attention; None for attention itself.

  Args:
    name: method of saliency, as in `LabelOptions.saliency`.
    ids: ids of the images whose maps must exist, if maps are read from a
      folder.

  Raises:
    UserError: a saliency map is missing.
  """
  if not name:
    return None
  if name == 'rc':
    return lambda example: saliency.region_contrast(example['image'])
  folder = pathlib.Path(name).expanduser()
  saliency.find_saliency_maps(folder, ids)

  def read_saliency(example: Mapping[str, Any]) -> np.ndarray:
    path = label_folders.label_map_path(folder, example['id'].item().decode())
    return saliency.read_saliency_map(path, tuple(example['size'].tolist()))

  return read_saliency


def category_label_map(
  categories: Int[np.ndarray, 'h w'],
  foreground: Float[np.ndarray, 'H W'],
  threshold: float,
) -> Int16[np.ndarray, 'H W']:
  """Resizes categories to the image; 0 ('other') below the threshold.

  Args:
    categories: category 1…K of each cell; resized by floor-nearest.
    foreground: attention or saliency of each pixel.
    threshold: threshold τ of the foreground.
  """
  labels = short_side_lib.resize_predicted_labels(
    categories, foreground.shape
  ).astype(np.int16)
  return np.where(foreground < threshold, np.int16(0), labels)


def resize_attention(
  attention: Float[np.ndarray, 'h w'], size: tuple[int, int]
) -> Float[np.ndarray, 'H W']:
  """Resizes attention to the size of the image, bilinearly."""
  rows, columns = map(_matrix, attention.shape, size)
  return rows @ attention.astype(np.float32) @ columns.T


# Many images share a height or width; a matrix is slow to build.
@functools.lru_cache(maxsize=512)
def _matrix(old: int, new: int) -> Float[np.ndarray, 'new old']:
  return resize.bilinear_resize_matrix(old, new)


@dataclasses.dataclass(frozen=True, eq=False)
class Labeler:
  """Generates label maps from predicted categories and their foreground.

  Attributes:
    predictor: predictor of category and foreground of each cell, [h, w, 2], as
      built from `pseudo_category_function`, or a class and its activation
      (CAM).
    state: training state of the network.
    mesh: the devices.
    batch_size: global number of images.
    reading: options of the input pipeline.
  """

  predictor: short_side_lib.FeatureMaps
  state: train_state.TrainState
  mesh: Mesh
  batch_size: int
  reading: loader_lib.ReadOptions

  def predict(
    self, split: datasets.Split, keep: tuple[str, ...] = ()
  ) -> Iterator[tuple[np.ndarray, np.ndarray, Mapping[str, Any]]]:
    """Yields (categories, attention, example) of each image of this host.

    Categories are [h, w], of cells; attention is [H, W], of pixels.

    Args:
      split: the images.
      keep: kinds of label that the examples keep.
    """
    predictions = evaluator.Predictions(
      split, self.predictor, self.batch_size, self.mesh, keep, self.reading
    )
    for grid, example in predictions(self.state):
      size = tuple(example['size'].tolist())
      attention = resize_attention(grid[..., 1], size)
      yield grid[..., 0].astype(np.int16), attention, example

  def label_maps(
    self,
    split: datasets.Split,
    threshold: float,
    foreground: ForegroundFunction | None = None,
    image_categories: Mapping[str, int] | None = None,
  ) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
    """Yields (label map, example) of each image of this host.

    Args:
      split: the images.
      threshold: threshold τ of the foreground.
      foreground: function that replaces attention; None for attention.
      image_categories: category of each image as a whole; None to assign to
        each cell the category of its nearest centroid.
    """

    def build(
      prediction: tuple[np.ndarray, np.ndarray, Mapping[str, Any]],
    ) -> tuple[np.ndarray, Mapping[str, Any]]:
      categories, attention, example = prediction
      if image_categories is not None:
        category = image_categories[example['id'].item().decode()]
        categories = np.full_like(categories, category)
      probability = attention if foreground is None else foreground(example)
      return category_label_map(categories, probability, threshold), example

    # In threads: computing region contrast is slow.
    return threads.map_in_threads(build, self.predict(split))

  def draw_panel(
    self,
    split: datasets.Split,
    folder: files.Path,
    foreground: ForegroundFunction | None = None,
  ) -> UInt8[np.ndarray, 'H W 3'] | None:
    """Draws image, foreground and label map of each image of this host.

    Returns None if this host has no image of the split.

    Args:
      split: the images.
      folder: folder of the label maps.
      foreground: function that replaces attention; None for attention.
    """
    rows, palette = [], masks.voc_palette(np.iinfo(np.int16).max)
    for _, attention, example in self.predict(split):
      label = png_format.read_imagenet_s_png(
        label_folders.label_map_path(folder, example['id'].item().decode()),
        png_format.MAX_CLASSES,
      )
      probability = attention if foreground is None else foreground(example)
      highest = max(float(probability.max()), 1e-6)
      gray = np.rint(255 * probability / highest).astype(np.uint8)
      rows.append(
        [
          example['image'],
          np.repeat(gray[..., None], 3, axis=-1),
          panels.colorize_label_map(label, palette[: int(label.max()) + 1]),
        ]
      )
    if not rows:
      return None
    title = 'attention' if foreground is None else 'saliency'
    return panels.draw_picture_grid(rows, ('image', title, 'pseudo-label'))

  def sweep_thresholds(
    self,
    split: datasets.Split,
    num_generated: int,
    num_classes: int,
    foreground: ForegroundFunction | None = None,
  ) -> threshold_sweep.ThresholdSweep:
    """Counts a split with masks for all thresholds; the same on every host.

    Args:
      split: images with masks.
      num_generated: number K of categories without 'other'.
      num_classes: number C of classes without 'other'.
      foreground: function that replaces attention; None for attention.
    """
    sweep = threshold_sweep.ThresholdSweep.empty(num_generated, num_classes)
    for categories, attention, example in self.predict(split, ('label',)):
      label = example['label']
      probability = attention if foreground is None else foreground(example)
      categories = short_side_lib.resize_predicted_labels(
        categories, label.shape
      )
      sweep.update(categories, probability, label)
    return sweep.merge_across_hosts()
