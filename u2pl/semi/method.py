"""Base class of semi-supervised methods: what all of them share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from input_pipeline import batch as batch_lib
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.train import method, train_state
from segcore.train import update as update_lib
from u2pl import ema, pseudo_labels
from u2pl.panels import PanelOutput
from u2pl.semi import losses
from u2pl.semi import options as options_lib


def stream_images(
  batch: batch_lib.Batch,
) -> tuple[Float[Array, 'B H W 3'], Float[Array, 'B H W 3']]:
  """Returns labeled and unlabeled images of a batch, in [-1, 1]."""
  labeled, unlabeled = (
    batch_lib.batch_images_to_symmetric(batch[name]['image'])
    for name in ('labeled', 'unlabeled')
  )
  return labeled, unlabeled


@dataclasses.dataclass(frozen=True)
class SemiSupervised:
  """Base class of methods that train on labeled and unlabeled images.

  A subclass adds `train_step` (see `method.Method`). Batches have the streams
  'labeled' and 'unlabeled'. The segmenter has a head `logits`, and
  `aux` if the supervised loss has an auxiliary weight.

  Attributes:
    segmenter: network; every network of the method has its architecture.
    update: optimizer step.
    options: options of the method; a subclass annotates their class.
    num_classes: number C of classes.
    steps_per_epoch: number of steps that read all unlabeled images once.
    class_weights: weight of each class in the supervised loss; None for equal
      weights.
    num_unlabeled: number of unlabeled images; 1 until the data is open.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  options: options_lib.SystemOptions
  num_classes: int
  steps_per_epoch: int
  class_weights: tuple[float, ...] | None = None
  num_unlabeled: int = 1

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> train_state.TrainState:
    """Initializes the network and the optimizer."""
    shape = batch_spec.get('labeled', batch_spec)['image'].shape
    return self.update.init(self.segmenter, rng, shape, loaded)

  @property
  def warmup_steps(self) -> int:
    """Returns the number of steps of the supervised loss alone."""
    return self.options.warmup_epochs * self.steps_per_epoch

  def supervised_loss(
    self, outputs: dict[str, Array], labels: Int[Array, 'B H W']
  ) -> types.Scalar:
    """Computes the loss of labeled images from the outputs by head."""
    return losses.supervised_loss(
      outputs, labels, self.options.supervised, self.class_weights
    )

  def forward(
    self,
    params: types.Params,
    batch_stats: types.Params,
    images: Float[Array, 'B H W 3'],
    rng: Array,
    perturb: segmenter_lib.Perturbation | None = None,
  ) -> tuple[dict[str, Array], types.Params]:
    """Applies the network in training mode.

    Args:
      params: parameters.
      batch_stats: batch statistics before the pass.
      images: images in [-1, 1]; all of them share batch statistics.
      rng: key of the dropout.
      perturb: function applied to the encoder's maps before the decoder.

    Returns:
      Outputs of the student's heads, and the batch statistics after the pass.
    """
    return method.training_forward_pass(
      self.segmenter,
      params,
      batch_stats,
      images,
      heads=self.options.student_heads,
      rng=rng,
      perturb=perturb,
    )

  def progress(self, state: train_state.TrainState) -> types.Scalar:
    """Computes t / T of Eq. 15 of U2PL, finished epochs over all epochs."""
    epoch = (state.step // self.steps_per_epoch).astype(jnp.float32)
    return epoch * self.steps_per_epoch / self.update.num_steps

  def apply_in_training(
    self,
    function: Callable[..., Any],
    params: types.Params,
    batch_stats: types.Params,
    rng: Array,
    *arguments: Any,
  ) -> tuple[Any, types.Params]:
    """Applies a function of the network, for passes that `forward` is not.

    Args:
      function: function of the network with its parameters and `arguments`; it
        states which parts are in training mode.
      params: parameters.
      batch_stats: batch statistics before the pass.
      rng: key of the dropout.
      *arguments: further arguments of the function.

    Returns:
      The result of the function, and the batch statistics after the pass.
    """
    result, updated = self.segmenter.apply(
      {'params': params, 'batch_stats': batch_stats},
      *arguments,
      method=function,
      rngs={'dropout': rng},
      mutable=['batch_stats'],
    )
    return result, {**batch_stats, **updated.get('batch_stats', {})}

  def unlabeled_weight(
    self, state: train_state.TrainState, weight: float | types.Scalar
  ) -> types.Scalar:
    """Returns the weight of a loss of unlabeled images, 0 in the warm-up."""
    return jnp.where(state.step < self.warmup_steps, 0.0, weight)

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w C']:
    """Computes logits of images in [-1, 1] by the evaluated network."""
    return self.segmenter.apply(
      self.reported(state), images, heads=('logits',)
    )['logits']

  def panel_output(
    self, state: train_state.TrainState, batch: batch_lib.Batch, rng: Array
  ) -> PanelOutput:
    """Computes what panels show: here the labels of the images as they are.

    Args:
      state: training state.
      batch: batch of training.
      rng: key of the strong view, for methods that have one.
    """
    del rng
    images = batch_lib.batch_images_to_symmetric(batch['unlabeled']['image'])
    scores = pseudo_labels.upsample_teacher_scores(
      self.predict(state, images), images.shape[1:3]
    )
    labels = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    learned, _ = pseudo_labels.ignore_padded_pseudo_labels(
      labels, batch['unlabeled'].get('valid')
    )
    return PanelOutput(
      labels, images, learned, pseudo_labels.pixel_entropy(scores)
    )

  def reported(self, state: train_state.TrainState) -> dict[str, types.Params]:
    """Returns the variables that are evaluated."""
    return train_state.train_state_variables(state)


@dataclasses.dataclass(frozen=True)
class TeacherStudent(SemiSupervised):
  """Base class of methods with an EMA teacher, which is evaluated.

  The options have a field `teacher`; the state is a `TeacherState`.
  """

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> ema.TeacherState:
    """Initializes the student; the teacher is its copy."""
    fresh = super().init(rng, batch_spec, loaded)
    return ema.TeacherState(
      **vars(fresh),
      teacher_params=fresh.params,
      teacher_batch_stats=fresh.batch_stats,
    )

  @property
  def teacher(self) -> ema.EmaTeacher:
    """Returns the EMA teacher."""
    return ema.EmaTeacher(
      self.segmenter,
      self.options.teacher,
      self.warmup_steps,
      self.steps_per_epoch,
    )

  def reported(self, state: train_state.TrainState) -> dict[str, types.Params]:
    """Returns the variables of the teacher; in the warm-up the student's."""
    if not self.options.has_teacher:
      return super().reported(state)
    return self.teacher.reported(state)
