"""Which of a teacher's labels are believed, and what it costs to miss them.

All maps here are at the resolution of the image (spec U2PL §1).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.models.layers import resize
from segcore.ops import losses
from segcore.types import Scalar

# A label's probability for a class that it does not name (spec §3.3).
_LABEL_FLOOR = 1e-4


@dataclasses.dataclass(frozen=True)
class Partition:
  """The share of pixels that counts as unreliable (dynamic partition).

  Attributes:
    percent: α₀ of Eq. 15, at the first step.
    dynamic: whether the share falls in a straight line to 0 at the last step;
      else it stays.
  """

  percent: float = 20.0
  dynamic: bool = True

  def __post_init__(self):
    if not 0 <= self.percent <= 100:
      raise ValueError(f'percent: found {self.percent}, expected 0 to 100')

  def at(self, progress: Scalar) -> Scalar:
    """α_t in percent.

    Args:
      progress: t / T, finished epochs of all.
    """
    left = 1 - progress if self.dynamic else jnp.ones_like(progress)
    return self.percent * left


def upsample(
  scores: Float[Array, 'B h w C'], size: tuple[int, int]
) -> Float[Array, 'B H W C']:
  """Resizes scores bilinearly with aligned corners, as the authors do (§1)."""
  return resize.bilinear(scores, size, align_corners=True)


def entropy(logits: Float[Array, '*shape C']) -> Float[Array, '*shape']:
  """Entropy of each pixel's prediction in nats, -Σ p log(p + 1e-10) (Eq. 11).

  >>> entropy(jnp.zeros((1, 4)))
  Array([1.3862944], dtype=float32)
  """
  probs = jax.nn.softmax(losses.at_least_float32(logits))
  return -jnp.sum(probs * jnp.log(probs + 1e-10), axis=-1)


def weight(kept: Bool[Array, '*shape']) -> Scalar:
  """λ_u of Eq. 14: pixels in all, over those that are kept; at most all."""
  return kept.size / jnp.maximum(jnp.sum(kept), 1).astype(jnp.float32)


def symmetric_cross_entropy(
  logits: Float[Array, '*shape C'],
  labels: Int[Array, '*shape'],
  forward: float = 1.0,
  reverse: float = 0.1,
) -> Float[Array, '*shape']:
  """ξ₁·CE + ξ₂·RCE of each pixel; 0 where the label is negative (Eq. 16).

  The reverse cross entropy takes the label, at least 1e-4 for every class, for
  the prediction: -log(1e-4)·(1 - p_y).

  Args:
    logits: of the student.
    labels: of the teacher.
    forward: ξ₁.
    reverse: ξ₂; 0 leaves the cross entropy.
  """
  loss = forward * losses.cross_entropy(logits, labels)
  if not reverse:
    return loss
  backward = -jnp.log(_LABEL_FLOOR) * (
    1 - losses.label_probability(logits, labels)
  )
  return loss + reverse * jnp.where(labels < 0, 0.0, backward)
