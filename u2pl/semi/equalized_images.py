"""Images and targets of a step of AEL, and results of its student."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from input_pipeline import batch as batch_lib
from segcore import types
from segcore.ops import losses
from segcore.types import PixelLabels, PixelMask
from u2pl import pseudo_labels
from u2pl.semi import equalization_options


class Targets(NamedTuple):
  """Targets of the student, by the teacher.

  Attributes:
    labels: pseudo-labels; negative where they are not learned.
    probability: largest probability of a class, whose square is the weight of
      the pixel.
    counted: pixels without ignored padding.
  """

  labels: PixelLabels
  probability: Float[Array, 'B H W']
  counted: PixelMask


class MixedBoxes(NamedTuple):
  """Boxes that are pasted into unlabeled images.

  Attributes:
    masks: pixels that come from the other image of the pair.
    of_component: whether a box is that of a component of the drawn class.
  """

  masks: PixelMask
  of_component: Bool[Array, 'B']

  def paste(
    self, own: Shaped[Array, 'B H W *D'], other: Shaped[Array, 'B H W *D']
  ) -> Shaped[Array, 'B H W *D']:
    """Returns `own` with the pixels of `other` in the boxes."""
    masks = self.masks.reshape(
      *self.masks.shape, *(1,) * (own.ndim - self.masks.ndim)
    )
    return jnp.where(masks, other, own)

  def paste_pairs(
    self, pairs: Shaped[Array, 'N H W *D']
  ) -> Shaped[Array, 'B H W *D']:
    """Returns the first of each two rows with the pixels of the second."""
    return self.paste(
      *batch_lib.split_batch_rows(pairs, equalization_options.GROUP)
    )


class StudentInputs(NamedTuple):
  """Images of the student's step, and what it learns on them.

  Attributes:
    labeled: labeled images after Copy-Paste, in [-1, 1].
    labels: their ground truth.
    labeled_targets: their targets by the teacher.
    mixed: unlabeled images after CutMix, one of each pair.
    targets: their targets by the teacher.
    predicted: classes of all unlabeled images by the teacher; negative on
      ignored padding.
    boxes: boxes by which these were mixed.
  """

  labeled: Float[Array, 'B H W 3']
  labels: PixelLabels
  labeled_targets: Targets
  mixed: Float[Array, 'N H W 3']
  targets: Targets
  predicted: PixelLabels
  boxes: MixedBoxes


class StudentPass(NamedTuple):
  """Results of the student's two forward passes.

  Attributes:
    outputs: outputs by head for labeled and for mixed images.
    batch_stats: batch statistics after both.
    terms: terms of the loss by name.
    confidence: confidence of each class after the labeled images.
    kept_share: share of the mixed pixels that equalization sampling keeps.
  """

  outputs: tuple[dict[str, Array], dict[str, Array]]
  batch_stats: types.Params
  terms: types.Metrics
  confidence: Float[Array, 'C']
  kept_share: types.Scalar

  @property
  def results(self) -> dict[str, Array]:
    """Returns what a loss passes on: terms, share, and the confidence."""
    return {
      **self.terms,
      'kept_share': self.kept_share,
      'confidence': self.confidence,
    }


def teacher_targets(
  scores: Float[Array, 'B H W C'],
  labels: PixelLabels,
  counted: PixelMask,
  confidence: float,
) -> Targets:
  """Builds targets of the student.

  Args:
    scores: logits of the teacher.
    labels: their pseudo-labels; negative where they are not learned.
    counted: pixels without ignored padding.
    confidence: least probability of a pseudo-label that is learned.
  """
  probability = jnp.max(
    jax.nn.softmax(losses.at_least_float32(scores)), axis=-1
  )
  learned = counted & (probability >= confidence)
  return Targets(
    jnp.where(learned, labels, batch_lib.IGNORE), probability, counted
  )


def upsample(
  logits: Float[Array, 'B h w C'], pixels: Shaped[Array, 'B H W']
) -> Float[Array, 'B H W C']:
  """Resizes logits to the resolution of the pixels."""
  return pseudo_labels.upsample_teacher_scores(logits, pixels.shape[1:])


def hard_labels(scores: Float[Array, 'B H W C']) -> PixelLabels:
  """Returns the class of the largest score of each pixel."""
  return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def known_pixels(batch: batch_lib.Batch) -> PixelMask:
  """Returns the pixels of unlabeled images without ignored padding."""
  unlabeled = batch['unlabeled']
  shape = unlabeled['image'].shape[:3]
  return unlabeled.get('valid', jnp.ones(shape, bool))


def drawn_images(
  predicted: PixelLabels, batch: batch_lib.Batch
) -> tuple[Int[Array, 'N H W'], Int[Array, 'N']]:
  """Returns the second image of each pair, which boxes are taken from.

  Args:
    predicted: classes of all unlabeled images by the teacher.
    batch: batch of training.

  Returns:
    Its classes by pixel, and the class that it was drawn for.
  """
  return tuple(
    batch_lib.split_batch_rows(x, equalization_options.GROUP)[1]
    for x in (predicted, batch['unlabeled']['drawn_class'])
  )
