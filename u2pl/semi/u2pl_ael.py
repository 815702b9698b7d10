"""U2PL on AEL: its contrastive branch, on the images that AEL mixes.

Source: Wang et al. 2022, "Semi-Supervised Semantic Segmentation Using
Unreliable Pseudo-Labels", whose results on Cityscapes are those of this system
(spec of the baselines §1.7). With symmetric cross entropy, denoising and
momentum prototypes it is U2PL+ on AEL.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from segcore import types
from segcore.models.layers import resize
from segcore.ops import losses as pixel_losses
from segcore.ops import order_statistics
from segcore.train.train_state import StepResult
from u2pl import contrastive_branch, pseudo_labels
from u2pl.semi import equalization, equalization_options, equalized_images


@flax.struct.dataclass
class State(contrastive_branch.BranchFields, equalization.State):
  """Training state of AEL with a contrastive branch."""


class EntropySets(NamedTuple):
  """Sets of the pixels of mixed images by the teacher's entropy.

  Attributes:
    dropped: pixels that the consistency leaves out.
    reliable: pixels that may be anchors and positives.
    unreliable: pixels that may only be negatives.
  """

  dropped: Bool[Array, 'B H W']
  reliable: Bool[Array, 'B H W']
  unreliable: Bool[Array, 'B H W']


def split_by_entropy(
  entropies: Float[Array, 'B H W'],
  valid: Bool[Array, 'B H W'],
  percent: types.Scalar,
  options: equalization_options.U2plAelOptions,
) -> EntropySets:
  """Splits the pixels of each image by percentiles of that image.

  The authors mix one image on each GPU.

  Args:
    entropies: entropies of the teacher's predictions, in nats.
    valid: pixels without ignored padding.
    percent: α_t in percent.
    options: shares, and which end of the entropies is dropped.
  """

  def percentile(percent: types.Scalar | float) -> Float[Array, 'B 1 1']:
    of_image = functools.partial(order_statistics.percentile, percent=percent)
    return jax.vmap(of_image)(entropies, valid)[:, None, None]

  if options.entropy_drop == 'highest_paper':
    unreliable = valid & (entropies >= percentile(100 - percent))
    return EntropySets(unreliable, valid & ~unreliable, unreliable)
  # The released code drops the most certain pixels. Its anchors are the rest of
  # the lowest α₀ percent, its negatives the highest: both of fixed percentiles.
  share = options.partition.percent
  dropped = valid & (entropies < percentile(percent))
  return EntropySets(
    dropped,
    valid & (entropies <= percentile(share)) & ~dropped,
    valid & (entropies >= percentile(100 - share)),
  )


class U2plAel(equalization.EqualizedTeacher):
  """U2PL on AEL, of a student and its EMA teacher."""

  options: equalization_options.U2plAelOptions

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> State:
    """Initializes the student, its teacher and an empty branch."""
    fresh = super().init(rng, batch_spec, loaded)
    return State(**vars(fresh), **vars(self.branch.init()))

  def train_step(self, state: State, batch: Batch) -> StepResult:
    """Runs one step of U2PL on AEL."""
    rng = jax.random.fold_in(state.rng, state.step)
    teacher_rng, student_rng = jax.random.split(rng)
    state, inputs, contrastive = self.teach(state, batch, teacher_rng)

    def loss(params):
      # Student on labeled, then on mixed images: losses of AEL.
      result = self.student_pass(params, state, inputs, student_rng)
      # L_c between pixels of both (Eq. 10).
      contrast = self.branch.loss(
        _join_images(*(x['rep'] for x in result.outputs)),
        contrastive,
        state.branch,
      )
      total = sum(result.terms.values())
      total += self.options.contrast.weight * contrast
      terms = {**result.results, 'loss_contrast': contrast}
      return total, (terms, result.batch_stats)

    after, metrics = self.update_state(state, batch, inputs, loss)
    return after, {**metrics, **self.branch.scalars(after.branch, contrastive)}

  def teach(
    self, state: State, batch: Batch, rng: Array
  ) -> tuple[
    State, equalized_images.StudentInputs, contrastive_branch.ContrastiveTargets
  ]:
    """Mixes images; computes the student's targets, updates the branch."""
    paste_rng, box_rng, labeled_rng, mixed_rng, draw_rng = jax.random.split(
      rng, 5
    )
    state = self.teacher.copy_student(state)
    # Adaptive Copy-Paste; teacher in training mode on labeled images.
    labeled, labels = self.paste_labeled(state, batch, paste_rng)
    outputs, state = self.teacher.forward(
      state, labeled, ('logits', 'rep'), labeled_rng
    )
    features = outputs['rep']
    labeled_scores = equalized_images.upsample(outputs['logits'], labels)
    labeled_targets = self.targets(
      labeled_scores,
      equalized_images.hard_labels(labeled_scores),
      jnp.ones_like(labels, bool),
    )
    # In evaluation mode on unlabeled ones, both of each pair.
    unlabeled = batch_lib.batch_images_to_symmetric(batch['unlabeled']['image'])
    pseudo, scores = self.pseudo_label(state, unlabeled)
    # Adaptive CutMix; labels and logits are pasted as pixels are.
    known = equalized_images.known_pixels(batch)
    predicted = jnp.where(known, pseudo, batch_lib.IGNORE)
    boxes = self.class_boxes(
      *equalized_images.drawn_images(predicted, batch), box_rng
    )
    mixed, pseudo, scores, known = map(
      boxes.paste_pairs, (unlabeled, predicted, scores, known)
    )
    # Unreliable pixels by the entropy of the pasted logits (Eqs. 11-15).
    percent = self.options.partition.at(self.progress(state))
    sets = split_by_entropy(
      pseudo_labels.pixel_entropy(scores), known, percent, self.options
    )
    targets = self.targets(
      scores, jnp.where(sets.dropped, batch_lib.IGNORE, pseudo), known
    )
    # In training mode on mixed images, for representations; then prototypes,
    # anchors and negatives (Eqs. 17-18, 21-28).
    outputs, state = self.teacher.forward(state, mixed, ('rep',), mixed_rng)
    state, contrastive = self.contrastive_targets(
      state,
      _join_images(features, outputs['rep']),
      (labeled_scores, scores),
      _join_images(labels, pseudo),
      sets,
      draw_rng,
    )
    inputs = equalized_images.StudentInputs(
      *(labeled, labels, labeled_targets, mixed, targets, predicted, boxes)
    )
    return state, inputs, contrastive

  def pseudo_label(
    self, state: State, images: Float[Array, 'B H W 3']
  ) -> tuple[Int[Array, 'B H W'], Float[Array, 'B H W C']]:
    """Computes labels in evaluation mode, in U2PL+ denoised (Eqs. 19-20).

    Returns:
      The labels, and the logits before denoising.
    """
    denoise = self.options.denoise
    heads = ('logits',) if denoise == 'off' else ('logits', 'rep')
    outputs = self.segmenter.apply(
      self.teacher.variables(state), images, heads=heads
    )
    logits = scores = equalized_images.upsample(
      outputs['logits'], images[..., 0]
    )
    if denoise != 'off':
      # An epoch after the first prototypes.
      due = state.step >= self.contrast_step + self.steps_per_epoch
      scores = self.branch.denoise(
        state.branch, scores, outputs['rep'], denoise, due
      )
    return equalized_images.hard_labels(scores), logits

  def contrastive_targets(
    self,
    state: State,
    features: Float[Array, 'B h w D'],
    scores: tuple[Array, Array],
    labels: Int[Array, 'B H W'],
    sets: EntropySets,
    rng: Array,
  ) -> tuple[State, contrastive_branch.ContrastiveTargets]:
    """Updates bank and prototypes, and draws the targets of the student.

    Args:
      state: training state.
      features: representations by the teacher of all images.
      scores: logits of labeled and of mixed images, at full resolution.
      labels: ground truth and pseudo-labels of all images; negative where
        ignored.
      sets: sets of the mixed images' pixels.
      rng: key of the draws.
    """
    # Probabilities and not logits are resized, as the authors do.
    probs = (
      resize.resize_bilinear(
        jax.nn.softmax(pixel_losses.at_least_float32(x)),
        features.shape[1:3],
        align_corners=True,
      )
      for x in scores
    )
    of_labeled = jnp.ones(scores[0].shape[:3], bool)
    masks = contrastive_branch.PixelMasks(
      labeled=_join_images(of_labeled, jnp.zeros_like(sets.dropped)),
      reliable=_join_images(~of_labeled, sets.reliable),
      unreliable=_join_images(~of_labeled, sets.unreliable),
    )
    # Before the loss starts no pixel has a label, so that neither bank nor
    # prototypes change, and the loss is 0.
    is_due = state.step >= self.contrast_step
    branch, targets = self.branch.update(
      state.branch,
      features,
      _join_images(*probs),
      jnp.where(is_due, labels, batch_lib.IGNORE),
      masks,
      rng,
    )
    return state.replace(**vars(branch)), targets

  @property
  def contrast_step(self) -> int:
    """Returns the first step with a contrastive loss."""
    return self.options.full_loss_epoch * self.steps_per_epoch

  @property
  def branch(self) -> contrastive_branch.ContrastiveBranch:
    """Returns the contrastive branch."""
    return contrastive_branch.build_contrastive_branch(
      self.options, self.segmenter, self.num_classes
    )


def _join_images(labeled: Array, mixed: Array) -> Array:
  """Joins the two labeled images of each pair with its mixed one."""
  return batch_lib.join_batch_rows(
    [*batch_lib.split_batch_rows(labeled, equalization_options.GROUP), mixed]
  )
