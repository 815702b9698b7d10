"""PseudoSeg: decoder and Grad-CAM of a weak view teach a strong one together.

Source: Zou et al. 2021, "PseudoSeg: Designing Pseudo Labels for Semantic
Segmentation". Class 0 is the background: on data without one, its first class.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from input_pipeline.batch import Batch
from segcore import types
from segcore.models import features as features_lib
from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize
from segcore.ops import losses as pixel_losses
from segcore.train import update as update_lib
from segcore.train.train_state import StepResult, TrainState
from segcore.types import Images, PixelMask
from u2pl.semi import (
  cutout_views,
  grad_cam,
  losses,
  method,
  pseudoseg_options,
  student,
)
from u2pl.semi import options as options_lib


class PseudoSeg(method.SemiSupervised):
  """PseudoSeg of one network, without a teacher."""

  options: pseudoseg_options.PseudoSegOptions

  def train_step(self, state: TrainState, batch: Batch) -> StepResult:
    """Runs one step of PseudoSeg."""
    rng = jax.random.fold_in(state.rng, state.step)
    view_rng, weak_rng, strong_rng, labeled_rng = jax.random.split(rng, 4)
    labeled, weak = method.stream_images(batch)
    labels, known = batch['labeled']['label'], losses.known_pixels(batch)
    tags = grad_cam.image_tags(labels, self.num_classes)
    # Pseudo-labels of the weak view; the strong view has the same geometry.
    targets, stats = self.pseudo_label(state, weak, known, weak_rng)
    keys = update_lib.row_prng_keys(view_rng, len(weak))
    draws = cutout_views.sample_view_draws(keys, self.options.views)
    strong, seen = cutout_views.strong_views(
      weak, draws, self.options.views, known
    )
    counted = resize.resize_nearest_floor(known & seen, targets.shape[1:3])
    weight = self.unlabeled_weight(state, self.options.weight)

    def loss(params):
      outputs, after = self.forward(params, stats, strong, strong_rng)
      unsupervised = pixel_losses.masked_mean(
        soft_cross_entropy(outputs['logits'], targets), counted
      )
      # Labels teach decoder, classifier and, with true tags, self-attention.
      outputs, after = self.apply_in_training(
        _labeled_outputs,
        *(params, after, labeled_rng),
        *(labeled, self.options.student_heads, tags, labels >= 0),
      )
      terms = {
        'loss_supervised': self.supervised_loss(outputs, labels),
        'loss_attention': losses.supervised_loss(
          {'logits': outputs['attention']},
          labels,
          options_lib.SupervisedOptions(),
        ),
        'loss_tags': jnp.mean(
          pixel_losses.tag_cross_entropy(outputs['tags'], tags, 'sigmoid')
        ),
        'loss_unsupervised': weight * unsupervised,
      }
      return sum(terms.values()), (terms, after)

    return student.gradient_step(self.update, state, loss)

  def pseudo_label(
    self, state: TrainState, weak: Images, known: PixelMask, rng: Array
  ) -> tuple[Float[Array, 'B h w C'], types.Params]:
    """Computes soft pseudo-labels on the decoder's grid, without a gradient.

    Args:
      state: state before the step.
      weak: unlabeled images in [-1, 1].
      known: pixels without ignored padding.
      rng: key of the dropout.

    Returns:
      Probabilities, and the batch statistics after the passes.
    """
    # Tags and Grad-CAM in evaluation mode, the decoder in training mode.
    attention_rng, decoder_rng = jax.random.split(rng)
    attention, stats = self.apply_in_training(
      _weak_attention,
      *(state.params, state.batch_stats, attention_rng, weak, known),
    )
    outputs, stats = self.forward(state.params, stats, weak, decoder_rng)
    size = outputs['logits'].shape[1:3]
    targets = grad_cam.fuse_predictions(
      outputs['logits'],
      resize.resize_bilinear(attention, size, align_corners=True),
      self.options.temperature,
      self.options.scale,
    )
    return jax.lax.stop_gradient(targets), stats


def soft_cross_entropy(
  logits: Float[Array, 'B h w C'], targets: Float[Array, 'B h w C']
) -> Float[Array, 'B h w']:
  """Computes the cross entropy with soft targets, in nats."""
  log_probs = jax.nn.log_softmax(pixel_losses.at_least_float32(logits))
  return -jnp.sum(targets * log_probs, axis=-1)


def _labeled_outputs(
  network: segmenter_lib.Segmenter,
  images: Images,
  heads: tuple[str, ...],
  tags: Bool[Array, 'B C_tags'],
  valid: PixelMask,
) -> dict[str, Array]:
  """Computes heads, tags and self-attention of true tags, in training mode."""
  features = network.features(images, train=True)
  outputs = network.apply_heads(
    (*heads, 'tags'), features, images.shape[1:3], True
  )
  outputs['attention'] = _attend(network, features, tags, valid)
  return outputs


def _weak_attention(
  network: segmenter_lib.Segmenter, images: Images, valid: PixelMask
) -> Float[Array, 'B h w C']:
  """Computes self-attention of predicted tags, encoder in evaluation mode."""
  features = network.features(images, decode=False)
  logits = network.apply_heads(('tags',), features, images.shape[1:3])['tags']
  # A sigmoid of ½ or more.
  return _attend(network, features, logits >= 0, valid)


def _attend(
  network: segmenter_lib.Segmenter,
  features: dict[str, features_lib.Features],
  tags: Bool[Array, 'B C_tags'],
  valid: PixelMask,
) -> Float[Array, 'B h w C']:
  """Computes the logits of the self-attention, in training mode."""
  maps = network.head_map('attention', features)
  kernel = network.heads.variables['params']['tags']['dense']['kernel']
  cams = grad_cam.class_activation_maps(maps[0], kernel, tags)
  return network.heads.call_method(
    'attention', '__call__', maps, True, cams, valid
  )
