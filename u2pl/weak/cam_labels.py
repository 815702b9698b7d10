"""Labels of pixels from class activation maps, tags and affinities.

  images = TaggedImages(pixels, tags, inside)
  labels = threshold_cams(cams, images, 0.35, 0.55)
  labels = refine_cam_labels(cams, images, options)
  labels = propagate_cam_labels(cams, images, affinities, radius, options)

Labels are int32 [B, H, W]: 0 is the background, class c of the tags is c + 1;
negative where no label is certain, and on padding.
Source: Ru et al. 2022 (AFA), Secs. 3.3-3.5.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import batch as batch_lib
from segcore.models import cam
from segcore.models.layers import resize
from segcore.ops import affinity as affinity_lib
from segcore.ops import pixel_adaptive_refinement as refinement_lib
from u2pl.weak import options as options_lib


class TaggedImages(NamedTuple):
  """Images with the classes that they show.

  Attributes:
    pixels: images, 0 to 255.
    tags: classes of each image, without the background.
    inside: pixels that are no padding, a rectangle.
  """

  pixels: Float[Array, 'B H W 3']
  tags: Bool[Array, 'B C']
  inside: Bool[Array, 'B H W']

  @property
  def present(self) -> Bool[Array, 'B 1 1 K']:
    """Returns which channels are possible: background, and classes."""
    background = jnp.ones_like(self.tags[:, :1])
    return jnp.concatenate([background, self.tags], axis=1)[:, None, None]


class Affinities(NamedTuple):
  """Affinities of the cells of an image.

  Attributes:
    values: probability that two cells are of one class, [B, P, P].
    grid: (rows, columns) of the cells.
  """

  values: Array
  grid: tuple[int, int]


def threshold_cams(
  cams: Float[Array, 'B H W C'],
  images: TaggedImages,
  low: float,
  high: float,
) -> Int[Array, 'B H W']:
  """Labels pixels by the largest map of a class that the image shows.

  Up to `low` they are background, above `high` they have the class; between
  the two they have no label.
  """
  valid = cams * images.tags[:, None, None]
  value = jnp.max(valid, axis=-1)
  best = jnp.argmax(valid, axis=-1).astype(jnp.int32) + 1
  labels = jnp.where(value > high, best, batch_lib.IGNORE)
  labels = jnp.where(value <= low, 0, labels)
  return jnp.where(images.inside, labels, batch_lib.IGNORE)


def refine_cam_scores(
  cams: Float[Array, 'B h w C'],
  images: TaggedImages,
  thresholds: Sequence[float],
  options: refinement_lib.PixelAdaptiveOptions,
) -> Float[Array, 'B H W K_several']:
  """Computes scores of background and classes that follow the edges of images.

  Probabilities of background and present classes are refined at half the size.

  Args:
    cams: CAMs, 0 to 1.
    images: images and their tags.
    thresholds: scores of the background; for each there are K channels.
    options: refinement.
  """
  scores = resize.resize_bilinear(cams, _half_size(images.pixels.shape[1:3]))
  probs = [
    _background_and_class_probs(scores, images, threshold)
    for threshold in thresholds
  ]
  # Channels do not interact: all thresholds share the weights of neighbors.
  return _refine_at_half_size(
    jnp.concatenate(probs, axis=-1), images.pixels, options
  )


def refine_cam_labels(
  cams: Float[Array, 'B H W C'],
  images: TaggedImages,
  options: options_lib.CamOptions,
) -> Int[Array, 'B H W']:
  """Labels pixels by CAMs that follow the edges of the image.

  Scores are refined with `low` and with `high` as the score of the background.

  Args:
    cams: multi-scale CAMs, 0 to 1.
    images: images and their tags.
    options: thresholds and refinement.
  """
  refined = refine_cam_scores(
    cams, images, (options.low, options.high), options.refinement
  )
  return _label_by_both(refined, images.inside)


def propagate_cams(
  cams: Float[Array, 'B H W C'], affinities: Affinities, radius: int
) -> Float[Array, 'B h w C']:
  """Propagates CAMs by a step of a random walk, and scales them to 0…1 again.

  Channels do not interact, so those of absent classes are propagated, too.
  Source: Eq. 7 of AFA, which has CAMs, not probabilities as its labels have.

  Args:
    cams: multi-scale CAMs, 0 to 1.
    affinities: affinities of the cells, without gradient.
    radius: largest difference of rows, and of columns, of a step.
  """
  walked = affinity_lib.propagate_by_affinity(
    resize.resize_bilinear(cams, affinities.grid), affinities.values, radius
  )
  return cam.normalize_cams(walked)


def propagate_cam_labels(
  cams: Float[Array, 'B H W C'],
  images: TaggedImages,
  affinities: Affinities,
  radius: int,
  options: options_lib.CamOptions,
) -> Int[Array, 'B H W']:
  """Labels pixels by CAMs after a step of a random walk, and refinement.

  By default the refinement reads the image inside of the padding alone, at half
  its size.

  Args:
    cams: multi-scale CAMs, 0 to 1.
    images: images and their tags.
    affinities: affinities of the cells, without gradient.
    radius: largest difference of rows, and of columns, of a step.
    options: thresholds and refinement.
  """
  size = cams.shape[1:3]
  valid = cams * images.tags[:, None, None]
  scores = resize.resize_bilinear(valid, affinities.grid)
  probs = [
    _background_and_class_probs(scores, images, threshold)
    for threshold in (options.low, options.high)
  ]
  walked = affinity_lib.propagate_by_affinity(
    jnp.concatenate(probs, axis=-1), affinities.values, radius
  )
  walked = resize.resize_bilinear(walked, size)
  if options.walked_crop == 'box':
    placed = _refine_inside(walked, images, options.refinement)
  else:
    placed = _refine_at_half_size(walked, images.pixels, options.refinement)
  return _label_by_both(placed, images.inside)


def _half_size(size: tuple[int, int]) -> tuple[int, int]:
  """Returns half of both sides, 1 at least."""
  height, width = size
  return max(height // 2, 1), max(width // 2, 1)


def _refine_at_half_size(
  scores: Float[Array, 'B _ _ K'],
  pixels: Float[Array, 'B H W 3'],
  options: refinement_lib.PixelAdaptiveOptions,
) -> Float[Array, 'B H W K']:
  """Refines scores by images of half their size; returns them at their size.

  Scores of another size than half are resized to it with aligned corners.
  """
  size, half = pixels.shape[1:3], _half_size(pixels.shape[1:3])
  refined = refinement_lib.refine_by_pixels(
    resize.resize_bilinear(pixels / 255, half),
    resize.resize_bilinear(scores, half, align_corners=True),
    options,
  )
  return resize.resize_bilinear(refined, size)


def _refine_inside(
  scores: Float[Array, 'B H W K'],
  images: TaggedImages,
  options: refinement_lib.PixelAdaptiveOptions,
) -> Float[Array, 'B H W K']:
  """Refines scores by the images inside of their padding, at half size."""
  boxes = [_inside_interval(images.inside, axis) for axis in (1, 2)]
  halves = [
    resize.Intervals(
      jnp.zeros_like(box.start),
      jnp.maximum(box.length // 2, 1),
      max(box.size // 2, 1),
    )
    for box in boxes
  ]

  def matrices(old, new, align_corners=False):
    return [
      resize.interval_resize_matrices(*pair, align_corners)
      for pair in zip(old, new, strict=True)
    ]

  # Crops of each image's own size, at the top left of arrays of one size.
  refined = refinement_lib.refine_by_pixels(
    resize.resize_by_matrices(images.pixels / 255, *matrices(boxes, halves)),
    resize.resize_by_matrices(scores, *matrices(boxes, halves, True)),
    options,
    jnp.stack([each.length for each in halves], axis=1),
  )
  return resize.resize_by_matrices(refined, *matrices(halves, boxes))


def _background_and_class_probs(
  scores: Float[Array, 'B h w C'], images: TaggedImages, threshold: float
) -> Float[Array, 'B h w K']:
  """Computes the softmax of threshold and maps; 0 for absent classes."""
  background = jnp.full_like(scores[..., :1], threshold)
  stacked = jnp.concatenate([background, scores], axis=-1)
  return jax.nn.softmax(jnp.where(images.present, stacked, -jnp.inf))


def _label_by_both(
  scores: Float[Array, 'B H W twice_K'], inside: Bool[Array, 'B H W']
) -> Int[Array, 'B H W']:
  """Combines the labels of both thresholds of the background.

  A pixel has the class that it has above the high threshold; it is background
  if it is so even by the low one.
  """
  low, high = (
    jnp.argmax(each, axis=-1).astype(jnp.int32)
    for each in jnp.split(scores, 2, axis=-1)
  )
  labels = jnp.where(high > 0, high, jnp.where(low == 0, 0, batch_lib.IGNORE))
  return jnp.where(inside, labels, batch_lib.IGNORE)


def _inside_interval(
  inside: Bool[Array, 'B H W'], axis: int
) -> resize.Intervals:
  """Returns the rows (axis 1), or columns (2), that are no padding."""
  occupied = jnp.any(inside, axis=3 - axis)
  length = jnp.maximum(jnp.sum(occupied, axis=1, dtype=jnp.int32), 1)
  start = jnp.argmax(occupied, axis=1).astype(jnp.int32)
  return resize.Intervals(start, length, occupied.shape[1])
