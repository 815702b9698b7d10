"""CPS: two networks that teach each other, with and without CutMix.

Source: Chen et al. 2021, "Semi-Supervised Semantic Segmentation with Cross
Pseudo Supervision". Networks of one architecture start from the same pretrained
parts and different random ones; the first one is evaluated.
"""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from runtime.option_ranges import AtLeastOne, NonNegative, Positive, Range
from segcore import types
from segcore.ops import losses as pixel_losses
from segcore.train import update as update_lib
from segcore.train.method import StepResult
from u2pl import box_masks, mixing, pseudo_labels
from u2pl.semi import losses, method, two_networks
from u2pl.semi import options as options_lib


@dataclasses.dataclass(frozen=True)
class CpsOptions(options_lib.SystemOptions):
  """Options of CPS.

  Attributes:
    name: 'cps'.
    supervised: loss on labeled images, of each network.
    weight: λ, weight of the cross pseudo supervision.
    cutmix: whether it is that of mixed unlabeled images alone, else that of
      labeled and unlabeled images as they are.
    num_boxes: number of boxes of an image's mask; see
      `box_masks.xor_box_masks`.
    group: number of consecutive unlabeled images that are mixed with each
      other, in pairs; divides the batch. Without CutMix it has no effect.
    warmup_epochs: epochs of the supervised loss alone, at the start.
  """

  name: Literal['cps'] = 'cps'
  supervised: options_lib.SupervisedOptions = options_lib.SupervisedOptions()
  weight: Positive[float] = 1.5
  cutmix: bool = False
  num_boxes: AtLeastOne = 3
  group: Annotated[int, Range(2)] = 2
  warmup_epochs: NonNegative[int] = 0

  @property
  def mixing_group(self) -> int:
    """Returns the number of consecutive images mixed with each other."""
    return self.group if self.cutmix else 1


class Cps(two_networks.TwoNetworks):
  """Cross pseudo supervision of two networks."""

  options: CpsOptions

  def train_step(self, state: two_networks.State, batch: Batch) -> StepResult:
    """Runs one step of CPS, or of CPS with CutMix."""
    rng = jax.random.fold_in(state.rng, state.step)
    mixing_rng, label_rng, student_rng = jax.random.split(rng, 3)
    labeled, unlabeled = method.stream_images(batch)
    # Ignored padding of unlabeled images teaches nothing.
    known = losses.known_pixels(batch)
    params = state.params, state.second.params
    stats = state.batch_stats, state.second.batch_stats
    mixed_labels = ()
    if self.options.cutmix:
      # Labels of both networks for the images as they are, in training mode;
      # images and labels are mixed alike.
      [outputs], stats = self.forward_both(
        params, stats, [unlabeled], label_rng
      )
      labels = (_argmax_labels(x['logits'], known.shape) for x in outputs)
      mixed = self.mix(mixing_rng, unlabeled, known, *labels)
      unlabeled, known, *mixed_labels = mixed

    def loss(params):
      # Both networks on labeled and on unlabeled or mixed images.
      (labeled_outputs, outputs), after = self.forward_both(
        params, stats, [labeled, unlabeled], student_rng
      )
      # L_s: ground truth teaches both networks (Eq. 1).
      supervised = sum(
        self.supervised_loss(x, batch['labeled']['label'])
        for x in labeled_outputs
      )
      # L_cps: the labels of one network teach the other (Eqs. 2 and 3); without
      # CutMix those of labeled images, too.
      logits, targets = [x['logits'] for x in outputs], mixed_labels
      counted = known
      if not self.options.cutmix:
        logits = [
          batch_lib.join_batch_rows([x['logits'], y])
          for x, y in zip(labeled_outputs, logits, strict=True)
        ]
        counted = batch_lib.join_batch_rows([jnp.ones_like(known), known])
        targets = [_argmax_labels(x, counted.shape) for x in logits]
      cross = losses.pseudo_label_loss(logits[0], targets[1], counted)
      cross += losses.pseudo_label_loss(logits[1], targets[0], counted)
      cross *= self.unlabeled_weight(state, self.options.weight)
      terms = {
        'loss_supervised': supervised,
        'loss_unsupervised': cross,
        'agreement': _agreement(*targets, counted),
      }
      return supervised + cross, (terms, after)

    # One gradient for both networks, an update for each.
    (total, (terms, stats)), gradients = jax.value_and_grad(loss, has_aux=True)(
      params
    )
    return self.update_both(state, gradients, stats), {'loss': total, **terms}

  def panel_output(
    self, state: two_networks.State, batch: Batch, rng: Array
  ) -> method.PanelOutput:
    """Computes what panels show: mixed labels of the first network."""
    output = super().panel_output(state, batch, rng)
    if not self.options.cutmix:
      return output
    weak_labels, *shown = output
    return method.PanelOutput(weak_labels, *self.mix(rng, *shown))

  def mix(self, rng: Array, *arrays: Shaped[Array, 'B H W ...']) -> list[Array]:
    """Replaces pixels in an odd number of random boxes by those of a partner.

    Args:
      rng: key of the boxes.
      *arrays: images, and values of their pixels.
    """
    num_images, height, width = arrays[0].shape[:3]
    masks = box_masks.xor_box_masks(
      box_masks.sample_box_uniforms(
        update_lib.row_prng_keys(rng, num_images), (self.options.num_boxes, 4)
      ),
      height,
      width,
    )
    return [
      mixing.paste_partners(x, x, masks, self.options.group) for x in arrays
    ]


def _argmax_labels(
  logits: Float[Array, 'B h w C'], shape: tuple[int, ...]
) -> Int[Array, 'B H W']:
  """Computes the label of each pixel; no gradient passes it."""
  scores = pseudo_labels.upsample_teacher_scores(logits, shape[1:3])
  return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def _agreement(
  first: Int[Array, 'B H W'],
  second: Int[Array, 'B H W'],
  counted: Bool[Array, 'B H W'],
) -> types.Scalar:
  """Computes the share of pixels with equal labels, of those counted."""
  equal = (first == second).astype(jnp.float32)
  return pixel_losses.masked_mean(equal, counted)
