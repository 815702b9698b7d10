"""UniMatch V2: two strong views with complementary channels, and a teacher.

Source: Yang et al. 2025, "UniMatch V2: Pushing the Limit of Semi-Supervised
Semantic Segmentation", of any encoder.
"""

import jax

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from segcore.train.train_state import StepResult
from u2pl import ema
from u2pl.semi import (
  method,
  perturbations,
  strong_views,
  student,
  unimatch_options,
)


class UniMatchV2(method.TeacherStudent):
  """UniMatch V2 of a student and its EMA teacher."""

  options: unimatch_options.UniMatchV2Options

  panel_output = strong_views.panel_output

  def train_step(self, state: ema.TeacherState, batch: Batch) -> StepResult:
    """Runs one step of UniMatch V2."""
    options, rng = self.options, jax.random.fold_in(state.rng, state.step)
    view_rng, drop_rng, labeled_rng, strong_rng = jax.random.split(rng, 4)
    labeled, weak = method.stream_images(batch)
    # Pseudo-labels of the teacher in evaluation mode; strong views, with boxes
    # of partners.
    state = self.teacher.copy_student(state)
    logits = self.segmenter.apply(
      self.teacher.variables(state), weak, heads=('logits',)
    )['logits']
    own = strong_views.confident_labels(logits, batch, options.confidence)
    views = strong_views.draw_strong_views(weak, view_rng, options.views)
    weight = self.unlabeled_weight(state, options.weight)

    def loss(params):
      labeled_outputs, stats = self.forward(
        params, state.batch_stats, labeled, labeled_rng
      )
      # Channels that one view lacks the other one has; half of the images keep
      # all of them in both.
      outputs, stats = self.forward(
        params,
        stats,
        batch_lib.join_batch_rows([view.images for view in views]),
        strong_rng,
        lambda maps: perturbations.drop_complementary_channels(
          maps, drop_rng, num_whole=len(weak) // 2
        ),
      )
      strong = batch_lib.split_batch_rows(outputs['logits'], 2)
      terms = {
        'loss_supervised': self.supervised_loss(
          labeled_outputs, batch['labeled']['label']
        ),
        'loss_strong': weight
        / 2
        * sum(
          view.paste(own, own).loss(logits)
          for view, logits in zip(views, strong, strict=True)
        ),
      }
      # Half of L_x + (L_1 + L_2) / 2.
      return sum(terms.values()) / 2, (terms, stats)

    after, metrics = student.gradient_step(self.update, state, loss)
    # θ_t ← d·θ_t + (1 - d)·θ_s, of parameters and batch statistics.
    after = self.teacher.update(state, after)
    return after, {**metrics, **own.scalars(batch)}
