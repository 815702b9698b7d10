"""Feature distance of DAFormer: the encoder stays near its ImageNet features.

  labels = downscale_labels(labels, features.shape[1:3], num_classes, 0.75)
  kept = is_of_classes(labels, options.classes)
  loss = losses.masked_mean(feature_distances(features, frozen), kept)

Source: Hoyer et al. 2022 (DAFormer), Eqs. 7-9.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import batch as batch_lib

# Things of Cityscapes, with countable objects: traffic light and sign, person,
# rider, car, truck, bus, train, motorcycle, bicycle.
CITYSCAPES_THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)


@dataclasses.dataclass(frozen=True)
class FeatureDistanceOptions:
  """Options of the feature distance.

  Attributes:
    weight: weight λ_FD of this loss in the total loss.
    classes: classes on whose cells features are compared, those of things: the
      photographs of ImageNet show them, and hardly any stuff.
    min_share: share of a cell's pixels that its most frequent class needs.
  """

  weight: float = 0.005
  classes: tuple[int, ...] = CITYSCAPES_THINGS
  min_share: float = 0.75

  def __post_init__(self):
    if self.weight <= 0:
      raise ValueError(f'weight: expected more than 0, got {self.weight}')
    if not 0 <= self.min_share <= 1:
      raise ValueError(f'min_share: expected 0 to 1, got {self.min_share}')
    if not self.classes or min(self.classes) < 0:
      raise ValueError(
        f'classes: expected ids of classes, got {self.classes}; None in place '
        'of these options leaves the feature distance out'
      )


def downscale_labels(
  labels: Int[Array, 'B H W'],
  cells: tuple[int, int],
  num_classes: int,
  min_share: float,
) -> Int[Array, 'B h w']:
  """Computes the label of each cell: the most frequent class of its pixels.

  A cell is ignored if most of its pixels are, or if its class has less than
  `min_share` of them. Of equally frequent classes it is the lowest id.

  Args:
    labels: ground truth; negative where ignored.
    cells: height and width (h, w) of the result. A cell is a square of H // h
      pixels; pixels that fill none are left out.
    num_classes: number of classes.
    min_share: share of the pixels of a cell, from 0 to 1.
  """
  (height, width), side = cells, labels.shape[1] // cells[0]
  blocks = labels[:, : height * side, : width * side].reshape(
    len(labels), height, side, width, side
  )
  # Ignored pixels are a class of their own, the last one.
  blocks = jnp.where(blocks < 0, num_classes, blocks)
  of_class = blocks[..., None] == jnp.arange(num_classes + 1)
  counts = jnp.sum(of_class, axis=(2, 4), dtype=jnp.int32)
  label = jnp.argmax(counts, axis=-1).astype(jnp.int32)
  share = jnp.max(counts, axis=-1) / side**2
  valid = (label < num_classes) & (share >= min_share)
  return jnp.where(valid, label, batch_lib.IGNORE)


def is_of_classes(
  labels: Int[Array, '*shape'], classes: Sequence[int]
) -> Bool[Array, '*shape']:
  """Computes where the label is one of some classes."""
  return jnp.any(labels[..., None] == jnp.asarray(classes), axis=-1)


def feature_distances(
  features: Float[Array, 'B h w D'], others: Float[Array, 'B h w D']
) -> Float[Array, 'B h w']:
  """Computes the Euclidean distance of the features of each cell (Eq. 7).

  It is a sum over channels, not a mean. Where the distance is 0, so is its
  gradient, as in torch.
  """
  squared = jnp.sum(jnp.square(features - others), axis=-1)
  # The root has no derivative at 0, where both encoders coincide: before the
  # first step. It is 0 by selecting before and after the root.
  differs = squared > 0
  return jnp.where(differs, jnp.sqrt(jnp.where(differs, squared, 1.0)), 0.0)
