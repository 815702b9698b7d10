"""CPS: two networks that teach each other, with and without CutMix.

Source: Chen et al. 2021, "Semi-Supervised Semantic Segmentation with Cross
Pseudo Supervision". Networks of one architecture start from the same pretrained
parts and different random ones; the first one is evaluated.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from input_pipeline import batch as batch_lib
from input_pipeline import second_crops
from input_pipeline.batch import Batch
from segcore import types
from segcore.ops import losses as pixel_losses
from segcore.train import update as update_lib
from segcore.train.train_state import StepResult
from u2pl import box_masks, mixing, pseudo_labels
from u2pl.semi import losses, method, two_network_options, two_networks

# Parameters or statistics of the two networks.
Networks = tuple[types.Params, types.Params]


class Cps(two_networks.TwoNetworks):
  """Cross pseudo supervision of two networks."""

  options: two_network_options.CpsOptions

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
      (unlabeled, known, *mixed_labels), stats = self.mixed_images(
        params, stats, self.unlabeled_crops(batch), mixing_rng, label_rng
      )

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

  def mixed_images(
    self,
    params: Networks,
    stats: Networks,
    crops: Sequence[Batch],
    mixing_rng: Array,
    rng: Array,
  ) -> tuple[list[Array], Networks]:
    """Mixes unlabeled images, and the labels that both networks give them.

    Args:
      params: parameters of both networks.
      stats: their statistics.
      crops: batches of which the first is mixed with the last.
      mixing_rng: key of the mixing.
      rng: key of the networks.

    Returns:
      Mixed images, which of their pixels count, the labels of either network;
      and the statistics after.
    """
    # Labels of both networks for the images as they are, in training mode;
    # images and labels are mixed alike.
    images = [method.stream_images(each)[1] for each in crops]
    outputs, stats = self.forward_both(params, stats, images, rng)
    parts = []
    for image, each, output in zip(images, crops, outputs, strict=True):
      known = losses.known_pixels(each)
      labels = [_argmax_labels(x['logits'], known.shape) for x in output]
      parts.append((image, known, *labels))
    return self.mix(mixing_rng, parts[0], parts[-1]), stats

  def panel_output(
    self, state: two_networks.State, batch: Batch, rng: Array
  ) -> method.PanelOutput:
    """Computes what panels show: mixed labels of the first network."""
    outputs = [
      super(Cps, self).panel_output(state, each, rng)
      for each in self.unlabeled_crops(batch)
    ]
    if not self.options.cutmix:
      return outputs[0]
    weak_labels, *shown = outputs[0]
    mixed = self.mix(rng, shown, outputs[-1][1:])
    return method.PanelOutput(weak_labels, *mixed)

  def unlabeled_crops(self, batch: Batch) -> list[Batch]:
    """Returns the batch and, if it has them, that of the second crops."""
    if not self.options.needs_two_crops:
      return [batch]
    second = second_crops.second_crop(batch['unlabeled'])
    return [batch, {**batch, 'unlabeled': second}]

  def mix(
    self,
    rng: Array,
    own: Sequence[Shaped[Array, 'B H W ...']],
    others: Sequence[Shaped[Array, 'B H W ...']],
  ) -> list[Array]:
    """Replaces pixels in an odd number of random boxes by those of a partner.

    Args:
      rng: key of the boxes.
      own: images, and values of their pixels.
      others: those that partners take part with.
    """
    num_images, height, width = own[0].shape[:3]
    masks = box_masks.xor_box_masks(
      box_masks.sample_box_uniforms(
        update_lib.row_prng_keys(rng, num_images), (self.options.num_boxes, 4)
      ),
      height,
      width,
    )
    group = self.options.mixing_group
    return [
      mixing.paste_partners(x, y, masks, group)
      for x, y in zip(own, others, strict=True)
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
