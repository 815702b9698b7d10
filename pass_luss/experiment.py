"""The blocks of a config: a stage's fields each, and what they need."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from input_pipeline import datasets, views
from pass_luss.pretrain import heads, view_colors
from pass_luss.pretrain import options as pretrain_options
from pass_luss.pretrain.objectives import swav
from pass_luss.protocols import distance as distance_lib
from pass_luss.protocols import segment as segment_lib
from pass_luss.pseudo_labels import cluster as cluster_lib
from pass_luss.pseudo_labels import labeler
from segcore.experiment import context as context_lib
from segcore.experiment import program
from segcore.models import network
from segcore.ops import color_augment
from segcore.train import loop, update

# In an order in which each comes after what it needs.
STAGES = (
  *('represent', 'distance', 'attend', 'cluster', 'label'),
  *('finetune', 'segment', 'semi', 'segment_semi', 'segment_on'),
)
# Stages of training.
TRAININGS = ('represent', 'attend', 'finetune', 'semi')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentOptions:
  """Representation learning.

  Attributes:
    data: images; their labels are not read.
    split: trained on.
    learn: what is learned from.
    widths: of the heads.
    large: the two views that everything is learned from.
    small: more views, for the clusters only; None for none.
    colors: of the views.
    start: of the encoder.
    recipe: batch, length, optimizer.
  """

  data: datasets.DataOptions
  split: str = 'train'
  learn: pretrain_options.ObjectiveOptions
  widths: heads.HeadSizes = heads.HeadSizes()
  large: views.ViewGroup
  small: views.ViewGroup | None = None
  colors: view_colors.ViewColors
  recipe: update.RecipeOptions
  start: context_lib.Start = context_lib.Start()

  def __post_init__(self):
    _check_large(self.large)
    if self.small and self.small.name != 'small':
      raise ValueError(
        f"small.name: found {self.small.name!r}, expected 'small'"
      )
    if self.small and not self.learn.clusters:
      raise ValueError('small: found views, but only clusters learn from them')
    _check_whole(self.recipe)

  @property
  def crop(self) -> views.MultiCrop:
    """What all views are cut by."""
    groups = (self.large, self.small) if self.small else (self.large,)
    return views.MultiCrop(groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttendOptions:
  """Pixel attention.

  Attributes:
    clusters: its targets, their loss and the queue.
    shared: one attention for all channels.
    large: both views.
    colors: of the views.
    recipe: batch, length, optimizer.
  """

  clusters: swav.SwavOptions
  shared: bool = False
  large: views.ViewGroup
  colors: view_colors.ViewColors
  recipe: update.RecipeOptions

  def __post_init__(self):
    _check_large(self.large)
    _check_whole(self.recipe)

  @property
  def crop(self) -> views.MultiCrop:
    """What the views are cut by."""
    return views.MultiCrop((self.large,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
  """Fine-tuning, on generated labels or on given masks.

  Attributes:
    split: whose masks are learned from; '' for the generated labels of the
      training images.
    crop: name and fields of a crop (see `transforms.CROPS`).
    flips: directions in which images are mirrored at random.
    colors: how colors are changed.
    output_stride: of the encoder, whose last blocks are dilated for it; 0 for
      that of `network`.
    reduction: factor by which label maps are made smaller.
    repeated_upsampling: whether logits are upsampled by 2 repeatedly, instead
      of at once to the size of the reduced label maps.
    recipe: batch, length, optimizer.
  """

  split: str = ''
  crop: Mapping[str, Any]
  flips: tuple[str, ...] = ('horizontal',)
  reduction: int = 2
  recipe: update.RecipeOptions
  repeated_upsampling: bool = False
  output_stride: int = 0
  colors: color_augment.ColorOptions = color_augment.ColorOptions()

  def __post_init__(self):
    if self.reduction < 1:
      raise ValueError(f'reduction: found {self.reduction}, expected 1 or more')


@dataclasses.dataclass(frozen=True)
class SegmentOptions:
  """Label maps of whole splits, and their score.

  Attributes:
    splits: that are labeled; those with masks are scored.
    match_on: the split that generated categories are matched with classes on;
      of what has learned from masks, classes are matched by their names.
    inference: 'logits', or 'cam': the activation of the image's category.
    threshold: of 'cam'; negative: chosen on `match_on`.
    short_side: of the images.
    batch_size: global number of images; changes nothing of what is found.
    about: what a submission says of the method.
  """

  splits: tuple[str, ...] = ('val', 'test')
  match_on: str = 'val'
  inference: Literal['logits', 'cam'] = 'logits'
  threshold: float = -1.0
  short_side: int = 256
  batch_size: int = 16
  about: segment_lib.SubmissionInfo = segment_lib.SubmissionInfo()

  def __post_init__(self):
    if not self.splits:
      raise ValueError('splits: found (), expected at least one')

  def describe(self, by_names: bool) -> str:
    """In words, for results.json.

    Args:
      by_names: how categories become classes; else by what occurs together.
    """
    how = 'by their names' if by_names else f'on {self.match_on}'
    return (
      f'{self.inference}, short side {self.short_side}; categories matched '
      f'with classes {how}'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentOnOptions(SegmentOptions):
  """The same of another, smaller data set (§5.6).

  Categories or classes that none of its own are matched with become 'other'.

  Attributes:
    data: that is segmented.
    trained_by: the stage whose network it is.
  """

  data: datasets.DataOptions
  trained_by: Literal['finetune', 'semi']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A whole config.

  Attributes:
    program: the module whose command line runs it.
    stages: which of the stages below, in order.
    data_dir: where records are kept; '' is TFDS's own place.
    without_files: what to do where data or weights are missing; may be ''.
    network: the encoder of all stages.
    images: what is clustered, labeled and segmented.
    represent: step 1, an encoder from images alone.
    distance: of it, by neighbors.
    attend: step 2a, what matters in an image.
    cluster: step 2b, centroids.
    label: step 2c, a label map for each image.
    finetune: step 3, on these.
    segment: of what was fine-tuned.
    semi: fine-tuning on masks instead.
    segment_semi: of that.
    segment_on: of either, on another data set; None for none.
    operation: how it is carried out.
  """

  program: Literal['pass_luss.main']
  stages: tuple[str, ...]
  data_dir: str = ''
  without_files: str = ''
  network: network.NetworkOptions
  images: context_lib.Images
  represent: RepresentOptions
  distance: distance_lib.DistanceOptions = distance_lib.DistanceOptions()
  attend: AttendOptions
  cluster: cluster_lib.ClusterOptions = cluster_lib.ClusterOptions()
  label: labeler.LabelOptions = labeler.LabelOptions()
  finetune: FinetuneOptions
  segment: SegmentOptions = SegmentOptions()
  semi: FinetuneOptions
  segment_semi: SegmentOptions = SegmentOptions()
  operation: loop.OperationOptions = loop.OperationOptions()
  segment_on: SegmentOnOptions | None = None

  def __post_init__(self):
    program.check_stages(self.stages, STAGES)
    if 'segment_on' in self.stages and self.segment_on is None:
      raise ValueError(
        "stages: found 'segment_on', but no block segment_on that says which "
        'data: expected one, or the config option on=…'
      )
    if 'attend' in self.stages and not self.represent.learn.clusters:
      raise ValueError(
        "stages: found 'attend', which learns by clusters, but "
        'represent.learn.clusters is None'
      )
    if bool(self.finetune.split) or not self.semi.split:
      raise ValueError(
        f'finetune.split={self.finetune.split!r} and semi.split='
        f"{self.semi.split!r}: expected '' for generated labels, and a split "
        'with masks'
      )


def _check_large(large: views.ViewGroup) -> None:
  if (large.name, large.count) != ('large', 2):
    raise ValueError(
      f'large: found {large.count} views named {large.name!r}, expected 2 '
      "named 'large'"
    )


def _check_whole(recipe: update.RecipeOptions) -> None:
  if recipe.accumulate != 1:
    raise ValueError(
      f'recipe.accumulate: found {recipe.accumulate}, expected 1: assignments '
      'need the whole batch'
    )
