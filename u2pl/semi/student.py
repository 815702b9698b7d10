"""Student step: forward passes, gradient of a loss, optimizer step."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.train import method, train_state
from segcore.train import update as update_lib
from segcore.types import Images

# Outputs by head -> total loss, terms to log.
Loss = Callable[[dict[str, Array]], tuple[types.Scalar, types.Metrics]]


def student_step(
  segmenter: segmenter_lib.Segmenter,
  update: update_lib.Update,
  state: train_state.TrainState,
  images: Images,
  heads: tuple[str, ...],
  loss: Loss,
  rng: Array,
) -> tuple[train_state.TrainState, types.Metrics]:
  """Runs one forward pass in training mode and one update.

  Args:
    segmenter: network of the student.
    update: optimizer step.
    state: training state; fields that a subclass adds are kept.
    images: images in [-1, 1]; all of them share batch statistics.
    heads: outputs that the loss needs.
    loss: function from the outputs by head to the loss.
    rng: key of the dropout.

  Returns:
    The state after the update; 'loss' and the terms of the loss.
  """

  def total_loss(params):
    outputs, batch_stats = method.training_forward_pass(
      segmenter,
      params,
      state.batch_stats,
      images,
      heads=heads,
      rng=rng,
    )
    total, terms = loss(outputs)
    return total, (terms, batch_stats)

  return gradient_step(update, state, total_loss)


def gradient_step(
  update: update_lib.Update,
  state: train_state.TrainState,
  loss: Callable[[types.Params], tuple[types.Scalar, Any]],
) -> tuple[train_state.TrainState, types.Metrics]:
  """Runs one update, for a loss of several forward passes.

  Args:
    update: optimizer step.
    state: training state; fields that a subclass adds are kept.
    loss: function from the parameters to the total loss, and the pair of the
      terms to log and the batch statistics after all passes.

  Returns:
    The state after the update; 'loss' and the terms of the loss.
  """
  (total, (terms, batch_stats)), gradient = jax.value_and_grad(
    loss, has_aux=True
  )(state.params)
  after = update.apply_gradients(state, gradient, batch_stats)
  return after, {'loss': total, **terms}
