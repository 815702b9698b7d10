"""Mixed images: target images with pixels of source images (DACS).

  draws = sample_mixing_draws(rng, num_images, num_classes, options)
  mixed = mix_domains(source, labels, target, pseudo, draws, options)

Source: Tranheden et al. 2021 (DACS), as DAFormer (Hoyer et al. 2022) has it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.ops import color_augment, kornia_color
from segcore.train import update as update_lib
from segcore.types import Images, PixelLabels, PixelMask
from u2pl import mixing
from u2pl.adapt import self_training


class DomainDraws(NamedTuple):
  """Random draws of a global batch.

  Attributes:
    priorities: random priority of each class in each image; the last one is
      that of ignored pixels.
    colors: color jitter and blur of each image.
  """

  priorities: Float[Array, 'B C']
  colors: color_augment.ColorDraws


class MixedImages(NamedTuple):
  """Mixed images, in [-1, 1].

  Attributes:
    images: mixed images after color jitter and blur.
    labels: ground truth of source pixels, pseudo-labels of target pixels.
    kept: pixels of the source image.
    trusted: target pixels with a pseudo-label, in rows that have weight.
  """

  images: Images
  labels: PixelLabels
  kept: PixelMask
  trusted: PixelMask


def sample_mixing_draws(
  rng: Array,
  num_images: int,
  num_classes: int,
  options: self_training.SelfTrainingOptions,
) -> DomainDraws:
  """Draws the priorities of the classes, and color jitter and blur.

  Args:
    rng: key of the step.
    num_images: images of the global batch.
    num_classes: number of classes, without that of ignored pixels.
    options: options of the augmentation.
  """
  class_rng, color_rng, batch_rng = jax.random.split(rng, 3)
  # A key of each image, so that its draws do not depend on its device.
  class_keys, color_keys = (
    update_lib.row_prng_keys(key, num_images) for key in (class_rng, color_rng)
  )
  return DomainDraws(
    jax.vmap(lambda key: jax.random.uniform(key, (num_classes + 1,)))(
      class_keys
    ),
    kornia_color.sample_batch_draws(batch_rng, color_keys, options.colors),
  )


def mix_domains(
  source: Images,
  labels: PixelLabels,
  target: Images,
  pseudo: PixelLabels,
  draws: DomainDraws,
  options: self_training.SelfTrainingOptions,
) -> MixedImages:
  """Pastes the pixels of half of the classes into target images, as drawn.

  Then the colors of the mixed images are jittered, and the images blurred;
  labels stay as they are. Without mixing these are the target images.

  Args:
    source: source images in [-1, 1].
    labels: their ground truth; negative where ignored.
    target: target images in [-1, 1], each mixed with the source image of its
      row.
    pseudo: their pseudo-labels; negative on ignored padding.
    draws: random draws of the batch.
    options: whether images are mixed, and rows of target images without weight.
  """
  kept = jnp.zeros(labels.shape, bool)
  if options.mixing == 'dacs':
    kept = mixing.dacs_kept_mask(labels, draws.priorities)
  rows = self_training.trusted_rows(
    labels.shape[1], options.ignored_top, options.ignored_bottom
  )
  images = jnp.where(kept[..., None], source, target)
  return MixedImages(
    images=kornia_color.augment_batch(images, draws.colors),
    labels=jnp.where(kept, labels, pseudo),
    kept=kept,
    trusted=~kept & rows & (pseudo >= 0),
  )
