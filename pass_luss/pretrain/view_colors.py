"""Color augmentation of views, on the device (spec §2.2)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from pass_luss.pretrain import view_axis
from segcore.ops import color_augment, tensorflow_color
from segcore.train import update as update_lib

# Mean and standard deviation of ImageNet's red channel, in [0, 1].
_RED_MEAN, _RED_DEVIATION = 0.485, 0.229


_RULES = {
  'torchvision': color_augment.TORCHVISION,
  'simclr': tensorflow_color.SIMCLR,
  'byol': tensorflow_color.BYOL,
}


@dataclasses.dataclass(frozen=True)
class ViewColors:
  """Color augmentation of each group of views.

  Attributes:
    large: augmentation of the first and of the second large view.
    small: augmentation of all small or smaller views.
    red_deviation: standard deviation that red is divided by. SwAV's code has
      0.228 where ImageNet's is 0.229, and PASS inherits it (spec §2.2).
    rules: rules of jitter and blur: those of torchvision, or of the released
      code of SimCLR or BYOL.
  """

  large: tuple[color_augment.ColorOptions, ...]
  small: color_augment.ColorOptions = color_augment.ColorOptions()
  red_deviation: float = _RED_DEVIATION
  rules: Literal['torchvision', 'simclr', 'byol'] = 'torchvision'

  def __post_init__(self):
    if len(self.large) != 2:
      raise ValueError(
        'large: expected 2 blocks, one for each large view, got '
        f'{len(self.large)}'
      )
    if self.red_deviation <= 0:
      raise ValueError(
        f'red_deviation: expected more than 0, got {self.red_deviation}'
      )


def augment_view_colors(
  batch: batch_lib.Batch, rng: Array, colors: ViewColors
) -> dict[str, Float[Array, 'B V h w 3']]:
  """Converts views to [-1, 1] and augments their colors.

  Each view of each image has a key of its own, folded in from the image's place
  in the global batch and from the view's number: 0 and 1 are the large views,
  2 and more the others.

  Args:
    batch: batch with `views_large`, and `views_small` or `views_smaller1`,
      `views_smaller2`, … if there are any.
    rng: key of the step.
    colors: augmentation of each group.

  Returns:
    Views by group: 'large' first.
  """
  keys = update_lib.row_prng_keys(rng, len(batch['views_large']))
  # Supervised pretraining has one view.
  large = colors.large[: batch['views_large'].shape[1]]
  # Views with equal options are augmented by one call, others by one each:
  # every call is compiled anew.
  options_of = {'large': large[:1] if large[0] == large[-1] else large}
  for name in sorted(batch):
    group = name.removeprefix('views_')
    if name.startswith('views_small'):
      options_of[group] = (colors.small,)
  views, number = {}, 0
  for group, options in options_of.items():
    if group != 'large':
      number = max(number, 2)
    images = batch_lib.batch_images_to_symmetric(batch[f'views_{group}'])
    parts = jnp.split(images, len(options), axis=1)
    augmented = []
    for part, part_options in zip(parts, options, strict=True):
      count = part.shape[1]
      part_keys = view_axis.merge_view_axis(_view_keys(keys, number, count))
      rows = color_augment.augment_colors(
        view_axis.merge_view_axis(part),
        part_keys,
        part_options,
        rules=_RULES[colors.rules],
      )
      augmented.append(view_axis.split_view_axis(rows, len(images)))
      number += count
    views[group] = rescale_red_of_views(
      jnp.concatenate(augmented, axis=1), colors.red_deviation
    )
  return views


def rescale_red_of_views(
  images: Float[Array, '*shape 3'], deviation: float
) -> Float[Array, '*shape 3']:
  """Scales red so that the encoder divides it by another deviation.

  The encoder itself divides by ImageNet's 0.229.

  Args:
    images: images in [-1, 1].
    deviation: standard deviation of red that the encoder is to assume, for
      values in [0, 1].
  """
  factor = _RED_DEVIATION / deviation
  if factor == 1.0:
    return images
  mean = 2.0 * _RED_MEAN - 1.0
  red = mean + factor * (images[..., :1] - mean)
  return jnp.concatenate([red, images[..., 1:]], axis=-1)


def _view_keys(keys: Array, first: int, count: int) -> Array:
  """Folds the view numbers first, first + 1, … into each image's key.

  Returns:
    Keys [B, count, …].
  """
  numbers = first + jnp.arange(count)
  fold_in = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(fold_in, (0, None))(keys, numbers)
