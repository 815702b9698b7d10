"""Pixel-wise contrastive loss: candidates and InfoNCE (Eqs. 10, 21-28).

Everything here is on the cells of the representation map, a quarter of the
image's side in the papers (spec U2PL §1).

  masks = contrast_candidates(
    probs, labels, labeled, reliable, unreliable, options
  )
  losses = class_contrast_losses(
    anchors, positives, bank.rows, draws, temperature
  )
  loss = mean_contrast_over_classes(losses, usable, present)

`contrastive_branch` chooses anchors and rows of the bank between the first two
statements.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from runtime.option_ranges import CheckedOptions, NonNegative, Positive
from segcore.types import CellLabels, CellMask, Scalar

# Of the cosine, as in torch.
_LEAST_NORM = 1e-8


@dataclasses.dataclass(frozen=True)
class PairOptions(CheckedOptions):
  """Options of the contrastive loss, whatever its candidates are.

  Attributes:
    weight: weight λ_c of this loss in the total loss.
    temperature: temperature τ of Eq. 10.
    num_anchors: number M of anchors drawn for each class, with replacement.
    num_negatives: number N of negatives drawn for each anchor, with
      replacement.
    bank: whether negatives of earlier steps are kept.
    capacity: number of rows of the bank for each class.
    first_capacity: number of rows for class 0, the background; 0 for
      `capacity`.
    max_push: largest number of rows that a step enqueues for each class, a
      uniform sample of its negatives.
    dtype: dtype of the rows in the bank.
  """

  weight: NonNegative[float] = 0.1
  temperature: Positive[float] = 0.5
  num_anchors: int = 256
  num_negatives: int = 50
  bank: bool = True
  capacity: int = 30000
  first_capacity: int = 50000
  max_push: int = 4096
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    super().__post_init__()
    for name in ('num_anchors', 'num_negatives', 'capacity', 'max_push'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}: expected >= 1, got {getattr(self, name)}')
    smallest = min(self.capacity, self.first_capacity or self.capacity)
    if smallest < self.num_negatives:
      raise ValueError(
        f'capacity: expected at least num_negatives = {self.num_negatives}, '
        f'got {smallest}'
      )
    if smallest < self.max_push:
      raise ValueError(
        f'max_push: expected at most the smallest capacity of {smallest}, got '
        f'{self.max_push}'
      )

  def capacities(self, num_classes: int) -> tuple[int, ...]:
    """Returns the bank's number of rows for each class."""
    first = self.first_capacity or self.capacity
    return (first, *[self.capacity] * (num_classes - 1))


@dataclasses.dataclass(frozen=True)
class ContrastOptions(PairOptions):
  """Options of the contrastive loss of labels and probabilities.

  Attributes:
    anchor_threshold: δ_p of Eq. 22, in [0, 1): probability of the class, by the
      teacher, that an anchor must exceed.
    anchor_entropy: unlabeled cells that may be anchors and positives: those
      below the entropy of the unreliable ones ('paper'), or the α_t percent of
      lowest entropy ('released').
    low_rank: rank r_l of Eqs. 26-27. A labeled cell is a negative of each class
      of lower rank, except its label; an unlabeled cell is a negative of
      classes of this rank and above.
    high_rank: rank r_h of Eq. 27, below which a class must be for an unlabeled
      cell to be its negative.
    by_rank: whether ranks decide (probability rank threshold of Table IV); else
      a labeled cell is a negative of every class except its label, and an
      unlabeled one of every class except its most probable one.
    negatives: unlabeled cells that may be negatives: the 'unreliable' ones (the
      method), the 'reliable' ones, 'all', or 'none' (Table III).
  """

  anchor_threshold: float = 0.3
  anchor_entropy: Literal['paper', 'released'] = 'paper'
  low_rank: int = 3
  high_rank: int = 20
  by_rank: bool = True
  negatives: Literal['unreliable', 'reliable', 'all', 'none'] = 'unreliable'

  def __post_init__(self):
    super().__post_init__()
    if self.low_rank < 1:
      raise ValueError(f'low_rank: expected >= 1, got {self.low_rank}')
    if not 0 <= self.anchor_threshold < 1:
      raise ValueError(
        f'anchor_threshold: expected 0 <= threshold < 1, got '
        f'{self.anchor_threshold}'
      )
    if self.low_rank >= self.high_rank:
      raise ValueError(
        f'low_rank and high_rank: expected low_rank < high_rank, got '
        f'{self.low_rank} and {self.high_rank}: no unlabeled pixel would be a '
        'negative'
      )

  def check_classes(self, num_classes: int) -> None:
    """Raises ValueError where no unlabeled pixel could be a negative."""
    if self.by_rank and self.low_rank >= num_classes:
      raise ValueError(
        f'low_rank: expected less than the {num_classes} classes, got '
        f'{self.low_rank}: the contrastive loss would be 0'
      )


class Candidates(NamedTuple):
  """Cells that may be drawn for each class.

  Attributes:
    anchors: cells that may be anchors of the class (Eqs. 21-23).
    positives: cells whose mean is the class's prototype (Eq. 17).
    negatives: cells that are not of the class (Eqs. 25-28).
  """

  anchors: Bool[Array, 'B h w C']
  positives: Bool[Array, 'B h w C']
  negatives: Bool[Array, 'B h w C']


def class_probability_ranks(
  probs: Float[Array, '*shape C'],
) -> Int[Array, '*shape C']:
  """Computes O of Eq. 25, the number of classes that are more probable.

  Among equally probable classes, the lower id has the lower rank.
  """
  # Compares all pairs of classes: on a CPU sorting takes 30 times longer.
  own, other = probs[..., :, None], probs[..., None, :]
  classes = jnp.arange(probs.shape[-1])
  first = (own == other) & (classes < classes[:, None])
  return jnp.sum((other > own) | first, axis=-1, dtype=jnp.int32)


def positive_cells(
  labels: CellLabels, labeled: CellMask, reliable: CellMask, num_classes: int
) -> Bool[Array, 'B h w C']:
  """Computes the cells of each class whose label or pseudo-label is trusted.

  Args:
    labels: ground truth or pseudo-labels; negative where ignored.
    labeled: cells with ground truth.
    reliable: unlabeled cells with a reliable pseudo-label.
    num_classes: number C of classes.
  """
  of_class = labels[..., None] == jnp.arange(num_classes)
  return of_class & ((labels >= 0) & (labeled | reliable))[..., None]


def contrast_candidates(
  probs: Float[Array, 'B h w C'],
  labels: CellLabels,
  labeled: CellMask,
  reliable: CellMask,
  unreliable: CellMask,
  options: ContrastOptions,
) -> Candidates:
  """Computes which feature cells may be anchors, positives and negatives.

  Args:
    probs: class probabilities of the teacher.
    labels: ground truth or pseudo-labels; negative where ignored.
    labeled: cells with ground truth.
    reliable: unlabeled cells with a reliable pseudo-label.
    unreliable: unlabeled cells that may only be negatives.
    options: options of the loss, of which the thresholds are used.
  """
  num_classes = probs.shape[-1]
  rank = class_probability_ranks(probs)
  valid = labels >= 0
  of_class = labels[..., None] == jnp.arange(num_classes)
  positive = positive_cells(labels, labeled, reliable, num_classes)
  anchors = positive & (probs > options.anchor_threshold)
  # Labeled: not of the class, but the teacher confuses it with the class: a
  # hard negative (Eq. 26).
  confused = ~of_class & (labeled & valid)[..., None]
  # Unlabeled: whatever the class of the cell, it is hardly this one. Ranks from
  # r_h on are left out: so improbable a class teaches little (Eq. 27).
  improbable = rank > 0
  if options.by_rank:
    confused &= rank < options.low_rank
    improbable = (rank >= options.low_rank) & (rank < options.high_rank)
  sources = {
    'unreliable': unreliable,
    'reliable': reliable,
    'all': jnp.ones_like(reliable),
    'none': jnp.zeros_like(reliable),
  }
  source = sources[options.negatives] & ~labeled & valid
  return Candidates(
    anchors, positive, confused | (improbable & source[..., None])
  )


def class_contrast_losses(
  anchors: Float[Array, 'C M D'],
  positives: Float[Array, 'C D'],
  rows: Float[Array, 'K D'],
  draws: Int[Array, 'C M N'],
  temperature: float,
) -> Float[Array, 'C']:
  """Computes the mean InfoNCE of each class's anchors (Eq. 10).

  Args:
    anchors: features of the student; the only argument with a gradient.
    positives: prototype of each class.
    rows: negative features of all classes in the memory bank.
    draws: indices of the rows that are each anchor's negatives.
    temperature: temperature τ of Eq. 10.
  """
  return _class_losses(temperature, anchors, positives, rows, draws)


# The negatives of one class, [M, N, D], are 13 MB at the paper's sizes; those
# of all classes, kept from the forward to the backward pass, would be 21 times
# that. So classes run one after the other, and the forward pass computes the
# gradient to the anchors, [C, M, D], while a class's negatives are in memory.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _class_losses(temperature, anchors, positives, rows, draws):
  losses, _ = _class_losses_forward(
    temperature, anchors, positives, rows, draws
  )
  return losses


def _class_losses_forward(temperature, anchors, positives, rows, draws):
  def loss_and_gradient(inputs):
    class_anchors, positive, class_draws = inputs
    negatives = rows[class_draws].astype(class_anchors.dtype)
    loss = functools.partial(
      anchor_info_nce,
      positive=positive.astype(class_anchors.dtype),
      negatives=negatives,
      temperature=temperature,
    )
    return jax.value_and_grad(loss)(class_anchors)

  return jax.lax.map(loss_and_gradient, (anchors, positives, draws))


def _class_losses_backward(temperature, gradients, cotangent):
  del temperature
  # Positives, rows and draws are constants (a stopped gradient).
  return cotangent[:, None, None] * gradients, None, None, None


_class_losses.defvjp(_class_losses_forward, _class_losses_backward)


def anchor_info_nce(
  anchors: Float[Array, 'M D'],
  positive: Float[Array, 'D'],
  negatives: Float[Array, 'M N D'],
  temperature: float,
) -> Scalar:
  """Computes the mean over anchors of -log softmax(cosine / τ)[positive].

  With N = 50 and τ = 0.5 perfect separation has a loss of
  log(1 + 50·exp(-4)) = 0.65, not 0.

  Args:
    anchors: representations of the anchors of a class.
    positive: prototype of the class.
    negatives: rows of the memory bank, N for each anchor.
    temperature: temperature τ.
  """
  # At the default precision a GPU or TPU rounds factors to fewer bits, and a
  # cosine near 1 loses what distinguishes the vectors.
  exact = jax.lax.Precision.HIGHEST
  anchors = _l2_normalize(anchors)
  to_positive = jnp.matmul(anchors, _l2_normalize(positive), precision=exact)
  to_negatives = jnp.einsum(
    'md,mnd->mn', anchors, _l2_normalize(negatives), precision=exact
  )
  logits = jnp.concatenate([to_positive[:, None], to_negatives], axis=1)
  logits = logits / temperature
  return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])


def mean_contrast_over_classes(
  losses: Float[Array, 'C'],
  usable: Bool[Array, 'C'],
  present: Bool[Array, 'C'],
) -> Scalar:
  """Computes the mean loss over present classes.

  A present class that is not usable counts as 0, as in the released code. The
  result is 0 unless at least two classes are present (spec §3.4).

  Args:
    losses: mean InfoNCE of each class.
    usable: classes with an anchor and a row in the bank.
    present: classes with a trusted label.
  """
  num_present = jnp.sum(present)
  # Shapes are static: unusable classes have losses, of arbitrary cells or rows.
  total = jnp.sum(jnp.where(usable, losses, 0.0))
  return jnp.where(num_present > 1, total / jnp.maximum(num_present, 1), 0.0)


def _l2_normalize(x: Float[Array, '*shape D']) -> Float[Array, '*shape D']:
  # The maximum is inside the root, whose gradient at 0 would be infinite.
  norm = jnp.sqrt(
    jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), _LEAST_NORM**2)
  )
  return x / norm
