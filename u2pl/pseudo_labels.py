"""Reliability of pseudo-labels and the losses of training on them.

Everything here is at the resolution of the image (spec U2PL §1).
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import batch as batch_lib
from segcore.models.layers import resize
from segcore.ops import losses, order_statistics
from segcore.types import Scalar

# The one-hot label is clipped to [1e-4, 1] in the reverse cross entropy, whose
# logarithm would be infinite (spec §3.3).
_LABEL_FLOOR = 1e-4
# Inside the logarithm of the entropy, as in the released code.
_ENTROPY_EPSILON = 1e-10


@dataclasses.dataclass(frozen=True)
class PartitionOptions:
  """Share of pixels that counts as unreliable (dynamic partition adjustment).

  Attributes:
    percent: share α₀ of Eq. 15 at the first step, in percent.
    dynamic: whether the share decreases linearly to 0 at the last step; else it
      is constant.
  """

  percent: float = 20.0
  dynamic: bool = True

  def __post_init__(self):
    if not 0 <= self.percent <= 100:
      raise ValueError(f'percent: expected 0 to 100, got {self.percent}')

  def at(self, progress: Scalar) -> Scalar:
    """Computes α_t in percent (Eq. 15).

    Args:
      progress: t / T, finished epochs over all epochs.
    """
    left = 1 - progress if self.dynamic else jnp.ones_like(progress)
    return self.percent * left


def ignore_padded_pseudo_labels(
  labels: Int[Array, 'B H W'], valid: Bool[Array, 'B H W'] | None
) -> tuple[Int[Array, 'B H W'], Int[Array, '']]:
  """Replaces the pseudo-labels of ignored padding by a negative label.

  Args:
    labels: pseudo-labels of the teacher.
    valid: False on ignored padding; None if there is none.

  Returns:
    The labels, and the number of pixels without ignored padding.
  """
  if valid is None:
    return labels, jnp.asarray(labels.size)
  return jnp.where(valid, labels, batch_lib.IGNORE), jnp.sum(valid)


class Reliability(NamedTuple):
  """Partition of the pixels of unlabeled images by the teacher's entropy.

  Attributes:
    reliable: pixels of the unsupervised loss (Eq. 12).
    unreliable: pixels that may only be negatives (Eq. 27).
    anchors: pixels that may be anchors or positives of their pseudo-label.
  """

  reliable: Bool[Array, 'B H W']
  unreliable: Bool[Array, 'B H W']
  anchors: Bool[Array, 'B H W']


def upsample_teacher_scores(
  scores: Float[Array, 'B h w C'], size: tuple[int, int]
) -> Float[Array, 'B H W C']:
  """Resizes scores bilinearly with aligned corners, as the authors do (§1)."""
  return resize.resize_bilinear(scores, size, align_corners=True)


def pixel_entropy(logits: Float[Array, '*shape C']) -> Float[Array, '*shape']:
  """Computes each pixel's entropy in nats, -Σ p log(p + 1e-10) (Eq. 11).

  >>> pixel_entropy(jnp.zeros((1, 4)))
  Array([1.3862944], dtype=float32)
  """
  probs = jax.nn.softmax(losses.at_least_float32(logits))
  return -jnp.sum(probs * jnp.log(probs + _ENTROPY_EPSILON), axis=-1)


def confident_pixels(
  logits: Float[Array, 'B H W C'], labels: Int[Array, 'B H W'], least: float
) -> Bool[Array, 'B H W']:
  """Returns where a label has at least a probability by the logits.

  Args:
    logits: logits of the teacher for the images before mixing.
    labels: their pseudo-labels; negative ones are never confident.
    least: least softmax probability.
  """
  return (labels >= 0) & (losses.label_probability(logits, labels) >= least)


def partition_by_entropy(
  entropies: Float[Array, 'B H W'],
  valid: Bool[Array, 'B H W'],
  percent: Scalar,
  anchor_entropy: Literal['paper', 'released'] = 'paper',
  counted: Bool[Array, 'B H W'] | None = None,
) -> Reliability:
  """Splits pixels at γ_t, the (100 - α_t)-th percentile of the entropy.

  The percentile is that of the global batch, so the result does not depend on
  the number of devices; the authors take that of the images of one GPU.

  Args:
    entropies: entropies of the teacher's predictions, in nats.
    valid: pixels with a pseudo-label.
    percent: α_t in percent.
    anchor_entropy: rule for anchors, as in
      `contrast.ContrastOptions.anchor_entropy`.
    counted: pixels whose percentiles are computed; None for `valid`.
  """
  counted = valid if counted is None else counted
  # γ_t: pixels strictly below it are reliable. At α_t = 0 all are, except those
  # of the largest entropy.
  gamma = order_statistics.percentile(entropies, counted, 100 - percent)
  reliable = valid & (entropies < gamma)
  anchors = reliable
  if anchor_entropy == 'released':
    # The released code keeps the lowest α_t percent: 20 % shrinking to 0,
    # where the paper keeps 80 % growing to 100 % (spec §0, row 3).
    lowest = order_statistics.percentile(entropies, counted, percent)
    anchors = valid & (entropies <= lowest)
  return Reliability(reliable, valid & (entropies >= gamma), anchors)


def reliable_pixel_weight(
  kept: Bool[Array, '*shape'], num_pixels: Int[Array, ''] | int
) -> Scalar:
  """Computes λ_u of Eq. 14, all pixels over those kept.

  Where no pixel is kept, the weight is the number of all pixels.

  Args:
    kept: pixels that count.
    num_pixels: number of all pixels without ignored padding; those that Cutout
      ignores count, as in the released code.
  """
  return num_pixels / jnp.maximum(jnp.sum(kept), 1).astype(jnp.float32)


def symmetric_cross_entropy(
  logits: Float[Array, '*shape C'],
  labels: Int[Array, '*shape'],
  forward: float = 1.0,
  reverse: float = 0.1,
) -> Float[Array, '*shape']:
  """Computes ξ₁·CE + ξ₂·RCE of each pixel in nats (Eq. 16).

  The reverse cross entropy exchanges prediction and label, the one-hot label
  clipped from below at 1e-4: it is -log(1e-4)·(1 - p_y). Both are 0 where the
  label is negative.

  Args:
    logits: logits of the student.
    labels: pseudo-labels.
    forward: weight ξ₁ of the cross entropy.
    reverse: weight ξ₂ of the reverse cross entropy; 0 leaves it out.
  """
  loss = forward * losses.cross_entropy(logits, labels)
  if not reverse:
    return loss
  # RCE = -Σ_c p_c log(clip(one-hot_c)): the label's term is log 1 = 0, and the
  # other classes have 1 - p_y together.
  backward = -jnp.log(_LABEL_FLOOR) * (
    1 - losses.label_probability(logits, labels)
  )
  return loss + reverse * jnp.where(labels < 0, 0.0, backward)
