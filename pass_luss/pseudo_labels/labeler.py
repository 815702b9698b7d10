"""Step 2c of PASS: a label map for each training image (spec §3.3).

A pixel has the category whose centroid is nearest, or 'other' where less
attention is paid to it than a threshold.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int16, Int64, UInt8

from input_pipeline import datasets
from input_pipeline import loader as loader_lib
from input_pipeline.sources import masks
from pass_luss.benchmark import label_folders, matching, png_format
from pass_luss.pretrain import embedding_ops
from pass_luss.pseudo_labels import attention as attention_lib
from pass_luss.pseudo_labels import features, saliency
from runtime import files, threads
from segcore.eval import evaluator, metrics, panels
from segcore.eval import short_side as short_side_lib
from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize
from segcore.train import train_state

# Thresholds that are tried where one is chosen.
THRESHOLDS = tuple(round(0.01 * i, 2) for i in range(81))
# From an example to what says how much each pixel counts, in [0, 1].
ForegroundFunction = Callable[[Mapping[str, Any]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class LabelOptions:
  """How images are labeled.

  Attributes:
    threshold: τ: less attention than this makes a pixel 'other'; negative: the
      one is taken of which labels agree best with the masks of `choose_on`, as
      the released code does.
    choose_on: split with masks, for a negative threshold only.
    short_side: of the images.
    batch_size: global number of images; changes nothing of what is found.
    saliency: what takes the place of attention: '' nothing, 'rc' region
      contrast, else the folder of a map for each image.
    report: splits with masks that are labeled and scored too.
  """

  threshold: float = -1.0
  choose_on: str = 'val'
  short_side: int = 256
  batch_size: int = 64
  saliency: str = ''
  report: tuple[str, ...] = ('val',)

  def __post_init__(self):
    if self.threshold > 1:
      raise ValueError(
        f'threshold: found {self.threshold}, expected at most 1, or negative'
      )

  def describe(self, kind: features.Kind) -> str:
    """In words, for results.json.

    Args:
      kind: what was clustered.
    """
    counts = 'attention' if kind == 'attended' else 'everything'
    counts = f'saliency ({self.saliency})' if self.saliency else counts
    said = f'{counts} counts, short side {self.short_side}'
    if self.report:
      said += f'; categories matched with classes on {self.choose_on}'
    return said


class ForegroundThreshold(NamedTuple):
  """What attention has to reach.

  Attributes:
    threshold: τ.
    miou: that it gave where it was chosen; None where it was given.
    chosen_on: name of the split; '' where it was given.
  """

  threshold: float
  miou: float | None = None
  chosen_on: str = ''

  def summary(self) -> dict[str, Any]:
    """For results.json: scores of `chosen_on` are the best of those tried."""
    return {'threshold': self.threshold, 'chosen_on': self.chosen_on}


def category_function(
  segmenter: segmenter_lib.Segmenter,
  centroids: Float[np.ndarray, 'K D'],
  kind: features.Kind,
) -> short_side_lib.ForwardFn:
  """From images to [B, h, w, 2]: category 1…K, and attention, of each cell.

  Args:
    segmenter: the network, with attention where that is clustered.
    centroids: of the categories.
    kind: what was clustered; without attention everything counts fully.
  """
  fixed = embedding_ops.l2_normalize(jnp.asarray(centroids))

  def look(
    state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w 2']:
    variables = train_state.variables(state)
    if kind == 'attended':
      maps, weights = attention_lib.features_and_attention(
        segmenter, variables, images
      )
      attention = jnp.mean(weights, axis=-1)
    else:
      found = segmenter.apply(
        variables, images, decode=False, method='features'
      )
      maps = embedding_ops.upsample(found['encoder'].deepest.array)
      attention = jnp.ones(maps.shape[:3])
      if kind == 'image':  # One category, that of the mean of all cells.
        mean = jnp.mean(maps, axis=(1, 2), keepdims=True)
        maps = jnp.broadcast_to(mean, maps.shape)
    categories = 1 + jnp.argmax(
      embedding_ops.similarities(embedding_ops.l2_normalize(maps), fixed.T),
      axis=-1,
    )
    return jnp.stack([categories.astype(jnp.float32), attention], axis=-1)

  return look


def categories_by_id(
  ids: Sequence[str], clusters: Int[np.ndarray, 'N']
) -> dict[str, int]:
  """The category 1…K of each image, by its name, that k-means has given it.

  Args:
    ids: of the images, in the order in which they were clustered.
    clusters: of each, from 0.
  """
  return dict(zip(ids, (1 + clusters).tolist(), strict=True))


def foreground_function(
  name: str, ids: Sequence[str]
) -> ForegroundFunction | None:
  """What takes the place of attention; None for nothing.

  Args:
    name: as in `LabelOptions.saliency`.
    ids: of the images that need a map.

  Raises:
    UserError: some have none.
  """
  if not name:
    return None
  if name == 'rc':
    return lambda example: saliency.region_contrast(example['image'])
  folder = pathlib.Path(name).expanduser()
  saliency.find_maps(folder, ids)

  def given(example: Mapping[str, Any]) -> np.ndarray:
    path = label_folders.label_path(folder, example['id'].item().decode())
    return saliency.read_map(path, tuple(example['size'].tolist()))

  return given


def label_map(
  categories: Int[np.ndarray, 'h w'],
  foreground: Float[np.ndarray, 'H W'],
  threshold: float,
) -> Int16[np.ndarray, 'H W']:
  """Categories at the size of the image, 0 below the threshold.

  Args:
    categories: 1…K of each cell.
    foreground: attention to each pixel, or its saliency.
    threshold: τ.
  """
  labels = short_side_lib.resize_labels(categories, foreground.shape).astype(
    np.int16
  )
  return np.where(foreground < threshold, np.int16(0), labels)


def resize_attention(
  attention: Float[np.ndarray, 'h w'], size: tuple[int, int]
) -> Float[np.ndarray, 'H W']:
  """Attention at the size of the image, bilinearly."""
  rows, columns = map(_matrix, attention.shape, size)
  return rows @ attention.astype(np.float32) @ columns.T


@functools.lru_cache(maxsize=512)
def _matrix(old: int, new: int) -> Float[np.ndarray, 'new old']:
  return resize.bilinear_matrix(old, new)


@dataclasses.dataclass(frozen=True, eq=False)
class ThresholdSweep:
  """What each threshold would give, from one look at each image.

  Attributes:
    pixels: int64 [T + 1, K + 1, C + 1]: pixels by how many of the thresholds
      their attention reaches, category and class.
    images: int64 [T + 1, K, C]: images by how many of the thresholds the most
      attended pixel of a category reaches, and the classes that occur.
  """

  pixels: Int64[np.ndarray, 'bins generated classes']
  images: Int64[np.ndarray, 'bins K C']

  @classmethod
  def empty(cls, num_generated: int, num_classes: int) -> 'ThresholdSweep':
    """Counts of no image; both numbers are without 'other'."""
    bins = len(THRESHOLDS) + 1
    return cls(
      np.zeros((bins, num_generated + 1, num_classes + 1), np.int64),
      np.zeros((bins, num_generated, num_classes), np.int64),
    )

  def update(
    self,
    categories: Int[np.ndarray, 'H W'],
    attention: Float[np.ndarray, 'H W'],
    label: Int[np.ndarray, 'H W'],
  ) -> None:
    """Counts one more image, in place; negative labels are ignored."""
    reached = np.searchsorted(THRESHOLDS, attention, side='right')
    known = label >= 0
    cells = np.ravel_multi_index(
      (reached[known], categories[known], label[known]), self.pixels.shape
    )
    found, counts = np.unique(cells, return_counts=True)
    self.pixels.reshape(-1)[found] += counts
    classes = np.unique(label[label > 0])
    for category in np.unique(categories):
      most = reached[categories == category].max()
      self.images[most, category - 1, classes - 1] += 1

  def merge(self, other: 'ThresholdSweep') -> 'ThresholdSweep':
    """The counts of both."""
    return ThresholdSweep(
      self.pixels + other.pixels, self.images + other.images
    )

  def best(self) -> tuple[float, float]:
    """The threshold of the best mIoU after matching, and that mIoU."""
    found = [
      (self._miou(i), -i, threshold) for i, threshold in enumerate(THRESHOLDS)
    ]
    miou, _, threshold = max(found)
    return threshold, miou

  def _miou(self, i: int) -> float:
    """Of the threshold of this index: i + 1 of them are reached, or more."""
    kept = self.pixels[i + 1 :].sum(axis=0)
    confusion = kept.copy()
    confusion[0] += self.pixels[: i + 1].sum(axis=(0, 1))
    match = matching.Cooccurrence(self.images[i + 1 :].sum(axis=0)).match()
    matched = np.zeros((confusion.shape[1],) * 2, np.int64)
    np.add.at(matched, np.array(match.classes), confusion)
    right = np.diagonal(matched)
    union = matched.sum(axis=0) + matched.sum(axis=1) - right
    return float(np.mean(right / (union + 1e-10)))


@dataclasses.dataclass(frozen=True, eq=False)
class Labeler:
  """Labels images by a network and centroids.

  Attributes:
    look: of `category_function`, at the grid.
    state: of the network.
    mesh: the devices.
    batch_size: global number of images.
    reading: of the input pipeline.
  """

  look: short_side_lib.FeatureMaps
  state: train_state.TrainState
  mesh: Mesh
  batch_size: int
  reading: loader_lib.ReadOptions

  def predict(
    self, split: datasets.Split, keep: tuple[str, ...] = ()
  ) -> Iterator[tuple[np.ndarray, np.ndarray, Mapping[str, Any]]]:
    """Categories of the cells, attention to the pixels, and the example."""
    predictions = evaluator.Predictions(
      *(split, self.look, self.batch_size, self.mesh, keep, self.reading)
    )
    for found, example in predictions(self.state):
      size = tuple(example['size'].tolist())
      yield (
        found[..., 0].astype(np.int16),
        resize_attention(found[..., 1], size),
        example,
      )

  def label_maps(
    self,
    split: datasets.Split,
    threshold: float,
    foreground: ForegroundFunction | None = None,
    image_categories: Mapping[str, int] | None = None,
  ) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
    """The label map of each image of this host, and the image.

    Args:
      split: the images.
      threshold: τ.
      foreground: from an example to what takes the place of attention.
      image_categories: the category of each image as a whole; None to assign
        each cell the one of its nearest centroid.
    """

    def decide(
      found: tuple[np.ndarray, np.ndarray, Mapping[str, Any]],
    ) -> tuple[np.ndarray, Mapping[str, Any]]:
      categories, attention, example = found
      if image_categories is not None:
        category = image_categories[example['id'].item().decode()]
        categories = np.full_like(categories, category)
      shown = attention if foreground is None else foreground(example)
      return label_map(categories, shown, threshold), example

    # In threads, as a saliency map takes its time.
    return threads.ordered_map(decide, self.predict(split))

  def draw_panel(
    self,
    split: datasets.Split,
    folder: files.Path,
    foreground: ForegroundFunction | None = None,
  ) -> UInt8[np.ndarray, 'H W 3'] | None:
    """Image, what decided and label map of each; None if this host has none.

    Args:
      split: the images.
      folder: of their label maps.
      foreground: from an example to what took the place of attention.
    """
    rows, palette = [], masks.palette(np.iinfo(np.int16).max)
    for _, attention, example in self.predict(split):
      label = png_format.read(
        label_folders.label_path(folder, example['id'].item().decode()),
        png_format.MAX_CLASSES,
      )
      decided = attention if foreground is None else foreground(example)
      most = max(float(decided.max()), 1e-6)
      gray = np.rint(255 * decided / most).astype(np.uint8)
      rows.append(
        [
          example['image'],
          np.repeat(gray[..., None], 3, axis=-1),
          panels.colorize(label, palette[: int(label.max()) + 1]),
        ]
      )
    if not rows:
      return None
    what = 'attention' if foreground is None else 'saliency'
    return panels.draw_grid(rows, ('image', what, 'generated label'))

  def sweep_thresholds(
    self,
    split: datasets.Split,
    num_generated: int,
    num_classes: int,
    foreground: ForegroundFunction | None = None,
  ) -> ThresholdSweep:
    """What each threshold would give on a split with masks."""
    found = ThresholdSweep.empty(num_generated, num_classes)
    for categories, attention, example in self.predict(split, ('label',)):
      label = example['label']
      shown = attention if foreground is None else foreground(example)
      found.update(
        short_side_lib.resize_labels(categories, label.shape), shown, label
      )
    return metrics.merge_across_hosts(found)
