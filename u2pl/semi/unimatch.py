"""UniMatch: two strong views and dropped features learn one weak view.

Source: Yang et al. 2023, "Revisiting Weak-to-Strong Consistency in
Semi-Supervised Semantic Segmentation". There is no teacher.
"""

import jax

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from segcore.train.train_state import StepResult, TrainState
from u2pl.semi import (
  losses,
  method,
  perturbations,
  strong_views,
  student,
  unimatch_options,
)


class UniMatch(method.SemiSupervised):
  """UniMatch of one network."""

  options: unimatch_options.UniMatchOptions

  panel_output = strong_views.panel_output

  def train_step(self, state: TrainState, batch: Batch) -> StepResult:
    """Runs one step of UniMatch."""
    options, rng = self.options, jax.random.fold_in(state.rng, state.step)
    view_rng, drop_rng, weak_rng, strong_rng = jax.random.split(rng, 4)
    labeled, weak = method.stream_images(batch)
    # Labels that images take part with as partners, in evaluation mode; strong
    # views, with boxes of partners.
    partners = strong_views.confident_labels(
      self.predict(state, weak), batch, options.confidence
    )
    views = strong_views.draw_strong_views(weak, view_rng, options.views)
    weight = self.unlabeled_weight(state, options.weight)

    def loss(params):
      # Labeled images and weak views, with the encoder's maps as they are and
      # with dropped channels in one pass of the decoder.
      outputs, stats = self.forward(
        params,
        state.batch_stats,
        batch_lib.join_batch_rows([labeled, weak]),
        weak_rng,
        lambda maps: perturbations.with_dropped_channels(
          maps, drop_rng, options.dropout_rate
        ),
      )
      plain, dropped = batch_lib.split_batch_rows(outputs['logits'], 2)
      _, dropped = batch_lib.split_batch_rows(dropped, 2)
      labeled_outputs, weak_outputs = losses.split_student_outputs(
        {**outputs, 'logits': plain}
      )
      # Both strong views in one pass.
      outputs, stats = self.forward(
        params,
        stats,
        batch_lib.join_batch_rows([view.images for view in views]),
        strong_rng,
      )
      strong = batch_lib.split_batch_rows(outputs['logits'], 2)
      # Pseudo-labels are those of the student itself, of this very pass.
      own = strong_views.confident_labels(
        weak_outputs['logits'], batch, options.confidence
      )
      terms = {
        'loss_supervised': self.supervised_loss(
          labeled_outputs, batch['labeled']['label']
        ),
        'loss_strong': weight
        * options.strong_weight
        * sum(
          view.paste(own, partners).loss(logits)
          for view, logits in zip(views, strong, strict=True)
        ),
        'loss_feature': weight * options.feature_weight * own.loss(dropped),
      }
      # Half of L_x + λ (L_1 + L_2) + μ L_fp.
      return sum(terms.values()) / 2, ({**terms, **own.scalars(batch)}, stats)

    return student.gradient_step(self.update, state, loss)
