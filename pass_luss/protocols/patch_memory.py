"""Labeled patches for dense nearest neighbors: soft labels and their choice.

A patch is the square of pixels that a cell of a feature map stands for. Its
label is the share of each class in it (spec comparators §8.1.3; Balazevic et
al. 2023, Towards in-context scene understanding).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from input_pipeline import crop_boxes, transforms
from segcore.eval import short_side as short_side_lib
from segcore.ops import color_augment

# Treatment of pixels without a class: counted as class 0, as in the published
# evaluation; or not counted, which leaves out patches that have no others.
Unlabeled = Literal['class_0', 'left_out']

# Of brightness, contrast, saturation and hue: each is changed by up to 0.1 with
# probability 0.5.
JITTER = color_augment.ColorOptions(
  jitter=1.0, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1
)
JITTER_PROBABILITY = 0.5
_NO_CHANGE = (1.0, 1.0, 1.0, 0.0)


def compute_patch_labels(
  label: Int[np.ndarray, 'H W'],
  patch: int,
  num_classes: int,
  unlabeled: Unlabeled = 'class_0',
) -> Float32[np.ndarray, 'h w C']:
  """Computes the share of each class among the pixels of each patch.

  Args:
    label: class of each pixel; negative where there is none.
    patch: side of a patch in pixels, which divides both sides of the label.
    num_classes: number of classes.
    unlabeled: treatment of pixels without a class.

  Returns:
    Shares that sum to 1; with 'left_out', zeros where no pixel has a class.
  """
  height, width = (n // patch for n in label.shape)
  cells = label.astype(np.int64).reshape(height, patch, width, patch)
  cells = cells.swapaxes(1, 2).reshape(height * width, patch * patch)
  if unlabeled == 'class_0':
    cells = np.maximum(cells, 0)
  # One histogram over pairs (patch, class); negative ones are counted apart.
  bins = num_classes + 1
  keys = np.where(cells < 0, num_classes, cells)
  keys += bins * np.arange(height * width)[:, None]
  counts = np.bincount(keys.ravel(), minlength=bins * height * width)
  counts = counts.reshape(height, width, bins)[..., :num_classes]
  total = np.maximum(counts.sum(axis=-1, keepdims=True), 1)
  return (counts / total).astype(np.float32)


def rank_rarest_patches(
  labels: Float[np.ndarray, 'N C'], draws: Float[np.ndarray, 'N']
) -> Int[np.ndarray, 'N']:
  """Orders the patches of an image, those of its rarest classes first.

  A patch ranks by the sum, over the classes in it, of the classes' shares of
  the image. Patches of equal sums are in the order of their draws.

  Args:
    labels: shares of the classes in each patch.
    draws: random value of each patch.

  Returns:
    The indices of the patches.
  """
  frequency = labels.sum(axis=0, dtype=np.float64)
  present = (labels > 0).astype(np.float64)
  # Rounded, since sums of the same shares may differ in the last digits.
  return np.lexsort((draws, np.round(present @ frequency, 6)))


def choose_patches(
  labels: Float[np.ndarray, 'N C'],
  limit: int,
  draws: Float[np.ndarray, 'N'],
) -> Int[np.ndarray, 'M']:
  """Chooses the patches of an image that become rows of the memory.

  Args:
    labels: shares of the classes in each patch; all 0 for patches that are left
      out.
    limit: largest number of patches; 0 for all.
    draws: random value of each patch, for the order of equally rare ones.

  Returns:
    Sorted indices of the chosen patches.
  """
  usable = np.flatnonzero(labels.sum(axis=-1) > 0)
  if not limit or len(usable) <= limit:
    return usable
  order = rank_rarest_patches(labels[usable], draws[usable])
  return np.sort(usable[order[:limit]])


@dataclasses.dataclass(frozen=True)
class PatchMemoryCrop:
  """Crops a box of random area and aspect ratio and resizes it to a square.

  Where the drawn area exceeds the image, the box is the whole image, or the
  largest part of it that has an allowed aspect ratio.

  Attributes:
    side: side of the result in pixels.
    area: range of the area of the box, as a fraction of the image's area.
    aspect: range of width / height of the box.
  """

  side: int
  area: tuple[float, float] = (0.5, 2.0)
  aspect: tuple[float, float] = (3 / 4, 4 / 3)

  @property
  def size(self) -> tuple[int, int]:
    """Returns height and width of the result."""
    return self.side, self.side

  def __call__(
    self, example: transforms.Example, rng: np.random.Generator
  ) -> transforms.Example:
    """Crops and resizes the image, antialiased, and its label."""
    box = crop_boxes.sample_inception_box(
      rng, example['image'].shape[:2], self.area, self.aspect
    )
    return transforms.resize_example(
      transforms.crop_example(example, box), self.size, antialias=True
    )


def with_patch_memory_jitter(
  function: short_side_lib.ForwardFn, seed: int
) -> short_side_lib.ForwardFn:
  """Builds the function that jitters the colors of images before another one.

  Args:
    function: function of a state and images.
    seed: seed of the jitter.
  """
  return lambda state, images: function(
    state, jitter_patch_memory_images(images, seed)
  )


def jitter_patch_memory_images(
  images: Float[Array, 'B H W 3'], seed: int
) -> Float[Array, 'B H W 3']:
  """Jitters each image of a batch in [-1, 1] by random values of its own.

  The key of an image is derived from the sum of its pixels: it does not depend
  on the other images of the batch, nor on the number of devices.

  Args:
    images: images in [-1, 1] of integer pixel values.
    seed: seed of the random values.
  """
  values = jnp.round(255 * (images + 1) / 2).astype(jnp.uint32)
  sums = jnp.sum(values, axis=(1, 2, 3))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), sums)

  def augment(image: Array, key: Array) -> Array:
    draws = color_augment.sample_color_draws(key, JITTER)
    changed = jax.random.bernoulli(
      jax.random.fold_in(key, 1), JITTER_PROBABILITY, (len(_NO_CHANGE),)
    )
    return color_augment.apply_color_draws(
      image, keep_patch_memory_factors(draws, changed), JITTER
    )

  return jax.vmap(augment)(images, keys)


def keep_patch_memory_factors(
  draws: color_augment.ColorDraws, changed: Bool[Array, '4']
) -> color_augment.ColorDraws:
  """Resets the factors of the operations that are not applied.

  Args:
    draws: random values of an image.
    changed: whether brightness, contrast, saturation and hue are applied.
  """
  factors = jnp.where(changed, draws.factors, jnp.array(_NO_CHANGE))
  return draws._replace(factors=factors)
