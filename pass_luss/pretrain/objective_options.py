"""Options of PASS's objectives, and what all objectives share."""

import dataclasses
from typing import Annotated, ClassVar, Literal

from runtime.option_ranges import (
  CheckedOptions,
  NonNegative,
  Positive,
  Range,
  UnitInterval,
)

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
      name: name of the field with these options, for the message.

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


@dataclasses.dataclass(frozen=True)
class SwavOptions(SingleObjectiveOptions):
  """Options of SwAV: targets, their loss and the queue.

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
  """Options of P2P: the loss that aligns pixels.

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
  grid: Annotated[int, Range(2)] = 7
  project: bool = True
  temperature: Positive[float] = 0.2
  predictor_statistics: Literal['joint', 'per_view'] = 'joint'

  def __post_init__(self):
    super().__post_init__()
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
  """Options of D2S: supervised stages and their targets.

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
    super().__post_init__()
    if len(set(self.stages)) < len(self.stages) or not (
      set(self.stages) <= set(_STAGES)
    ):
      raise ValueError(
        f'stages: expected some of {_STAGES}, each once, got {self.stages}'
      )


@dataclasses.dataclass(frozen=True)
class PixproOptions(SingleObjectiveOptions):
  """Options of PixPro: head, propagation and momentum encoder.

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
