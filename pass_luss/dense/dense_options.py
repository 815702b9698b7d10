"""Options of MDC, PiCIE and MaskContrast."""

import dataclasses
from typing import Literal

from pass_luss.pretrain import comparator_options
from runtime.option_ranges import (
  AtLeastOne,
  CheckedOptions,
  NonNegative,
  Positive,
  UnitInterval,
)

# Name of MaskContrast's head and objective.
MASKS = 'masks'


@dataclasses.dataclass(frozen=True)
class KmeansOptions(CheckedOptions):
  """Options of mini-batch k-means of the pixels of all images.

  Attributes:
    batch_size: global number of images of a batch.
    initial_batches: number of batches of which k-means computes the first
      centroids.
    iterations: number of assignments and updates of that.
  """

  batch_size: AtLeastOne = 256
  initial_batches: AtLeastOne = 20
  iterations: AtLeastOne = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterOptions(CheckedOptions):
  """Options of MDC and of PiCIE.

  Attributes:
    clusters: number of clusters; 0 for the number of classes with 'other'.
  """

  clusters: NonNegative[int] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MdcOptions(ClusterOptions):
  """Options of MDC: the classifier of the clusters.

  Attributes:
    name: 'mdc'.
    classifier: 'trained', from random values in each epoch, or the 'centroids'
      of the epoch.
    classifier_rate: learning rate of the classifier's own Adam.
  """

  name: Literal['mdc']
  classifier: Literal['trained', 'centroids'] = 'trained'
  classifier_rate: Positive[float] = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PicieOptions(ClusterOptions):
  """Options of PiCIE: the over-clustering, and the error of features.

  Attributes:
    name: 'picie'.
    over_clusters: number of clusters of the over-clustering of PiCIE + H, 100
      in the paper; 0 for none.
    adds_mse: whether the squared difference of the features of both views is
      averaged with the loss.
  """

  name: Literal['picie']
  over_clusters: NonNegative[int] = 0
  adds_mse: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.over_clusters == 1:
      raise ValueError('over_clusters: expected 0, or 2 or more, got 1')


# Blocks that `learn` may be, by their names.
Options = MdcOptions | PicieOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskContrastOptions(comparator_options.MocoOptions):
  """Options of MaskContrast: head, ring and momentum encoder.

  Attributes:
    size: number of features of an embedding.
    temperature: temperature T.
    queue: number of prototypes in the ring, a multiple of the batch size.
    width: channels of DeepLab.
    dilations: dilations of its 3x3 branches.
    dropout_rate: share of its projected values that are dropped in training.
  """

  size: Positive[int] = 32
  temperature: Positive[float] = 0.5
  queue: AtLeastOne = 256
  width: Positive[int] = 256
  dilations: tuple[int, ...] = (12, 24, 36)
  dropout_rate: UnitInterval = 0.5
