"""Confident pseudo-labels and strong views, which UniMatch and its V2 share.

own = confident_labels(logits, valid, size, options.confidence)
views = draw_strong_views(weak, rng, options)
targets = views[0].paste(own, partners)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import batch as batch_lib
from segcore import types
from segcore.ops import color_augment, losses
from segcore.train import train_state
from segcore.train import update as update_lib
from u2pl import box_masks, mixing, pseudo_labels
from u2pl.semi import method, unimatch_options


class ConfidentLabels(NamedTuple):
  """Pseudo-labels of images, and where they count.

  Attributes:
    labels: pseudo-labels, of every pixel.
    confident: pixels of at least the least confidence.
    known: pixels without ignored padding.
  """

  labels: Int[Array, 'B H W']
  confident: Bool[Array, 'B H W']
  known: Bool[Array, 'B H W']

  def loss(self, logits: Float[Array, 'B h w C']) -> types.Scalar:
    """Computes the cross entropy summed over confident pixels, by all known.

    Args:
      logits: logits of the student for the images of these labels.
    """
    shape = self.labels.shape[1:]
    logits = pseudo_labels.upsample_teacher_scores(logits, shape)
    labels = jnp.where(self.confident, self.labels, batch_lib.IGNORE)
    return losses.masked_mean(losses.cross_entropy(logits, labels), self.known)

  def scalars(self, batch: batch_lib.Batch) -> dict[str, types.Scalar]:
    """Computes the share of confident pixels and, with masks, accuracies.

    Args:
      batch: batch of training whose unlabeled images have these labels.
    """
    kept = self.confident & self.known
    share = losses.masked_mean(kept.astype(jnp.float32), self.known)
    scalars = {'kept_share': share}
    if 'label' in batch['unlabeled']:
      truth = batch['unlabeled']['label']
      correct = (self.labels == truth).astype(jnp.float32)
      known = self.known & (truth >= 0)
      scalars['pseudo_label_accuracy'] = losses.masked_mean(correct, known)
      scalars['kept_accuracy'] = losses.masked_mean(correct, kept & known)
    return scalars


def confident_labels(
  logits: Float[Array, 'B h w C'],
  batch: batch_lib.Batch,
  confidence: float,
) -> ConfidentLabels:
  """Computes the pseudo-labels of unlabeled images, without a gradient.

  Args:
    logits: logits of the images.
    batch: batch of training.
    confidence: least probability of a confident pseudo-label.
  """
  shape = batch['unlabeled']['image'].shape[:3]
  scores = pseudo_labels.upsample_teacher_scores(
    jax.lax.stop_gradient(logits), shape[1:]
  )
  labels = jnp.argmax(scores, axis=-1).astype(jnp.int32)
  confident = pseudo_labels.confident_pixels(scores, labels, confidence)
  known = batch['unlabeled'].get('valid', jnp.ones(shape, bool))
  return ConfidentLabels(labels, confident, known)


class StrongView(NamedTuple):
  """A strong view of each unlabeled image.

  Attributes:
    images: strong views, in [-1, 1].
    mask: pixels that come from the partner.
    group: number of images of a group, as in `ViewOptions`.
  """

  images: Float[Array, 'B H W 3']
  mask: Bool[Array, 'B H W']
  group: int

  def paste(
    self, own: ConfidentLabels, others: ConfidentLabels
  ) -> ConfidentLabels:
    """Returns the labels of the views.

    Args:
      own: labels of the images.
      others: labels that the images take part with as partners.
    """
    return ConfidentLabels(
      *(
        mixing.paste_partners(x, y, self.mask, self.group)
        for x, y in zip(own, others, strict=True)
      )
    )


def draw_strong_views(
  weak: Float[Array, 'B H W 3'],
  rng: Array,
  options: unimatch_options.ViewOptions,
  count: int = 2,
) -> list[StrongView]:
  """Draws strong views of each image: other colors, then a partner's box.

  The pixels of the box are those of the partner's view of the same number.

  Args:
    weak: unlabeled images in [-1, 1].
    rng: key of the step; an image's draws depend on its index in the batch.
    options: colors and boxes.
    count: number of views of an image.
  """
  views = []
  for key in jax.random.split(rng, count):
    color_rng, box_rng = jax.random.split(key)
    colored = weak
    if options.color.changes_images:
      keys = update_lib.row_prng_keys(color_rng, len(weak))
      colored = color_augment.augment_colors(weak, keys, options.color)
    mask = box_masks.sample_box_masks(
      update_lib.row_prng_keys(box_rng, len(weak)),
      *weak.shape[1:3],
      options.boxes,
    )
    images = mixing.paste_partners(colored, colored, mask, options.group)
    views.append(StrongView(images, mask, options.group))
  return views


def panel_output(
  trained: method.SemiSupervised,
  state: train_state.TrainState,
  batch: batch_lib.Batch,
  rng: Array,
) -> method.PanelOutput:
  """Computes what panels show: a strong view, and its confident labels.

  Args:
    trained: method whose options have `views` and `confidence`.
    state: training state.
    batch: batch of training.
    rng: key of the strong view.
  """
  options = trained.options
  weak = batch_lib.batch_images_to_symmetric(batch['unlabeled']['image'])
  logits = trained.predict(state, weak)
  own = confident_labels(logits, batch, options.confidence)
  [view] = draw_strong_views(weak, rng, options.views, count=1)
  pasted = view.paste(own, own)
  learned = pasted.confident & pasted.known
  entropy = pseudo_labels.pixel_entropy(
    pseudo_labels.upsample_teacher_scores(logits, weak.shape[1:3])
  )
  return method.PanelOutput(
    own.labels,
    view.images,
    jnp.where(learned, pasted.labels, batch_lib.IGNORE),
    mixing.paste_partners(entropy, entropy, view.mask, view.group),
  )
