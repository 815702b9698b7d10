"""Base class of semi-supervised methods: what all of them share."""

import dataclasses

from jaxtyping import Array, Float, Int

from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.train import train_state
from segcore.train import update as update_lib
from u2pl.semi import losses
from u2pl.semi import options as options_lib


@dataclasses.dataclass(frozen=True)
class SemiSupervised:
  """Base class of methods that train on labeled and unlabeled images.

  A subclass adds `init` and `train_step` (see `method.Method`). Batches have
  the streams 'labeled' and 'unlabeled'. The segmenter has a head `logits`, and
  `aux` if the supervised loss has an auxiliary weight.

  Attributes:
    segmenter: network; every network of the method has its architecture.
    update: optimizer step.
    options: options of the method.
    num_classes: number C of classes.
    steps_per_epoch: number of steps that read all unlabeled images once.
    class_weights: weight of each class in the supervised loss; None for equal
      weights.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  options: options_lib.SystemOptions
  num_classes: int
  steps_per_epoch: int
  class_weights: tuple[float, ...] | None = None

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

  def predict(
    self, state: train_state.TrainState, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w C']:
    """Computes logits of images in [-1, 1] by the evaluated network."""
    return self.segmenter.apply(
      self.reported(state), images, heads=('logits',)
    )['logits']

  def reported(self, state: train_state.TrainState) -> dict[str, types.Params]:
    """Returns the variables that are evaluated."""
    return train_state.train_state_variables(state)
