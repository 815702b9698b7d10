"""Parts of AEL, which U2PL on AEL has, too: state, mixing and consistency.

Draws by the confidence of classes: `class_confidence`; the arithmetic of
mixing: `class_mixing`. The source is Hu et al. 2021 (spec of the baselines §1).
"""

from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from input_pipeline import batch as batch_lib
from input_pipeline import samplers
from segcore import types
from segcore.ops import losses as pixel_losses
from segcore.train import update as update_lib
from u2pl import class_confidence, class_mixing, ema, pseudo_labels
from u2pl.semi import equalization_options as options_lib
from u2pl.semi import equalized_images, method, student

# Of `rng` beside the keys that it is split into.
_CONFIDENCE_KEY = 2


@flax.struct.dataclass
class Sampling:
  """What unlabeled images are drawn by, fixed for an epoch.

  Attributes:
    probabilities: float32 [C], of the classes.
    shown: bool [C, N], whether each unlabeled image shows a class.
  """

  probabilities: Any
  shown: Any


@flax.struct.dataclass
class State(ema.TeacherState):
  """Training state of AEL.

  Attributes:
    confidence: float32 [C], confidence of each class.
    shown: bool [C, N], whether each unlabeled image shows a class, by the
      teacher when it was last read.
    sampling: `Sampling` of the present epoch, by which every host draws.
  """

  replicated_fields: ClassVar[frozenset[str]] = frozenset({'shown', 'sampling'})

  confidence: Any
  shown: Any
  sampling: Any


def read_sampler(state: State) -> samplers.ClassImageSampler:
  """Returns the sampler of the images that are drawn by their class."""
  sampling = jax.device_get(state.sampling)
  probabilities = sampling.probabilities.astype(np.float64)
  return samplers.ClassImageSampler(
    probabilities / probabilities.sum(), sampling.shown
  )


class EqualizedTeacher(method.TeacherStudent):
  """Base class of methods that equalize the training of the classes.

  Batches have a third stream 'pasted', and the unlabeled one is paired (see
  `paired_stream.PairedStream`).
  """

  options: options_lib.EqualizationOptions

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> State:
    """Initializes the student, of which the teacher is a copy."""
    fresh = super().init(rng, batch_spec, loaded)
    confidence = jax.random.uniform(
      jax.random.fold_in(rng, _CONFIDENCE_KEY), (self.num_classes,)
    )
    shown = jnp.zeros((self.num_classes, self.num_unlabeled), bool)
    return State(
      **vars(fresh),
      confidence=confidence,
      shown=shown,
      sampling=Sampling(
        class_confidence.mixing_probabilities(confidence), shown
      ),
    )

  def paste_labeled(
    self, state: State, batch: batch_lib.Batch, rng: Array
  ) -> tuple[Float[Array, 'B H W 3'], Int[Array, 'B H W']]:
    """Runs adaptive Copy-Paste; returns images and labels."""
    options = self.options.paste
    labels = batch['labeled']['label'].astype(jnp.int32)
    class_rng, image_rng = jax.random.split(rng)
    uniforms = _row_uniforms(
      class_rng, len(labels) // options_lib.GROUP, options.num_draws
    )
    probabilities = class_confidence.pasting_probabilities(
      state.confidence, options.excluded
    )
    draws = class_confidence.classes_from_uniforms(probabilities, uniforms)
    chance = _row_uniforms(image_rng, len(labels))
    images, others = (
      batch_lib.batch_images_to_symmetric(batch[name]['image'])
      for name in ('labeled', 'pasted')
    )
    pasted = class_mixing.Pasted(
      others,
      batch['pasted']['label'].astype(jnp.int32),
      chance < options.probability,
    )
    chosen = class_mixing.chosen_classes(draws, self.num_classes)
    return class_mixing.paste_classes(images, labels, pasted, chosen)

  def class_boxes(
    self, labels: Int[Array, 'B H W'], classes: Int[Array, 'B'], rng: Array
  ) -> equalized_images.MixedBoxes:
    """Draws the boxes of adaptive CutMix.

    Args:
      labels: classes by the teacher of the images that boxes are taken from;
        negative on ignored padding.
      classes: class that each of these images was drawn for.
      rng: key of the boxes.
    """
    return equalized_images.MixedBoxes(
      *class_mixing.class_box_masks(
        labels == classes[:, None, None],
        _row_uniforms(rng, len(labels), 4),
        self.options.boxes.component,
      )
    )

  def targets(
    self, scores: Array, labels: Array, known: Array
  ) -> equalized_images.Targets:
    """Builds targets of the student (see `equalized_images`)."""
    return equalized_images.teacher_targets(
      scores, labels, known, self.options.confidence
    )

  def student_pass(
    self,
    params: types.Params,
    state: State,
    inputs: equalized_images.StudentInputs,
    rng: Array,
  ) -> equalized_images.StudentPass:
    """Applies the student to labeled, then to mixed images.

    Args:
      params: parameters of the student.
      state: state before the step.
      inputs: images and targets.
      rng: key of dropout and of equalization sampling.
    """
    labeled_rng, mixed_rng, *keep_rngs = jax.random.split(rng, 4)
    of_labeled, stats = self.forward(
      params, state.batch_stats, inputs.labeled, labeled_rng
    )
    of_mixed, stats = self.forward(params, stats, inputs.mixed, mixed_rng)
    # The confidence after this pass decides which pixels are learned.
    logits = equalized_images.upsample(of_labeled['logits'], inputs.labels)
    confidence = class_confidence.update_class_confidence(
      state.confidence,
      class_confidence.mean_class_probabilities(
        jax.lax.stop_gradient(logits), inputs.labels, options_lib.GROUP
      ),
      self.options.momentum,
    )
    labeled_loss, _ = self.consistency_loss(
      of_labeled['logits'],
      inputs.labeled_targets,
      confidence,
      keep_rngs[0],
      options_lib.GROUP,
    )
    mixed_loss, kept_share = self.consistency_loss(
      of_mixed['logits'], inputs.targets, confidence, keep_rngs[1], 1
    )
    weight = self.unlabeled_weight(state, self.options.weight)
    terms = {
      'loss_supervised': self.supervised_loss(of_labeled, inputs.labels),
      'loss_labeled': weight * labeled_loss,
      'loss_unsupervised': weight * mixed_loss,
    }
    return equalized_images.StudentPass(
      (of_labeled, of_mixed), stats, terms, confidence, kept_share
    )

  def consistency_loss(
    self,
    logits: Float[Array, 'B h w C'],
    targets: equalized_images.Targets,
    confidence: Float[Array, 'C'],
    rng: Array,
    group: int,
  ) -> tuple[types.Scalar, types.Scalar]:
    """Computes the loss of pixels that equalization sampling keeps.

    Args:
      logits: logits of the student.
      targets: targets by the teacher.
      confidence: confidence of each class.
      rng: key of the sampling.
      group: number of consecutive images that share its draws.

    Returns:
      Loss without its weight, and the share of the pixels that are kept.
    """
    logits = equalized_images.upsample(logits, targets.labels)
    predictions = equalized_images.hard_labels(jax.lax.stop_gradient(logits))
    num_images, *size = targets.labels.shape
    kept = class_confidence.equalized_pixels(
      predictions,
      _row_uniforms(rng, num_images // group, *size, self.num_classes),
      class_confidence.class_keep_rates(confidence, self.options.gamma),
    )
    kept &= targets.counted
    weights = jnp.where(kept, jnp.square(targets.probability), 0.0)
    loss = class_confidence.reweighted_consistency_loss(
      logits, targets.labels, weights, self.options.reverse
    )
    num_pixels = jnp.sum(targets.counted, dtype=jnp.int32)
    share = jnp.sum(kept, dtype=jnp.int32) / jnp.maximum(num_pixels, 1)
    return loss, share

  def update_state(
    self,
    before: State,
    batch: batch_lib.Batch,
    inputs: equalized_images.StudentInputs,
    loss: Any,
  ) -> tuple[State, types.Metrics]:
    """Updates student, teacher, and what images are drawn by.

    Args:
      before: state before the step, with the teacher's statistics after it.
      batch: batch of training.
      inputs: images and targets of the student.
      loss: function of `student.gradient_step`, whose terms are
        `StudentPass.results`.
    """
    after, metrics = student.gradient_step(self.update, before, loss)
    confidence = metrics.pop('confidence')
    # θ_t ← d·θ_t + (1 - d)·θ_s.
    after = self.teacher.update(before, after)
    present = class_mixing.predicted_classes(
      inputs.predicted, self.num_classes, self.options.boxes.image
    )
    shown = class_mixing.update_shown_classes(
      before.shown, batch['unlabeled']['index'], present
    )
    # In the warm-up the teacher has its initial parameters.
    shown = jnp.where(before.step < self.warmup_steps, before.shown, shown)
    # Copied once an epoch, when the streams are opened anew (see
    # `feed.BatchFeed`): what is read must not depend on how far ahead it is.
    now = Sampling(class_confidence.mixing_probabilities(confidence), shown)
    is_due = after.step % self.steps_per_epoch == 0
    sampling = jax.tree.map(
      lambda new, old: jnp.where(is_due, new, old), now, before.sampling
    )
    after = after.replace(confidence=confidence, shown=shown, sampling=sampling)
    return after, {
      **metrics,
      **{f'confidence/{i}': x for i, x in enumerate(confidence)},
      **mixed_image_scalars(batch, inputs),
    }

  def panel_output(
    self, state: State, batch: batch_lib.Batch, rng: Array
  ) -> method.PanelOutput:
    """Computes what panels show: each image with a box of the other one.

    The classes are drawn here, as panels have fixed images.
    """
    class_rng, box_rng = jax.random.split(rng)
    images = batch_lib.batch_images_to_symmetric(batch['unlabeled']['image'])
    scores = equalized_images.upsample(
      self.predict(state, images), images[..., 0]
    )
    labels = equalized_images.hard_labels(scores)
    known = equalized_images.known_pixels(batch)
    classes = class_confidence.classes_from_uniforms(
      class_confidence.mixing_probabilities(state.confidence),
      _row_uniforms(class_rng, len(images)),
    )
    boxes = self.class_boxes(
      _others(jnp.where(known, labels, batch_lib.IGNORE)), classes, box_rng
    )
    images, scores, learned, known = (
      boxes.paste(x, _others(x)) for x in (images, scores, labels, known)
    )
    return method.PanelOutput(
      labels,
      images,
      self.targets(scores, learned, known).labels,
      pseudo_labels.pixel_entropy(scores),
    )


def mixed_image_scalars(
  batch: batch_lib.Batch, inputs: equalized_images.StudentInputs
) -> types.Metrics:
  """Computes scalars to log about mixed images and their labels."""
  boxes, learned = inputs.boxes, inputs.targets.labels
  scalars = {
    'component_share': jnp.mean(boxes.of_component.astype(jnp.float32))
  }
  if 'label' in batch['unlabeled']:
    truth = boxes.paste_pairs(batch['unlabeled']['label'])
    scalars['pseudo_label_accuracy'] = pixel_losses.masked_mean(
      (learned == truth).astype(jnp.float32), (learned >= 0) & (truth >= 0)
    )
  return scalars


def _others(x: Shaped[Array, 'B ...']) -> Shaped[Array, 'B ...']:
  """Returns for each row the other one of its pair."""
  return x.reshape(-1, options_lib.GROUP, *x.shape[1:])[:, ::-1].reshape(
    x.shape
  )


def _row_uniforms(
  rng: Array, num_rows: int, *shape: int
) -> Float[Array, 'B ...']:
  """Draws uniform numbers in [0, 1) for each row, whatever its device."""
  keys = update_lib.row_prng_keys(rng, num_rows)
  return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
