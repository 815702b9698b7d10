"""Contrastive branch of U2PL: memory bank, prototypes, targets and loss.

A method that has one holds its state and calls it twice in a step:

  state, targets = branch.update(state, teacher_features, …)
  loss = branch.loss(student_features, targets, state)

Semi-supervised, domain-adaptive and weakly supervised U2PL+ and AEL differ in
the masks or candidates that they pass.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize
from segcore.ops import order_statistics
from segcore.train import update as update_lib
from segcore.types import Scalar
from u2pl import branch_options, contrast, memory_bank, prototypes


@flax.struct.dataclass
class BranchState:
  """State of a contrastive branch.

  Attributes:
    bank: `memory_bank.Bank`; None for a branch without a loss.
    prototypes: `prototypes.Prototypes`.
  """

  bank: Any
  prototypes: Any


@flax.struct.dataclass
class BranchFields:
  """Training state that has the fields of a branch's state as its own.

  Paths in checkpoints, which must stay, name the bank and the prototypes one by
  one.

  Attributes:
    bank: memory bank; None without contrast.
    prototypes: prototypes of the classes; None without representations.
  """

  bank: Any
  prototypes: Any

  @property
  def branch(self) -> BranchState:
    """Returns the state of the contrastive branch."""
    return BranchState(self.bank, self.prototypes)


class PixelMasks(NamedTuple):
  """Pixels by the source of their label, for the candidates of the loss.

  Attributes:
    labeled: pixels with ground truth.
    reliable: unlabeled pixels with a reliable pseudo-label.
    unreliable: unlabeled pixels that may only be negatives.
  """

  labeled: Bool[Array, 'B H W']
  reliable: Bool[Array, 'B H W']
  unreliable: Bool[Array, 'B H W']


@flax.struct.dataclass
class ContrastiveTargets:
  """Anchors of a step, and the keys that they are compared with.

  Attributes:
    anchors: int [C, M], cells of the batch, b·h·w + cell.
    draws: int [C, M, N], rows of the bank.
    positives: [C, D], prototypes.
    usable: bool [C], classes with an anchor and a row in the bank.
    present: bool [C], classes with a trusted label.
  """

  anchors: Any
  draws: Any
  positives: Any
  usable: Any
  present: Any


@dataclasses.dataclass(frozen=True)
class ContrastiveBranch:
  """Contrastive loss between pixels, with a memory bank and class prototypes.

  Attributes:
    num_classes: number C of classes.
    feature_size: number D of features of a representation.
    options: options of the loss; None for prototypes alone, to denoise
      pseudo-labels.
    prototype_momentum: momentum m of Eq. 18; 0 takes the class means of each
      step.
    align_corners: whether maps are upsampled with aligned corners.
  """

  num_classes: int
  feature_size: int
  options: contrast.PairOptions | None
  prototype_momentum: float = 0.0
  align_corners: bool = True

  def init(self) -> BranchState:
    """Returns the state before step 0: an empty bank and no prototypes."""
    bank = None
    if self.options:
      bank = memory_bank.empty_memory_bank(
        self.options.capacities(self.num_classes),
        self.feature_size,
        jnp.dtype(self.options.dtype),
      )
    return BranchState(
      bank,
      prototypes.empty_class_prototypes(self.num_classes, self.feature_size),
    )

  def update(
    self,
    state: BranchState,
    features: Float[Array, 'B h w D'],
    probs: Float[Array, 'B h w C'],
    labels: Int[Array, 'B H W'],
    masks: PixelMasks,
    rng: Array,
  ) -> tuple[BranchState, ContrastiveTargets | None]:
    """Updates prototypes and bank, then draws the targets of this step.

    Args:
      state: state of the branch before the step.
      features: representations of the teacher, without gradient.
      probs: class probabilities of the teacher, at the features' cells.
      labels: ground truth and pseudo-labels; negative where ignored.
      masks: masks of pixels at the resolution of the labels.
      rng: key of this step's draws.

    Returns:
      The state after the step, and the targets; None without a loss.
    """
    # Labels and masks are resized to the cells, not features to the pixels:
    # representations are compared at their own stride (spec §1).
    cells = features.shape[1:3]
    labels = resize.resize_nearest_floor(labels, cells)
    labeled, reliable, unreliable = (
      resize.resize_nearest_floor(mask, cells) for mask in masks
    )
    if not self.options:
      positives = contrast.positive_cells(
        labels, labeled, reliable, self.num_classes
      )
      return self._update_prototypes(state, features, positives)[0], None
    candidates = contrast.contrast_candidates(
      probs, labels, labeled, reliable, unreliable, self.options
    )
    return self.update_with(state, features, candidates, rng)

  def update_with(
    self,
    state: BranchState,
    features: Float[Array, 'B h w D'],
    candidates: contrast.Candidates,
    rng: Array,
  ) -> tuple[BranchState, ContrastiveTargets]:
    """Updates as `update` does, with candidates chosen by another rule."""
    state, counts = self._update_prototypes(
      state, features, candidates.positives
    )
    # A key of its own for each: anchors do not depend on what is enqueued.
    push_rng, anchor_rng, bank_rng = jax.random.split(rng, 3)
    bank = (
      state.bank
      if self.options.bank
      else memory_bank.clear_memory_bank(state.bank)
    )
    # Before the draws, so that negatives of this step can be drawn: else the
    # first step, and every step without a bank, would have none (spec §3.4).
    bank = self._push(bank, features, candidates.negatives, push_rng)

    # M anchors a class, and N rows of the bank for each. Draws are with
    # replacement: shapes are static, however few there are.
    anchors = _by_pixel(candidates.anchors)
    num_anchors = jnp.sum(anchors, axis=(0, 1), dtype=jnp.int32)
    shape = (self.num_classes, self.options.num_anchors)
    ranks = order_statistics.ranks_from_uniforms(
      jax.random.uniform(anchor_rng, shape), num_anchors[:, None]
    )
    slots = order_statistics.ranks_from_uniforms(
      jax.random.uniform(bank_rng, (*shape, self.options.num_negatives)),
      bank.count[:, None, None],
    )
    return state.replace(bank=bank), ContrastiveTargets(
      anchors=order_statistics.nth_true_pixels(anchors, ranks),
      draws=memory_bank.bank_rows_of_slots(bank, slots),
      positives=state.prototypes.vectors,
      usable=(num_anchors > 0) & (bank.count > 0),
      present=counts > 0,
    )

  def loss(
    self,
    features: Float[Array, 'B h w D'],
    targets: ContrastiveTargets,
    state: BranchState,
  ) -> Scalar:
    """Computes the contrastive loss L_c (Eq. 10), without its weight.

    Args:
      features: representations by the student of the batch passed to `update`.
      targets: targets of this step.
      state: state of the branch that `update` returned, since the draws are
        rows of its bank.
    """
    # Anchors are indices of cells: the teacher selects them, and the student's
    # representations at these cells get the gradient.
    flat = features.reshape(-1, features.shape[-1])
    losses = contrast.class_contrast_losses(
      flat[targets.anchors],
      targets.positives,
      state.bank.rows,
      targets.draws,
      self.options.temperature,
    )
    return contrast.mean_contrast_over_classes(
      losses, targets.usable, targets.present
    )

  def denoise(
    self,
    state: BranchState,
    scores: Float[Array, 'B H W C'],
    features: Float[Array, 'B h w D'],
    kind: Literal['raw', 'l2'],
    due: Bool[Array, ''],
  ) -> Float[Array, 'B H W C']:
    """Denoises scores with the prototypes (Eqs. 19-20).

    Args:
      state: state of the branch before this step's update.
      scores: logits of the teacher.
      features: representations of the same images by the teacher.
      kind: kind of distance, as in `prototypes.class_prototype_distances`.
      due: whether to denoise even if a class has no prototype yet; otherwise a
        class that never occurs would delay denoising forever.
    """
    denoised = prototypes.denoise_with_class_prototypes(
      scores, features, state.prototypes, kind, self.align_corners
    )
    # A class without a prototype has no distance of its own (Eq. 19).
    ready = due | jnp.all(state.prototypes.updates > 0)
    return jnp.where(ready, denoised, scores)

  def scalars(
    self, state: BranchState, targets: ContrastiveTargets
  ) -> dict[str, Scalar]:
    """Returns the fill of the bank and the share of classes with a loss."""
    fill = memory_bank.memory_bank_fill(state.bank)
    num_present = jnp.sum(targets.present, dtype=jnp.float32)
    num_used = jnp.sum(targets.present & targets.usable, dtype=jnp.float32)
    return {
      **{f'bank_fill/{i}': fill[i] for i in range(self.num_classes)},
      'contrasted_share': num_used / jnp.maximum(num_present, 1.0),
    }

  def _update_prototypes(
    self,
    state: BranchState,
    features: Float[Array, 'B h w D'],
    positives: Bool[Array, 'B h w C'],
  ) -> tuple[BranchState, Int[Array, 'C']]:
    """Applies Eqs. 17-18; returns the cells of each class as well."""
    means, counts = prototypes.class_mean_features(features, positives)
    updated = prototypes.update_class_prototypes(
      state.prototypes, means, counts, self.prototype_momentum
    )
    return state.replace(prototypes=updated), counts

  def _push(
    self,
    bank: memory_bank.Bank,
    features: Float[Array, 'B h w D'],
    negatives: Bool[Array, 'B h w C'],
    rng: Array,
  ) -> memory_bank.Bank:
    """Enqueues at most `max_push` negatives of each class.

    A step of the paper's size has about 43,000 negatives of each class, more
    than the bank holds: without a sample it would keep the last images alone.
    """
    mask = _by_pixel(negatives)
    num_images, num_pixels, _ = mask.shape
    max_push = min(self.options.max_push, num_images * num_pixels)
    # Each pixel's priority comes from its image's key, so that the sample is
    # the same on any number of devices.
    priorities = order_statistics.sample_pixel_priorities(
      update_lib.row_prng_keys(rng, num_images), num_pixels
    )
    sampled = order_statistics.keep_top_priorities(mask, priorities, max_push)
    ranks = jnp.broadcast_to(jnp.arange(max_push), (self.num_classes, max_push))
    # Rows of whichever device, replicated: the largest transfer of a step.
    flat = features.reshape(-1, features.shape[-1])
    rows = flat[order_statistics.nth_true_pixels(sampled, ranks)]
    counts = jnp.sum(sampled, axis=(0, 1), dtype=jnp.int32)
    # More are sampled where priorities are equal; the first max_push are taken.
    return memory_bank.push_negatives(bank, rows, jnp.minimum(counts, max_push))


def build_contrastive_branch(
  options: branch_options.BranchOptions,
  segmenter: segmenter_lib.Segmenter,
  num_classes: int,
  *,
  align_corners: bool = True,
) -> ContrastiveBranch | None:
  """Builds the branch of a method; None if neither loss nor denoising need it.

  Args:
    options: options of the method.
    segmenter: network of the student, whose head `rep` is compared.
    num_classes: number C of classes.
    align_corners: whether maps are upsampled with aligned corners.
  """
  if not options.needs_representations:
    return None
  return ContrastiveBranch(
    num_classes,
    segmenter.heads.modules['rep'].out_features,
    options.contrast,
    options.prototype_momentum,
    align_corners,
  )


def _by_pixel(mask: Bool[Array, 'B h w C']) -> Bool[Array, 'B P C']:
  return mask.reshape(len(mask), -1, mask.shape[-1])
