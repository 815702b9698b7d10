"""Contrastive targets of U2PL+ between source and mixed images.

branch_state, targets = update_branch_from(
  start_step, branch, branch_state, step, outputs, pixels, rng
)
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from input_pipeline import batch as batch_lib
from segcore.models.layers import resize
from u2pl import contrastive_branch, pseudo_labels
from u2pl.adapt import mixed_images
from u2pl.adapt import options as options_lib


class DomainPixels(NamedTuple):
  """Labels of the pixels of source and mixed images.

  Attributes:
    labels: ground truth of the source images.
    mixed: mixed images with their labels.
    reliability: partition of their pixels that count as unlabeled.
    source_pixels: what their source pixels are, as in
      `options.LearnOptions.source_pixels`.
  """

  labels: Int[Array, 'B H W']
  mixed: mixed_images.MixedImages
  reliability: pseudo_labels.Reliability
  source_pixels: Literal['labeled', 'unlabeled', 'ignored']


def unlabeled_pixels(
  mixed: mixed_images.MixedImages, options: options_lib.LearnOptions
) -> Bool[Array, 'B H W']:
  """Computes which pixels of mixed images are partitioned by their entropy.

  By default these are target pixels in rows that have weight.

  Args:
    mixed: mixed images with their labels.
    options: whether source pixels, and all rows, are among them.
  """
  has_label = mixed.labels >= 0
  unlabeled = mixed.trusted
  if options.ignored_rows:
    unlabeled |= ~mixed.kept & has_label
  if options.source_pixels == 'unlabeled':
    unlabeled |= mixed.kept & has_label
  return unlabeled


def joined_labels_and_masks(
  pixels: DomainPixels,
) -> tuple[Int[Array, 'B_joined H W'], contrastive_branch.PixelMasks]:
  """Returns labels and masks of source and mixed images, joined.

  By default source pixels are labeled ones, in mixed images too (Eq. 26), and
  target pixels in rows without weight are ignored: they are neither anchors nor
  negatives.
  """
  mixed, join = pixels.mixed, batch_lib.join_batch_rows
  everywhere = jnp.ones_like(mixed.kept)
  labeled = mixed.kept & (pixels.source_pixels == 'labeled')
  unlabeled = pixels.reliability.reliable | pixels.reliability.unreliable
  known = jnp.where(labeled | unlabeled, mixed.labels, batch_lib.IGNORE)
  return join([pixels.labels, known]), contrastive_branch.PixelMasks(
    labeled=join([everywhere, labeled]),
    reliable=join([~everywhere, pixels.reliability.anchors]),
    unreliable=join([~everywhere, pixels.reliability.unreliable]),
  )


def update_branch_from(
  start_step: int,
  branch: contrastive_branch.ContrastiveBranch,
  state: contrastive_branch.BranchState,
  step: Int[Array, ''],
  outputs: dict[str, Array],
  pixels: DomainPixels,
  rng: Array,
) -> tuple[
  contrastive_branch.BranchState, contrastive_branch.ContrastiveTargets | None
]:
  """Updates bank and prototypes, and draws the contrastive targets.

  Args:
    start_step: step before which nothing is updated, and targets have no class.
    branch: the contrastive branch.
    state: its state before the step.
    step: number of the step.
    outputs: outputs `logits` and `rep` of the teacher for source and mixed
      images, joined.
    pixels: labels of the same images.
    rng: key of the draws.
  """
  labels, masks = joined_labels_and_masks(pixels)
  features = outputs['rep']
  probs = jax.nn.softmax(
    resize.resize_bilinear(outputs['logits'], features.shape[1:3])
  )

  def update(state):
    return branch.update(state, features, probs, labels, masks, rng)

  def wait(state):
    # Zeros, of the structure that `update` returns: branches have to agree.
    _, spec = jax.eval_shape(update, state)
    return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec)

  return jax.lax.cond(step >= start_step, update, wait, state)
