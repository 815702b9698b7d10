"""GCT: two networks, and a flaw detector that says which one is right where.

Source: Ke et al. 2020, "Guided Collaborative Training for Pixel-wise
Semi-Supervised Learning". The first network is evaluated.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from segcore import types
from segcore.ops import losses as pixel_losses
from segcore.train.train_state import StepResult
from u2pl import pseudo_labels
from u2pl.semi import (
  flaw_detector,
  flaw_maps,
  losses,
  method,
  two_network_options,
  two_networks,
)


@flax.struct.dataclass
class State(two_networks.State):
  """Training state of two networks and the flaw detector.

  Attributes:
    detector: `TrainState` of the flaw detector, whose parameters are in the
      part 'detector'.
  """

  detector: Any


class Gct(two_networks.TwoNetworks):
  """Guided collaborative training of two networks."""

  options: two_network_options.GctOptions

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> State:
    """Initializes both networks and the flaw detector."""
    both = super().init(rng, batch_spec, loaded)
    size = batch_spec['labeled']['image'].shape[1:3]
    detector = self.detector.init(
      jax.random.fold_in(rng, 2), size, self.num_classes
    )
    return State(**vars(both), detector=detector)

  def train_step(self, state: State, batch: Batch) -> StepResult:
    """Runs one step of GCT."""
    rng = jax.random.fold_in(state.rng, state.step)
    step_rng, again_rng = jax.random.split(rng)
    # Both networks learn with a fixed detector.
    params = state.params, state.second.params
    (total, aux), gradients = jax.value_and_grad(self.loss, has_aux=True)(
      params, state, batch, step_rng
    )
    terms, stats, probabilities = aux
    after = self.update_both(state, gradients, stats)
    if self.options.detector.after_update:
      params = after.params, after.second.params
      _, probabilities, stats = self.predict_both(
        params, stats, batch, again_rng
      )
      second = after.second.replace(batch_stats=stats[1])
      after = after.replace(batch_stats=stats[0], second=second)
    # The detector learns the flaws of their predictions for labeled images.
    detector, detector_loss = self.detector.step(
      state.detector,
      batch_lib.join_batch_rows(method.stream_images(batch)),
      probabilities,
      batch['labeled']['label'],
    )
    metrics = {'loss': total, **terms, 'loss_detector': detector_loss}
    return after.replace(detector=detector), metrics

  def loss(
    self,
    params: tuple[types.Params, types.Params],
    state: State,
    batch: Batch,
    rng: Array,
  ) -> tuple[types.Scalar, tuple[types.Metrics, Any, Any]]:
    """Computes the losses of both networks.

    Args:
      params: parameters of both.
      state: state before the step.
      batch: batch of training.
      rng: key of the dropout.

    Returns:
      The total, and what has no gradient: terms to log, batch statistics of
      both networks, and their probabilities for the joined streams.
    """
    options, known = self.options, losses.known_pixels(batch)
    counted = batch_lib.join_batch_rows([jnp.ones_like(known), known])
    # Predictions of both networks, and where the detector finds flaws.
    stats = state.batch_stats, state.second.batch_stats
    outputs, probs, stats = self.predict_both(params, stats, batch, rng)
    flaws = self.detector.detect(
      jax.lax.stop_gradient(state.detector),
      batch_lib.join_batch_rows(method.stream_images(batch)),
      probs,
    )
    # A pixel's target is the prediction with fewer flaws; where both have some,
    # the networks learn to have none.
    handled = tuple(flaw_maps.handle_flaw_map(x) for x in flaws)
    targets, both_bad = flaw_maps.consistency_targets(
      *jax.lax.stop_gradient((probs, handled)), options.threshold
    )
    supervised = sum(
      self.supervised_loss(x, batch['labeled']['label']) for x in outputs
    )
    correction = sum(
      pixel_losses.masked_mean(jnp.where(both_bad, x * x, 0), counted)
      for x in flaws
    )
    consistency = sum(
      losses.mean_squared_error(x, target, counted)
      for x, target in zip(probs, targets, strict=True)
    )
    terms = {
      'loss_supervised': supervised,
      'loss_correction': self.unlabeled_weight(
        state, options.weight * options.correction
      )
      * correction,
      'loss_consistency': self.consistency_weight(state) * consistency,
    }
    flawed = both_bad.astype(jnp.float32)
    shares = {'flawed_share': pixel_losses.masked_mean(flawed, counted)}
    return sum(terms.values()), (terms | shares, stats, probs)

  def predict_both(
    self,
    params: tuple[types.Params, types.Params],
    batch_stats: tuple[types.Params, types.Params],
    batch: Batch,
    rng: Array,
  ) -> tuple[
    list[dict[str, Array]],
    flaw_detector.Predictions,
    tuple[types.Params, types.Params],
  ]:
    """Applies both networks to both streams, in training mode.

    Returns:
      Outputs of each network by head for labeled images, its probabilities for
      the rows of `batch.join_batch_rows` of both streams, and the batch
      statistics after the passes.
    """
    streams = method.stream_images(batch)
    size = streams[0].shape[1:3]
    if self.options.joint:
      [outputs], stats = self.forward_both(
        params, batch_stats, [batch_lib.join_batch_rows(streams)], rng
      )
      labeled = [losses.split_student_outputs(x)[0] for x in outputs]
      logits = [x['logits'] for x in outputs]
    else:
      (labeled, unlabeled), stats = self.forward_both(
        params, batch_stats, streams, rng
      )
      logits = [
        batch_lib.join_batch_rows([x['logits'], y['logits']])
        for x, y in zip(labeled, unlabeled, strict=True)
      ]
    probabilities = tuple(
      jax.nn.softmax(pseudo_labels.upsample_teacher_scores(x, size))
      for x in logits
    )
    return labeled, probabilities, stats

  def consistency_weight(self, state: State) -> types.Scalar:
    """Computes the weight of the consistency, which rises after the warm-up."""
    ramp_steps = self.options.ramp_epochs * self.steps_per_epoch
    share = losses.ramp_up(state.step - self.warmup_steps, ramp_steps)
    weight = self.options.weight * self.options.consistency
    return self.unlabeled_weight(state, weight * share)

  @property
  def detector(self) -> flaw_detector.DetectorTraining:
    """Returns the flaw detector."""
    return flaw_detector.DetectorTraining(
      self.options.detector, self.update.num_steps
    )
