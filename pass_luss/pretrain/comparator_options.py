"""Options of the objectives that PASS is compared with."""

import dataclasses
from typing import Annotated, ClassVar, Literal

from pass_luss import image_sizes
from pass_luss.pretrain import objective_options
from runtime.option_ranges import (
  AtLeastOne,
  NonNegative,
  Positive,
  Range,
  UnitInterval,
)

AdcoVariant = Literal['plain', 'symmetric', 'multi_crop']


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyOptions(objective_options.SingleObjectiveOptions):
  """Options of all objectives that compare with keys.

  Attributes:
    size: number of features of queries and keys.
    temperature: temperature T.
    decay: decay m of the momentum encoder.
  """

  size: Positive[int] = 128
  temperature: Positive[float] = 0.2
  decay: UnitInterval = 0.999


@dataclasses.dataclass(frozen=True, kw_only=True)
class MocoOptions(KeyOptions):
  """Options of MoCo v2: head, ring and momentum encoder.

  Attributes:
    queue: number of keys in the ring, a multiple of the batch size.
  """

  queue: AtLeastOne = 65_536

  def check_batch_size(self, batch_size: int, name: str) -> None:
    """Raises ValueError unless batches fill the ring evenly."""
    objective_options.check_ring_length(f'{name}.queue', self.queue, batch_size)


@dataclasses.dataclass(frozen=True)
class SupervisedOptions(objective_options.SingleObjectiveOptions):
  """Options of supervised pretraining: the classes of the data set.

  Attributes:
    num_classes: number C of classes.
    first_class: id of the first of them in the data set: 1 where 0 is 'other',
      which no image has as its class.
  """

  num_views: ClassVar[int] = 1
  keeps: ClassVar[tuple[str, ...]] = ('tags',)

  num_classes: Annotated[int, Range(2)]
  first_class: int = 0

  def __post_init__(self):
    super().__post_init__()
    if self.first_class not in (0, 1):
      raise ValueError(f'first_class: expected 0 or 1, got {self.first_class}')


@dataclasses.dataclass(frozen=True)
class SimclrOptions(objective_options.SingleObjectiveOptions):
  """Options of SimCLR: the head, and the loss of the views.

  Attributes:
    head: 'batch_256', of the re-implementation for batches of 256: two layers
      with batch norms; 'released', of the authors' code: three, and the last
      norm has no shift; 'paper': two without norms, the first with a bias.
    size: number of features of an embedding.
    temperature: temperature T.
    combine_views: 'mean' of the losses of both views, or their 'sum', which the
      authors' code has.
  """

  head: Literal['batch_256', 'released', 'paper'] = 'batch_256'
  size: Positive[int] = 128
  temperature: Positive[float] = 0.1
  combine_views: Literal['mean', 'sum'] = 'mean'


@dataclasses.dataclass(frozen=True)
class ByolOptions(objective_options.SingleObjectiveOptions):
  """Options of BYOL: heads and momentum encoder.

  Attributes:
    hidden: width of projector and predictor.
    size: number of features of a projection.
    decay: decay m_0 of the momentum encoder at the first step; it rises to 1 at
      the last.
  """

  hidden: Positive[int] = 4096
  size: Positive[int] = 256
  decay: UnitInterval = 0.99


@dataclasses.dataclass(frozen=True)
class SimsiamOptions(objective_options.SingleObjectiveOptions):
  """Options of SimSiam: the sizes of projector and predictor.

  Attributes:
    size: number of features of a projection.
    hidden: width of the predictor.
  """

  size: Positive[int] = 2048
  hidden: Positive[int] = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseclOptions(MocoOptions):
  """Options of DenseCL: head, rings, momentum encoder and weights.

  Attributes:
    hidden: width of both projections.
    dense_weight: weight λ of the cells' loss; the images' has 1 - λ.
  """

  hidden: Positive[int] = 2048
  dense_weight: UnitInterval = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class PclOptions(MocoOptions, image_sizes.CenterCropOptions):
  """Options of PCL v2: ring, clusterings and momentum encoder.

  Attributes:
    queue: number of keys in the ring, a multiple of the batch size.
    num_images: number of images of the training split.
    clusters: number of clusters of each clustering.
    negatives: number of prototypes that are drawn as further negatives; of few
      clusters as many as are left without those of a batch.
    from_step: first step with prototypes.
    every: number of steps between clusterings: those of an epoch.
    iterations: number of iterations of k-means.
    restarts: number of restarts of k-means.
  """

  keeps: ClassVar[tuple[str, ...]] = ('index',)

  queue: AtLeastOne = 16_384
  num_images: AtLeastOne
  clusters: tuple[int, ...] = (25_000, 50_000, 100_000)
  negatives: AtLeastOne = 16_384
  from_step: NonNegative[int]
  every: AtLeastOne
  iterations: AtLeastOne = 20
  restarts: AtLeastOne = 5

  def __post_init__(self):
    super().__post_init__()
    if not self.clusters or max(self.clusters) > self.num_images:
      raise ValueError(
        f'clusters: expected numbers up to that of the images, '
        f'{self.num_images}, got {self.clusters}'
      )

  def check_batch_size(self, batch_size: int, name: str) -> None:
    """Raises ValueError if ring or prototypes are too few for the batch."""
    super().check_batch_size(batch_size, name)
    # Negatives are prototypes to which no image of the batch belongs.
    if min(self.clusters) <= batch_size:
      raise ValueError(
        f'{name}.clusters: expected more than the batch of {batch_size} images '
        f'each, got {self.clusters}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdcoOptions(KeyOptions):
  """Options of AdCo: negatives, their training, and the momentum encoder.

  Attributes:
    negatives: number K of negatives, a multiple of the batch size.
    negative_temperature: temperature τ of the gradient of the negatives.
    negative_learning_rate: learning rate of the negatives.
    negative_momentum: momentum of their SGD.
    negative_weight_decay: weight decay of their SGD.
    variant: 'plain': a query of view 1, a key of view 2; 'symmetric': of both
      views; 'multi_crop': a key of view 1, queries of view 2 and of all smaller
      views.
  """

  temperature: Positive[float] = 0.12
  negatives: AtLeastOne = 65_536
  negative_temperature: Positive[float] = 0.02
  negative_learning_rate: Positive[float] = 3.0
  negative_momentum: UnitInterval = 0.9
  negative_weight_decay: UnitInterval = 1e-4
  variant: AdcoVariant = 'symmetric'

  @property
  def reads_smaller_views(self) -> bool:
    """Returns whether smaller views are queries, too."""
    return self.variant == 'multi_crop'

  def check_batch_size(self, batch_size: int, name: str) -> None:
    """Raises ValueError unless batches fill the negatives evenly."""
    objective_options.check_ring_length(
      f'{name}.negatives', self.negatives, batch_size
    )
