"""The contrastive loss over reliable and unreliable pixels (Eqs. 21-28).

Everything here lives on the cells of the representation map, a quarter of the
image's side in the papers (spec U2PL §1). Cells of labeled and of unlabeled
images are told apart by masks, so both stand in one batch.

  masks = candidates(probs, labels, reliable, unreliable, options)
  draws = sample(rng, counts, …)
  loss = info_nce(…)
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.types import Scalar

_LEAST_NORM = 1e-8


@dataclasses.dataclass(frozen=True)
class ContrastOptions:
  """The contrastive loss.

  Attributes:
    weight: λ_c of the total loss.
    temperature: τ.
    num_anchors: M, drawn for each class with replacement.
    num_negatives: N, drawn for each anchor with replacement.
    anchor_threshold: δ_p, probability that an anchor's class must exceed.
    low_rank: r_l; a labeled cell is a negative of a class that is among its
      first r_l without being its label, an unlabeled one of a class from this
      rank on.
    high_rank: r_h; an unlabeled cell is a negative of classes before this
      rank.
    by_rank: whether ranks decide (the probability rank threshold of Table IV);
      else cells are negatives of every class but their label or, unlabeled,
      but their most probable one.
    anchor_entropy: which unlabeled cells are reliable: those with less
      entropy than the unreliable ones ('paper'), or the lowest α_t percent
      ('released').
    negatives: which unlabeled cells may be negatives: 'unreliable' (the
      method), 'reliable', 'all', or 'none' of them (Table III).
    bank: whether negatives of earlier steps are kept.
    capacity: rows of the bank for each class.
    first_capacity: of class 0, the background; 0: as the others.
    max_push: rows that a step adds for each class.
    dtype: in which the bank keeps rows.
  """

  weight: float = 0.1
  temperature: float = 0.5
  num_anchors: int = 256
  num_negatives: int = 50
  anchor_threshold: float = 0.3
  low_rank: int = 3
  high_rank: int = 20
  by_rank: bool = True
  anchor_entropy: Literal['paper', 'released'] = 'paper'
  negatives: Literal['unreliable', 'reliable', 'all', 'none'] = 'unreliable'
  bank: bool = True
  capacity: int = 30000
  first_capacity: int = 50000
  max_push: int = 4096
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    for name in (
      *('num_anchors', 'num_negatives', 'low_rank', 'capacity'),
      'max_push',
    ):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}: found {getattr(self, name)}, expected >= 1')
    if self.temperature <= 0:
      raise ValueError(
        f'temperature: found {self.temperature}, expected above 0'
      )
    if not 0 <= self.anchor_threshold < 1:
      raise ValueError(
        f'anchor_threshold: found {self.anchor_threshold}, expected 0 to 1'
      )
    if self.weight < 0:
      raise ValueError(f'weight: found {self.weight}, expected 0 or more')
    if self.low_rank >= self.high_rank:
      raise ValueError(
        f'low_rank={self.low_rank} and high_rank={self.high_rank}: expected '
        'low_rank < high_rank, or no unlabeled pixel would be a negative'
      )
    smallest = min(self.capacity, self.first_capacity or self.capacity)
    if smallest < self.num_negatives:
      raise ValueError(
        f'capacity: found {smallest}, expected at least num_negatives = '
        f'{self.num_negatives}'
      )
    if smallest < self.max_push:
      raise ValueError(
        f'max_push: found {self.max_push}, expected at most the bank of '
        f'{smallest} rows'
      )

  def check_classes(self, num_classes: int) -> None:
    """Raises ValueError where no unlabeled pixel could be a negative."""
    if self.by_rank and self.low_rank >= num_classes:
      raise ValueError(
        f'low_rank: found {self.low_rank}, expected less than the '
        f'{num_classes} classes, or the contrastive loss would be 0'
      )

  def capacities(self, num_classes: int) -> tuple[int, ...]:
    """Rows of each class."""
    first = self.first_capacity or self.capacity
    return (first, *[self.capacity] * (num_classes - 1))


class Candidates(NamedTuple):
  """Cells that may be drawn, for each class.

  Attributes:
    anchors: of the student (Eqs. 21-22).
    positives: whose mean is the class's prototype (Eq. 17).
    negatives: that are not of the class (Eqs. 25-28).
  """

  anchors: Bool[Array, 'B h w C']
  positives: Bool[Array, 'B h w C']
  negatives: Bool[Array, 'B h w C']


def ranks(probs: Float[Array, '*shape C']) -> Int[Array, '*shape C']:
  """O of Eq. 25: how many classes are more probable; of equals the first."""
  # Each class beside each other one: on a CPU sorting takes 30 times longer.
  own, other = probs[..., :, None], probs[..., None, :]
  classes = jnp.arange(probs.shape[-1])
  first = (own == other) & (classes < classes[:, None])
  return jnp.sum((other > own) | first, axis=-1, dtype=jnp.int32)


def candidates(
  probs: Float[Array, 'B h w C'],
  labels: Int[Array, 'B h w'],
  labeled: Bool[Array, 'B'],
  reliable: Bool[Array, 'B h w'],
  unreliable: Bool[Array, 'B h w'],
  options: ContrastOptions,
) -> Candidates:
  """Which cells stand for which class, and which against it.

  Args:
    probs: of the teacher.
    labels: ground truth, or the teacher's; a negative one is ignored.
    labeled: which images the ground truth is of.
    reliable: cells of unlabeled images whose label is believed.
    unreliable: cells of unlabeled images that may only be negatives.
    options: thresholds.
  """
  num_classes = probs.shape[-1]
  rank = ranks(probs)
  true = labeled[:, None, None]
  valid = labels >= 0
  named = labels[..., None] == jnp.arange(num_classes)
  positives = named & (valid & (true | reliable))[..., None]
  anchors = positives & (probs > options.anchor_threshold)
  # Confused with the class, without being of it.
  near = ~named & (true & valid)[..., None]
  # Surely not of the class, whatever it is.
  window = rank > 0
  if options.by_rank:
    near &= rank < options.low_rank
    window = (rank >= options.low_rank) & (rank < options.high_rank)
  sources = {
    'unreliable': unreliable,
    'reliable': reliable,
    'all': jnp.ones_like(reliable),
    'none': jnp.zeros_like(reliable),
  }
  used = sources[options.negatives] & ~true & valid
  return Candidates(anchors, positives, near | (window & used[..., None]))


def losses_of_classes(
  anchors: Float[Array, 'C M D'],
  positives: Float[Array, 'C D'],
  rows: Float[Array, 'C K D'],
  draws: Int[Array, 'C M N'],
  temperature: float,
) -> Float[Array, 'C']:
  """Mean InfoNCE of each class's anchors (Eq. 10).

  Classes are looked at one after the other, and what the gradient needs is
  found at once, so that only one class's negatives are ever in memory.

  Args:
    anchors: of the student; the only argument with a gradient.
    positives: prototype of each class.
    rows: of the bank.
    draws: which rows of its class each anchor is compared with.
    temperature: τ.
  """
  return _losses(temperature, anchors, positives, rows, draws)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(temperature, anchors, positives, rows, draws):
  return _losses_forward(temperature, anchors, positives, rows, draws)[0]


def _losses_forward(temperature, anchors, positives, rows, draws):
  def of_class(inputs):
    anchor, positive, ring, drawn = inputs
    negatives = ring[drawn].astype(anchor.dtype)
    loss = functools.partial(
      info_nce,
      positive=positive.astype(anchor.dtype),
      negatives=negatives,
      temperature=temperature,
    )
    return jax.value_and_grad(loss)(anchor)

  return jax.lax.map(of_class, (anchors, positives, rows, draws))


def _losses_backward(temperature, gradients, cotangent):
  del temperature
  return cotangent[:, None, None] * gradients, None, None, None


_losses.defvjp(_losses_forward, _losses_backward)


def info_nce(
  anchors: Float[Array, 'M D'],
  positive: Float[Array, 'D'],
  negatives: Float[Array, 'M N D'],
  temperature: float,
) -> Scalar:
  """Mean over anchors of -log softmax of the positive, by cosine over τ."""
  exact = jax.lax.Precision.HIGHEST
  anchors = _unit(anchors)
  to_positive = jnp.matmul(anchors, _unit(positive), precision=exact)
  to_negatives = jnp.einsum(
    'md,mnd->mn', anchors, _unit(negatives), precision=exact
  )
  logits = jnp.concatenate([to_positive[:, None], to_negatives], axis=1)
  logits = logits / temperature
  return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])


def mean_of_classes(
  found: Float[Array, 'C'],
  usable: Bool[Array, 'C'],
  present: Bool[Array, 'C'],
) -> Scalar:
  """Sum over usable classes, over the number of those present.

  0 where no more than one class is present (spec §3.4).

  Args:
    found: loss of each class.
    usable: those with an anchor, a prototype and something in the bank.
    present: those with a usable label.
  """
  num_present = jnp.sum(present)
  total = jnp.sum(jnp.where(usable, found, 0.0))
  return jnp.where(num_present > 1, total / jnp.maximum(num_present, 1), 0.0)


def _unit(x: Float[Array, '*shape D']) -> Float[Array, '*shape D']:
  norm = jnp.sqrt(
    jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), _LEAST_NORM**2)
  )
  return x / norm
