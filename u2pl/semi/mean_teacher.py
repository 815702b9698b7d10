"""Mean Teacher with strong mixing, and with a contrastive branch U2PL(+).

One method with switches: without contrast it is Mean Teacher, CutMix or
ClassMix; without consistency it is supervised training.
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from segcore import types
from segcore.ops import color_augment, photometric_distortion
from segcore.ops import losses as pixel_losses
from segcore.train import update as update_lib
from segcore.train.train_state import StepResult
from u2pl import contrastive_branch, ema, mixing, pseudo_labels
from u2pl.semi import losses, method, student
from u2pl.semi import options as options_lib


@flax.struct.dataclass
class State(contrastive_branch.BranchFields, ema.TeacherState):
  """Training state of student, EMA teacher and contrastive branch."""


class TeacherOutput(NamedTuple):
  """Pseudo-labels of the unlabeled images, and their reliability.

  Attributes:
    images: strong view (mixed images), in [-1, 1].
    labels: pseudo-labels of the strong view.
    weak_labels: pseudo-labels of the images before mixing.
    entropy: entropy of the teacher's prediction for the strong view, in nats;
      of the images before mixing, mixed, where it does not see that view.
    reliability: partition of the strong view's pixels by reliability.
    kept: pixels of the strong view that the unsupervised loss counts.
    num_pixels: number of pixels, without ignored padding.
    outputs: outputs of the teacher by head, for labeled images and strong views
      joined; empty where it does not see them.
    confident: pixels of the strong view of at least the least confidence; None
      without one.
    truth: ground truth of the strong view, to measure confident pseudo-labels
      by; None without it, or without a least confidence.
  """

  images: Float[Array, 'B H W 3']
  labels: Int[Array, 'B H W']
  weak_labels: Int[Array, 'B H W']
  entropy: Float[Array, 'B H W']
  reliability: pseudo_labels.Reliability
  kept: Bool[Array, 'B H W']
  num_pixels: Int[Array, '']
  outputs: dict[str, Array]
  confident: Bool[Array, 'B H W'] | None = None
  truth: Int[Array, 'B H W'] | None = None

  @property
  def student_labels(self) -> Int[Array, 'B H W']:
    """Returns the pseudo-labels, ignored where they are not confident."""
    if self.confident is None:
      return self.labels
    return jnp.where(self.confident, self.labels, batch_lib.IGNORE)


@flax.struct.dataclass
class StudentTargets:
  """Targets of the student's step on unlabeled images.

  Attributes:
    images: float [B, H, W, 3], strong view.
    labels: int [B, H, W], pseudo-labels.
    kept: bool [B, H, W], pixels that the unsupervised loss counts.
    num_pixels: int, number of pixels, without ignored padding.
    contrastive: `ContrastiveTargets`; None without a contrastive loss.
    scalars: scalars to log, by name.
  """

  images: Any
  labels: Any
  kept: Any
  num_pixels: Any
  contrastive: Any
  scalars: Any


class MeanTeacher(method.TeacherStudent):
  """Semi-supervised training of a student by its EMA teacher.

  The segmenter has a head `rep`, too, with contrast or denoising. Without
  consistency batches are plain labeled ones.
  """

  options: options_lib.LearnOptions

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> State:
    """Returns the state before step 0, in which the teacher is the student."""
    fresh = super().init(rng, batch_spec, loaded)
    if not self.options.has_teacher:
      fresh = fresh.replace(teacher_params=None, teacher_batch_stats=None)
    branch = self.branch.init() if self.branch else None
    return State(
      **vars(fresh),
      bank=branch and branch.bank,
      prototypes=branch and branch.prototypes,
    )

  def train_step(self, state: State, batch: Batch) -> StepResult:
    """Runs one step of U2PL or U2PL+.

    In the warm-up the labeled images take the place of the strong view, without
    labels: batch statistics, loss and gradient are those of labeled images.
    """
    options, rng = self.options, jax.random.fold_in(state.rng, state.step)
    targets_rng, student_rng = jax.random.split(rng)
    step = functools.partial(student.student_step, self.segmenter, self.update)
    heads = options.student_heads
    if not options.consistency:
      images = _labeled_images(batch, targets_rng, options.distortion)
      loss = functools.partial(self.supervised_loss, labels=batch['label'])
      return step(state, images, heads, lambda x: (loss(x), {}), student_rng)

    # Teacher forward, pseudo-labels and their reliability, strong view, and the
    # contrastive targets. Gradients stay outside of the branches: XLA computes
    # those of convolutions inside of them 70 times slower on a CPU.
    state, targets = jax.lax.cond(
      state.step < self.warmup_steps,
      self.warm_up,
      self.teach,
      state,
      batch,
      targets_rng,
    )
    labels = batch['labeled']['label']

    def loss(outputs):
      labeled, strong = losses.split_student_outputs(outputs)
      # L_s on labels (Eq. 3), L_u on pseudo-labels (Eqs. 12-14, 16).
      supervised = self.supervised_loss(labeled, labels)
      unsupervised = losses.unsupervised_loss(
        strong['logits'],
        targets.labels,
        targets.kept,
        targets.num_pixels,
        options.consistency,
      )
      terms = {'loss_supervised': supervised, 'loss_unsupervised': unsupervised}
      total = supervised + unsupervised
      # L_c between pixels of both streams (Eq. 10).
      if options.contrast:
        terms['loss_contrast'] = self.branch.loss(
          outputs['rep'], targets.contrastive, state.branch
        )
        total += options.contrast.weight * terms['loss_contrast']
      return total, terms

    # Student forward on both streams in one pass, gradient, update; then the
    # EMA teacher, θ_t ← d·θ_t + (1 - d)·θ_s.
    images = batch_lib.batch_images_to_symmetric(batch['labeled']['image'])
    images = batch_lib.join_batch_rows([images, targets.images])
    after, metrics = step(state, images, heads, loss, student_rng)
    after = self.teacher.update(state, after)
    return after, {**metrics, **targets.scalars}

  def teach(
    self, state: State, batch: Batch, rng: Array
  ) -> tuple[State, StudentTargets]:
    """Computes the student's targets; updates bank, prototypes, statistics."""
    output_rng, draw_rng = jax.random.split(rng)
    state = self.teacher.copy_student(state)
    state, output = self.teacher_output(state, batch, output_rng)
    scalars, contrastive = pseudo_label_scalars(batch, output), None
    if self.branch:
      features, logits = output.outputs['rep'], output.outputs['logits']
      labels = batch['labeled']['label'].astype(jnp.int32)
      # Class means, anchors, and negatives into the bank (Eqs. 17-18, 21-28).
      branch, contrastive = self.branch.update(
        state.branch,
        features,
        jax.nn.softmax(
          pseudo_labels.upsample_teacher_scores(logits, features.shape[1:3])
        ),
        batch_lib.join_batch_rows([labels, output.labels]),
        _pixel_masks(output.reliability),
        draw_rng,
      )
      state = state.replace(**vars(branch))
      if contrastive is not None:
        scalars |= self.branch.scalars(branch, contrastive)
    # Colors change for the student alone, after the teacher's passes; by a key
    # beside the two that `rng` was split into.
    images = _augment_colors(
      output.images, jax.random.fold_in(rng, 2), self.options.consistency.color
    )
    return state, StudentTargets(
      *(images, output.student_labels, output.kept, output.num_pixels),
      *(contrastive, scalars),
    )

  def teacher_output(
    self, state: State, batch: Batch, rng: Array
  ) -> tuple[State, TeacherOutput]:
    """Runs the teacher on unlabeled images, then on their strong view (§3.2).

    Where nothing needs the second pass it is left out, and the entropy is that
    of the first one, mixed as the labels are.
    """
    options = self.options.consistency
    mixing_rng, row_rng, teacher_rng = jax.random.split(rng, 3)
    # Pseudo-labels: argmax on the weak view, denoised in U2PL+ (Eqs. 19-20).
    weak = batch_lib.batch_images_to_symmetric(batch['unlabeled']['image'])
    # Ignored padding gets none, and so takes part in nothing that follows.
    weak_labels, logits = self.pseudo_label(state, weak)
    weak_labels, num_pixels = pseudo_labels.ignore_padded_pseudo_labels(
      weak_labels, batch['unlabeled'].get('valid')
    )
    maps = _confidence_maps(logits, weak_labels, batch, options.confidence)
    # Strong view: images and pseudo-labels are mixed alike.
    draws = mixing.sample_mixing_draws(
      mixing_rng,
      update_lib.row_prng_keys(row_rng, len(weak)),
      options.mixing,
      weak_labels.shape,
      self.num_classes,
    )
    strong, labels, entropy, *mixed = mixing.mix_unlabeled_images(
      *(weak, weak_labels, draws, options.mixing),
      pseudo_labels.pixel_entropy(logits),
      *maps.values(),
    )
    outputs = {}
    if self.options.reads_strong_view:
      state, outputs, entropy = self.strong_view_output(
        state, batch, strong, teacher_rng
      )
    # Reliability: entropy below its (100 - α_t)-th percentile (Eqs. 11-15).
    valid = labels >= 0
    percent = self.options.partition.at(self.progress(state))
    reliability = pseudo_labels.partition_by_entropy(
      entropy, valid, percent, self.options.anchor_entropy
    )
    kept = reliability.reliable if options.filtered else valid
    return state, TeacherOutput(
      *(strong, labels, weak_labels, entropy, reliability, kept, num_pixels),
      outputs,
      **dict(zip(maps, mixed, strict=True)),
    )

  def strong_view_output(
    self,
    state: State,
    batch: Batch,
    strong: Float[Array, 'B H W 3'],
    rng: Array,
  ) -> tuple[State, dict[str, Array], Float[Array, 'B H W']]:
    """Runs the teacher in training mode on labeled images and strong views.

    Returns:
      The state with the teacher's batch statistics, if it has its own; the
      outputs by head; and the entropy of the strong views in nats.
    """
    labeled = batch_lib.batch_images_to_symmetric(batch['labeled']['image'])
    outputs, state = self.teacher.forward(
      state,
      batch_lib.join_batch_rows([labeled, strong]),
      self.options.teacher_heads,
      rng,
    )
    _, logits = batch_lib.split_batch_rows(outputs['logits'], 2)
    logits = pseudo_labels.upsample_teacher_scores(logits, strong.shape[1:3])
    return state, outputs, pseudo_labels.pixel_entropy(logits)

  def panel_output(
    self, state: State, batch: Batch, rng: Array
  ) -> method.PanelOutput:
    """Computes what panels show: gray labels are unreliable."""
    _, output = self.teacher_output(state, batch, rng)
    labels = jnp.where(output.kept, output.student_labels, batch_lib.IGNORE)
    return method.PanelOutput(
      output.weak_labels, output.images, labels, output.entropy
    )

  def pseudo_label(
    self, state: State, images: Float[Array, 'B H W 3']
  ) -> tuple[Int[Array, 'B H W'], Float[Array, 'B H W C']]:
    """Computes the teacher's labels in evaluation mode, denoised if enabled.

    Returns:
      The labels, and the logits before denoising.
    """
    denoise = self.options.consistency.denoise
    heads = ('logits',) if denoise == 'off' else ('logits', 'rep')
    outputs = self.segmenter.apply(
      self.teacher.variables(state), images, heads=heads
    )
    logits = scores = pseudo_labels.upsample_teacher_scores(
      outputs['logits'], images.shape[1:3]
    )
    if denoise != 'off':
      epoch_done = state.step >= self.warmup_steps + self.steps_per_epoch
      scores = self.branch.denoise(
        state.branch, scores, outputs['rep'], denoise, epoch_done
      )
    return jnp.argmax(scores, axis=-1).astype(jnp.int32), logits

  def warm_up(
    self, state: State, batch: Batch, rng: Array
  ) -> tuple[State, StudentTargets]:
    """Updates the teacher's statistics; returns targets without a label."""
    images = batch_lib.batch_images_to_symmetric(batch['labeled']['image'])
    heads = self.options.teacher_heads
    _, state = self.teacher.forward(state, images, heads, rng)
    # Zeros, of the structure that `teach` returns: branches have to agree.
    _, spec = jax.eval_shape(self.teach, state, batch, rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec)
    ignored = jnp.full(images.shape[:3], batch_lib.IGNORE, jnp.int32)
    return state, zeros.replace(images=images, labels=ignored)

  @property
  def branch(self) -> contrastive_branch.ContrastiveBranch | None:
    """Returns the contrastive branch, if contrast or denoising need one."""
    return contrastive_branch.build_contrastive_branch(
      self.options, self.segmenter, self.num_classes
    )


def _labeled_images(
  batch: batch_lib.Batch,
  rng: Array,
  distortion: photometric_distortion.DistortionOptions | None,
) -> Float[Array, 'B H W 3']:
  """Returns the images of a labeled batch, distorted where it is chosen."""
  images = batch_lib.batch_images_to_symmetric(batch['image'])
  if distortion is None:
    return images
  keys = update_lib.row_prng_keys(rng, len(images))
  return photometric_distortion.distort_images(images, keys, distortion)


def _confidence_maps(
  logits: Float[Array, 'B H W C'],
  labels: Int[Array, 'B H W'],
  batch: Batch,
  confidence: float,
) -> dict[str, Array]:
  """Returns the maps of `TeacherOutput` that a least confidence needs."""
  if not confidence:
    return {}
  maps = {
    'confident': pseudo_labels.confident_pixels(logits, labels, confidence)
  }
  if 'label' in batch['unlabeled']:
    maps['truth'] = batch['unlabeled']['label'].astype(jnp.int32)
  return maps


def _augment_colors(
  images: Float[Array, 'B H W 3'],
  rng: Array,
  options: color_augment.ColorOptions,
) -> Float[Array, 'B H W 3']:
  """Changes the colors of images in [-1, 1], each with a key of its own."""
  if not options.changes_images:
    return images
  keys = update_lib.row_prng_keys(rng, len(images))
  return color_augment.augment_colors(images, keys, options)


def _pixel_masks(
  reliability: pseudo_labels.Reliability,
) -> contrastive_branch.PixelMasks:
  """Returns masks of labeled images and strong views, joined."""
  none = jnp.zeros_like(reliability.anchors)
  return contrastive_branch.PixelMasks(
    labeled=batch_lib.join_batch_rows([~none, none]),
    reliable=batch_lib.join_batch_rows([none, reliability.anchors]),
    unreliable=batch_lib.join_batch_rows([none, reliability.unreliable]),
  )


def pseudo_label_scalars(
  batch: Batch, output: TeacherOutput
) -> dict[str, types.Scalar]:
  """Computes scalars to log about the pseudo-labels."""
  num_kept = jnp.sum(output.kept, dtype=jnp.float32)
  scalars = {
    'reliable_share': num_kept / output.num_pixels,
    'entropy': jnp.mean(output.entropy),
  }
  if 'label' in batch['unlabeled']:
    truth = batch['unlabeled']['label']
    correct = (output.weak_labels == truth).astype(jnp.float32)
    accuracy = pixel_losses.masked_mean(correct, truth >= 0)
    scalars['pseudo_label_accuracy'] = accuracy
  if output.confident is not None:
    learned = output.kept & output.confident
    num_learned = jnp.sum(learned, dtype=jnp.float32)
    scalars['kept_share'] = num_learned / output.num_pixels
    if output.truth is not None:
      correct = (output.labels == output.truth).astype(jnp.float32)
      scalars['kept_accuracy'] = pixel_losses.masked_mean(
        correct, learned & (output.truth >= 0)
      )
  return scalars
