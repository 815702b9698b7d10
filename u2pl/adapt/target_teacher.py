"""The EMA teacher's part of a step: labels, mixed images, weights, targets.

  state, targets = target_teacher.teach(state, source, labels, target, keys)

Source: Hoyer et al. 2022 (DAFormer), Sec. 3.1; with reliability and contrast of
the U2PL+ paper.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from input_pipeline import batch as batch_lib
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize
from segcore.train import method
from segcore.types import Images
from u2pl import contrastive_branch, ema, ema_options, pseudo_labels
from u2pl.adapt import (
  losses,
  mixed_images,
  pixel_contrast,
  reused_outputs,
  self_training,
)
from u2pl.adapt import options as options_lib


@flax.struct.dataclass
class State(contrastive_branch.BranchFields, ema.TeacherState):
  """Training state of student, EMA teacher, frozen encoder and branch.

  Attributes:
    frozen: 'params' and 'batch_stats' of the encoder before step 0; None
      without feature distance.
  """

  frozen: Any


class StepKeys(NamedTuple):
  """PRNG keys of a step.

  Attributes:
    source: dropout of the student on source images.
    mixed: dropout of the student on mixed images.
    teacher: dropout of the teacher on source and mixed images.
    draws: pasted classes, color jitter and blur.
    branch: draws of the contrastive branch.
  """

  source: Array
  mixed: Array
  teacher: Array
  draws: Array
  branch: Array


class MixedTargets(NamedTuple):
  """Holds the mixed images and their targets, beside the source images.

  Attributes:
    mixed: mixed images and their labels.
    weights: weight of each of their pixels.
    contrastive: targets of the contrastive loss; None without one.
    scalars: scalars to log, by name.
    pseudo_labels: labels of the target images, as they are.
    target_outputs: outputs of the teacher for these images, by head.
  """

  mixed: mixed_images.MixedImages
  weights: Float[Array, 'B H W']
  contrastive: contrastive_branch.ContrastiveTargets | None
  scalars: types.Metrics
  pseudo_labels: Int[Array, 'B H W']
  target_outputs: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class TargetTeacher:
  """EMA teacher that labels target images and weighs mixed ones.

  Attributes:
    segmenter: network of student and teacher.
    options: options of teacher, mixing and contrastive branch.
    num_classes: number C of classes.
    num_steps: number of steps of the training.
  """

  segmenter: segmenter_lib.Segmenter
  options: options_lib.LearnOptions
  num_classes: int
  num_steps: int

  def teach(
    self,
    state: State,
    source: Images,
    labels: Int[Array, 'B H W'],
    target: batch_lib.Batch,
    keys: StepKeys,
  ) -> tuple[State, MixedTargets]:
    """Updates the teacher, mixes images, and computes what they are worth.

    Args:
      state: training state before the step.
      source: source images.
      labels: their ground truth.
      target: stream of the target images.
      keys: keys of the step.
    """
    options = self.options.self_training
    # First of all θ_t ← α·θ_t + (1 - α)·θ_s: at step 0 it is a copy.
    state = self.ema.update(state, state)
    images = batch_lib.batch_images_to_symmetric(target['image'])
    state, pseudo, share, outputs = self.pseudo_label(state, images)
    pseudo, _ = pseudo_labels.ignore_padded_pseudo_labels(
      pseudo, target.get('valid')
    )
    draws = mixed_images.sample_mixing_draws(
      keys.draws, len(images), self.num_classes, options
    )
    mixed = mixed_images.mix_domains(
      source, labels, images, pseudo, draws, options
    )
    scalars = {
      'confident_share': share,
      **losses.pseudo_label_accuracy(pseudo, target.get('label')),
    }
    weights = self_training.mixed_pixel_weights(
      mixed.kept, mixed.trusted, share
    )
    targets = MixedTargets(mixed, weights, None, scalars, pseudo, outputs)
    if not self.options.needs_entropy:
      return state, targets
    return self.teach_by_entropy(state, source, labels, targets, keys)

  def pseudo_label(
    self, state: State, images: Images
  ) -> tuple[State, Int[Array, 'B H W'], types.Scalar, dict[str, Array]]:
    """Labels target images by the teacher.

    The teacher's batch norms use and update the statistics of this pass;
    dropout and stochastic depth are left out.

    Returns:
      The state, pseudo-labels, the confident share, and outputs by head.
    """
    options = self.options.self_training
    reused = self.branch and self.options.mixed_outputs == 'reuse'
    has_rep = self.options.denoises or reused
    heads = ('logits', 'rep') if has_rep else ('logits',)
    outputs, state = self.ema.forward(state, images, heads, rng=None)
    scores = resize.resize_bilinear(outputs['logits'], images.shape[1:3])
    share = self_training.confident_share(scores, options.threshold)
    if self.options.denoises:
      due = state.step >= self.options.start_step
      scores = self.branch.denoise(
        state.branch, scores, outputs['rep'], options.denoise, due
      )
    labels = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return state, labels, share, outputs

  def teach_by_entropy(
    self,
    state: State,
    source: Images,
    labels: Int[Array, 'B H W'],
    targets: MixedTargets,
    keys: StepKeys,
  ) -> tuple[State, MixedTargets]:
    """Weighs mixed pixels by reliability, and updates the contrastive branch.

    Args:
      state: training state.
      source: source images.
      labels: their ground truth.
      targets: mixed images, and scalars to log, among them the confident share.
      keys: keys of the step.
    """
    mixed, scalars = targets.mixed, targets.scalars
    outputs, state = self.mixed_outputs(state, source, targets, keys)
    # Reliability: entropy below its (100 - α_t)-th percentile (Eqs. 11-15).
    reliability = self.partition_pixels(state.step, outputs.entropy, mixed)
    weights = self_training.weights_by_reliability(
      mixed.kept,
      mixed.trusted,
      reliability.reliable & mixed.trusted,
      scalars['confident_share'],
      self.options.self_training,
    )
    scalars |= losses.reliability_scalars(
      outputs.entropy, reliability, mixed.trusted
    )
    contrastive = None
    if self.branch:
      # Class means, anchors, and negatives into the bank (Eqs. 17-18, 21-28).
      branch, contrastive = pixel_contrast.update_branch_from(
        self.options.start_step,
        self.branch,
        state.branch,
        state.step,
        outputs.by_head,
        pixel_contrast.DomainPixels(
          labels, mixed, reliability, self.options.source_pixels
        ),
        keys.branch,
      )
      state = state.replace(**vars(branch))
      if contrastive is not None:
        scalars |= self.branch.scalars(branch, contrastive)
    return state, targets._replace(
      weights=weights, contrastive=contrastive, scalars=scalars
    )

  def mixed_outputs(
    self, state: State, source: Images, targets: MixedTargets, keys: StepKeys
  ) -> tuple[reused_outputs.JoinedOutputs, State]:
    """Computes entropies, ranks and representations of mixed images.

    In U2PL+ they are those of a second pass of the teacher, in training mode
    and on source and mixed images.

    Args:
      state: training state.
      source: source images.
      targets: mixed images, and the teacher's outputs for target images.
      keys: keys of the step.
    """
    heads = ('logits', 'rep') if self.branch else ('logits',)
    if self.options.mixed_outputs == 'reuse':
      # The pass of the loss, with the same dropout.
      student, _ = method.training_forward_pass(
        self.segmenter,
        state.params,
        state.batch_stats,
        source,
        heads=heads,
        rng=keys.source,
      )
      return reused_outputs.mix_outputs(
        student, targets.target_outputs, targets.mixed.kept
      ), state
    outputs, state = self.ema.forward(
      state,
      batch_lib.join_batch_rows([source, targets.mixed.images]),
      heads,
      keys.teacher,
    )
    _, logits = batch_lib.split_batch_rows(outputs['logits'], 2)
    entropy = pseudo_labels.pixel_entropy(
      resize.resize_bilinear(logits, source.shape[1:3])
    )
    return reused_outputs.JoinedOutputs(outputs, entropy), state

  def partition_pixels(
    self,
    step: Int[Array, ''],
    entropy: Float[Array, 'B H W'],
    mixed: mixed_images.MixedImages,
  ) -> pseudo_labels.Reliability:
    """Partitions pixels of mixed images by the teacher's entropy.

    Args:
      step: step of the training, which sets the share of unreliable pixels.
      entropy: entropy of each pixel, in nats.
      mixed: mixed images. The percentiles are those of target pixels in rows
        that have weight.
    """
    options = self.options
    return pseudo_labels.partition_by_entropy(
      entropy,
      pixel_contrast.unlabeled_pixels(mixed, options),
      options.partition.at(self.progress(step)),
      options.anchor_entropy,
      counted=mixed.trusted,
    )

  def progress(self, step: Int[Array, '']) -> types.Scalar:
    """Computes t / T of Eq. 15, of steps or of equal epochs, from 0 to 1."""
    finished, total = step, self.num_steps
    if self.options.partition_epochs:
      total = self.options.partition_epochs
      finished = step * total // self.num_steps
    return finished.astype(jnp.float32) / total

  @property
  def ema(self) -> ema.EmaTeacher:
    """Returns the EMA teacher, which is used from step 0 on."""
    options = ema_options.EmaOptions(self.options.self_training.ema_decay, 0)
    return ema.EmaTeacher(self.segmenter, options, 0, steps_per_epoch=1)

  @property
  def branch(self) -> contrastive_branch.ContrastiveBranch | None:
    """Returns the contrastive branch, if contrast or denoising need one."""
    return contrastive_branch.build_contrastive_branch(
      self.options, self.segmenter, self.num_classes, align_corners=False
    )
