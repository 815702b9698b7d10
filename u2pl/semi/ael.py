"""AEL: classes that the student does badly on are seen and learned more often.

Source: Hu et al. 2021, "Semi-Supervised Semantic Segmentation via Adaptive
Equalization Learning". The EMA teacher is evaluated.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from segcore.train.train_state import StepResult
from u2pl.semi import equalization, equalization_options, equalized_images


class Ael(equalization.EqualizedTeacher):
  """AEL of a student and its EMA teacher."""

  options: equalization_options.AelOptions

  def train_step(self, state: equalization.State, batch: Batch) -> StepResult:
    """Runs one step of AEL."""
    rng = jax.random.fold_in(state.rng, state.step)
    teacher_rng, student_rng = jax.random.split(rng)
    state, inputs = self.teach(state, batch, teacher_rng)

    def loss(params):
      # Student on labeled, then on mixed images: the supervised loss, and the
      # consistency of pixels that are sampled by the confidence of their class,
      # weighted by the square of the teacher's.
      result = self.student_pass(params, state, inputs, student_rng)
      return sum(result.terms.values()), (result.results, result.batch_stats)

    return self.update_state(state, batch, inputs, loss)

  def teach(
    self, state: equalization.State, batch: Batch, rng: Array
  ) -> tuple[equalization.State, equalized_images.StudentInputs]:
    """Mixes images; computes the student's targets by the teacher."""
    paste_rng, box_rng, labeled_rng, unlabeled_rng = jax.random.split(rng, 4)
    state = self.teacher.copy_student(state)
    # Adaptive Copy-Paste: classes of low confidence, from a second image.
    labeled, labels = self.paste_labeled(state, batch, paste_rng)
    # Teacher in training mode: labeled images; then both of each pair.
    state, scores = self.teacher_scores(state, labeled, labeled_rng)
    labeled_targets = self.targets(
      scores, equalized_images.hard_labels(scores), jnp.ones_like(labels, bool)
    )
    unlabeled = batch_lib.batch_images_to_symmetric(batch['unlabeled']['image'])
    state, scores = self.teacher_scores(state, unlabeled, unlabeled_rng)
    # Adaptive CutMix: a component of the class that the second image of the
    # pair was drawn for. Logits are pasted as pixels are.
    known = equalized_images.known_pixels(batch)
    predicted = jnp.where(
      known, equalized_images.hard_labels(scores), batch_lib.IGNORE
    )
    boxes = self.class_boxes(
      *equalized_images.drawn_images(predicted, batch), box_rng
    )
    mixed, scores, known = map(boxes.paste_pairs, (unlabeled, scores, known))
    targets = self.targets(scores, equalized_images.hard_labels(scores), known)
    return state, equalized_images.StudentInputs(
      *(labeled, labels, labeled_targets, mixed, targets, predicted, boxes)
    )

  def teacher_scores(
    self, state: equalization.State, images: Array, rng: Array
  ) -> tuple[equalization.State, Array]:
    """Computes logits at full resolution by a pass in training mode."""
    outputs, state = self.teacher.forward(state, images, ('logits',), rng)
    return state, equalized_images.upsample(outputs['logits'], images[..., 0])
