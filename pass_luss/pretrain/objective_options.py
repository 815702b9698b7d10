"""Options of the objectives of pretraining, and of their sum."""

import dataclasses
from typing import ClassVar, Literal

from pass_luss import image_sizes
from runtime.option_ranges import (
  AtLeastOne,
  CheckedOptions,
  NonNegative,
  Positive,
  UnitInterval,
)

# Fields of `ObjectiveOptions` whose objectives are a method by themselves, of
# which there is one at most.
METHODS = (
  *('pixpro', 'supervised', 'simclr', 'moco', 'byol'),
  *('simsiam', 'densecl', 'pcl', 'adco'),
)
AdcoVariant = Literal['plain', 'symmetric', 'multi_crop']
# Stages of an encoder that D2S may supervise.
_STAGES = (3, 2, 1)


def check_ring_length(name: str, length: int, batch_size: int) -> None:
  """Raises ValueError unless a length is a multiple of the batch size.

  Args:
    name: name of the field, for the message.
    length: number of rows of a ring.
    batch_size: global number of rows that a step writes.
  """
  if length % batch_size:
    raise ValueError(
      f'{name}: expected a multiple of the batch of {batch_size} images, got '
      f'{length}'
    )


class SingleObjectiveOptions(CheckedOptions):
  """Base class of the options of one objective: what it asks of batches.

  Attributes:
    num_views: number of large views of an image.
    keeps: labels of the images that its batches have: 'tags', or 'index', the
      place in the data set.
  """

  num_views: ClassVar[int] = 2
  keeps: ClassVar[tuple[str, ...]] = ()

  @property
  def reads_smaller_views(self) -> bool:
    """Returns whether it reads views of other sizes than the large ones."""
    return False

  def check_batch_size(self, batch_size: int, name: str) -> None:
    """Checks that what it keeps between steps fits the global batch size.

    Args:
      batch_size: global number of images of a batch.
      name: name of the objective, for the message.

    Raises:
      ValueError: it does not fit.
    """
    del batch_size, name


@dataclasses.dataclass(frozen=True)
class HeadSizes:
  """Widths of the heads of SwAV, D2S and P2P.

  Attributes:
    hidden: width h of all projections.
    embedding: number of features of the embeddings of images and of pixels.
    prototypes: number K of prototypes.
  """

  hidden: int = 512
  embedding: int = 128
  prototypes: int = 500

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 2:
        raise ValueError(f'{name}: expected 2 or more, got {value}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyOptions(SingleObjectiveOptions):
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
  """Head, ring and momentum encoder of MoCo v2.

  Attributes:
    queue: number of keys in the ring, a multiple of the batch size.
  """

  queue: AtLeastOne = 65_536

  def check_batch_size(self, batch_size: int, name: str) -> None:
    """Raises ValueError unless batches fill the ring evenly."""
    check_ring_length(f'{name}.queue', self.queue, batch_size)


@dataclasses.dataclass(frozen=True)
class SwavOptions(SingleObjectiveOptions):
  """Targets, their loss and the queue.

  Attributes:
    temperature: temperature τ of the predictions.
    epsilon: ε of Sinkhorn's algorithm: the smaller, the sharper the targets.
    sinkhorn_iterations: number of iterations of Sinkhorn's algorithm.
    queue: number of embeddings kept of each large view, over all devices; 0 for
      no queue.
    queue_from_step: first step that stores embeddings in the queue, which is
      used once it is full.
    frozen_steps: number of first steps in which prototypes are not updated.
  """

  temperature: Positive[float] = 0.1
  epsilon: Positive[float] = 0.05
  sinkhorn_iterations: Positive[int] = 3
  queue: NonNegative[int] = 0
  queue_from_step: NonNegative[int] = 0
  frozen_steps: NonNegative[int] = 0


@dataclasses.dataclass(frozen=True)
class P2POptions(SingleObjectiveOptions):
  """The loss that aligns pixels.

  Attributes:
    kind: 'regression' of one view's embedding from the other's, without
      negatives; 'clustering', by swapped assignments of pixels to SwAV's
      prototypes; 'contrastive', against all other points of the other view.
    grid: number n of points on each side of the overlap.
    project: whether pixels are projected by p; else the encoder's deepest map
      itself is aligned.
    temperature: temperature τ of kind 'contrastive'.
    predictor_statistics: batch statistics of the predictor: 'joint' over both
      views, as in the released code, or 'per_view'.
  """

  kind: Literal['regression', 'clustering', 'contrastive'] = 'regression'
  grid: int = 7
  project: bool = True
  temperature: float = 0.2
  predictor_statistics: Literal['joint', 'per_view'] = 'joint'

  def __post_init__(self):
    if self.grid < 2:
      raise ValueError(f'grid: expected 2 or more, got {self.grid}')
    if self.temperature <= 0:
      raise ValueError(
        f'temperature: expected more than 0, got {self.temperature}'
      )
    if self.predictor_statistics != 'joint' and not self.predicts:
      raise ValueError(
        f'predictor_statistics: expected joint with kind={self.kind!r}, which '
        f'has no predictor, got {self.predictor_statistics}'
      )
    if self.needs_prototypes and not self.project:
      raise ValueError(
        f'project: expected True with kind={self.kind!r}, which compares '
        'projected pixels with prototypes, got False'
      )

  @property
  def predicts(self) -> bool:
    """Returns whether the loss compares predictions q(z) instead of z."""
    return self.kind == 'regression'

  @property
  def needs_prototypes(self) -> bool:
    """Returns whether the loss compares pixels with SwAV's prototypes."""
    return self.kind == 'clustering'


@dataclasses.dataclass(frozen=True)
class D2SOptions(SingleObjectiveOptions):
  """Supervised stages and their targets.

  Attributes:
    stages: numbers of the supervised stages of the encoder: 3 is 'x3'; () for
      none.
    targets: assignments of the 'deep' features, or of the stage's 'own' ones.
    view: large view whose targets supervise a view: the 'other' one, or the
      'same'.
  """

  stages: tuple[int, ...] = (3,)
  targets: Literal['deep', 'own'] = 'deep'
  view: Literal['other', 'same'] = 'other'

  def __post_init__(self):
    if len(set(self.stages)) < len(self.stages) or not (
      set(self.stages) <= set(_STAGES)
    ):
      raise ValueError(
        f'stages: expected some of {_STAGES}, each once, got {self.stages}'
      )


@dataclasses.dataclass(frozen=True)
class PixproOptions(SingleObjectiveOptions):
  """Head, propagation and momentum encoder of PixPro.

  Attributes:
    hidden: width of the projector g.
    size: channels of a pixel's embedding.
    power: exponent γ of the similarity in the propagation.
    distance: threshold 𝒯, in diagonals of a cell, below which cells are
      positive.
    decay: decay of the momentum encoder at the first step; it rises to 1 at the
      last.
  """

  hidden: Positive[int] = 4096
  size: Positive[int] = 256
  power: Positive[float] = 2.0
  distance: Positive[float] = 0.7
  decay: UnitInterval = 0.99


@dataclasses.dataclass(frozen=True)
class SupervisedOptions(SingleObjectiveOptions):
  """Options of supervised pretraining: the classes of the data set.

  Attributes:
    num_classes: number C of classes.
    first_class: id of the first of them in the data set: 1 where 0 is 'other',
      which no image has as its class.
  """

  num_views: ClassVar[int] = 1
  keeps: ClassVar[tuple[str, ...]] = ('tags',)

  num_classes: int
  first_class: int = 0

  def __post_init__(self):
    if self.num_classes < 2:
      raise ValueError(
        f'num_classes: expected 2 or more, got {self.num_classes}'
      )
    if self.first_class not in (0, 1):
      raise ValueError(f'first_class: expected 0 or 1, got {self.first_class}')


@dataclasses.dataclass(frozen=True)
class SimclrOptions(SingleObjectiveOptions):
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
class ByolOptions(SingleObjectiveOptions):
  """Heads and momentum encoder of BYOL.

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
class SimsiamOptions(SingleObjectiveOptions):
  """Options of SimSiam: the sizes of projector and predictor.

  Attributes:
    size: number of features of a projection.
    hidden: width of the predictor.
  """

  size: Positive[int] = 2048
  hidden: Positive[int] = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseclOptions(MocoOptions):
  """Head, rings, momentum encoder and weights of DenseCL.

  Attributes:
    hidden: width of both projections.
    dense_weight: weight λ of the cells' loss; the images' has 1 - λ.
  """

  hidden: Positive[int] = 2048
  dense_weight: UnitInterval = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class PclOptions(MocoOptions, image_sizes.CenterCropOptions):
  """Ring, clusterings and momentum encoder of PCL v2.

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
  """Negatives, their training, and the momentum encoder of AdCo.

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
    check_ring_length(f'{name}.negatives', self.negatives, batch_size)


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
  """Options of the objectives and of the sum of their terms.

  At least one of SwAV and of the methods by themselves is trained.

  Attributes:
    clusters: options of SwAV, on all views; None for none.
    alignment: options of P2P, on the large views; None for none.
    shallow: options of D2S, on the large views; needs SwAV.
    pixpro: options of PixPro, on the large views; None for none.
    supervised: options of the classes of images, in place of PixPro.
    simclr: options of SimCLR, in place of PixPro; and so are the following.
    moco: options of MoCo v2.
    byol: options of BYOL.
    simsiam: options of SimSiam.
    densecl: options of DenseCL.
    pcl: options of PCL v2.
    adco: options of AdCo.
    combine: 'mean': the terms of SwAV and of D2S are averaged, the others
      added (the released code); 'sum': all are added (the paper).
  """

  clusters: SwavOptions | None = SwavOptions()
  alignment: P2POptions | None = P2POptions()
  shallow: D2SOptions = D2SOptions()
  pixpro: PixproOptions | None = None
  supervised: SupervisedOptions | None = None
  simclr: SimclrOptions | None = None
  moco: MocoOptions | None = None
  byol: ByolOptions | None = None
  simsiam: SimsiamOptions | None = None
  densecl: DenseclOptions | None = None
  pcl: PclOptions | None = None
  adco: AdcoOptions | None = None
  combine: Literal['mean', 'sum'] = 'mean'

  @property
  def methods(self) -> tuple[str, ...]:
    """Returns the names of the objectives that are a method by themselves."""
    return tuple(name for name in METHODS if vars(self)[name])

  @property
  def trained(self) -> dict[str, SingleObjectiveOptions]:
    """Returns the options of the objectives that are trained, by field."""
    names = ('clusters', 'shallow', 'alignment', *METHODS)
    given = {name: vars(self)[name] for name in names if vars(self)[name]}
    if not self.shallow.stages:
      del given['shallow']
    return given

  def __post_init__(self):
    names = ', '.join(METHODS)
    if not self.clusters and not self.methods:
      raise ValueError(
        f'clusters: expected them or one of {names}, got None everywhere'
      )
    if len(self.methods) > 1:
      raise ValueError(
        f'{self.methods[1]}: expected None beside {self.methods[0]}, as at '
        f'most one of {names} is trained, got options of both'
      )
    if self.shallow.stages and not self.clusters:
      raise ValueError(
        'shallow.stages: expected () without clusters, whose targets they '
        f'need, got {self.shallow.stages}'
      )
    self._check_multi_crop()
    if not self.clusters and self.alignment and self.alignment.needs_prototypes:
      raise ValueError(
        'alignment.kind: expected one without prototypes, as clusters is None, '
        f'got {self.alignment.kind!r}'
      )

  def _check_multi_crop(self) -> None:
    """Raises ValueError if others read the views of AdCo's multi-crop."""
    if not self.adco or not self.adco.reads_smaller_views:
      return
    for name in ('clusters', 'alignment'):
      if getattr(self, name):
        raise ValueError(
          f'{name}: expected None with adco.variant=multi_crop, whose encoder '
          'has one of the two large views alone, got options'
        )
