"""Pixels of chosen classes from other images: adaptive Copy-Paste and CutMix.

  images, labels = paste_classes(images, labels, pasted, chosen)
  masks, exist = class_box_masks(of_class, uniforms, min_share)

Which images show a class is kept over the whole training:

  shown = update_shown_classes(shown, index, present)

Source: Hu et al. 2021 (AEL; spec of the baselines, §1.3 and §1.4).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.ops import connected_components, order_statistics
from u2pl import box_masks, mixing


class Pasted(NamedTuple):
  """Labeled images whose pixels are pasted into others.

  Attributes:
    images: images in [-1, 1].
    labels: ground truth; negative where ignored, which is never pasted.
    used: whether pixels of an image are pasted at all.
  """

  images: Float[Array, 'B H W 3']
  labels: Int[Array, 'B H W']
  used: Bool[Array, 'B']


def chosen_classes(
  draws: Int[Array, 'G n'], num_classes: int
) -> Bool[Array, 'G C']:
  """Returns which classes are among the draws of each group."""
  return jnp.any(draws[..., None] == jnp.arange(num_classes), axis=1)


def paste_classes(
  images: Float[Array, 'B H W 3'],
  labels: Int[Array, 'B H W'],
  pasted: Pasted,
  chosen: Bool[Array, 'G C'],
) -> tuple[Float[Array, 'B H W 3'], Int[Array, 'B H W']]:
  """Replaces images and labels where the second image shows a chosen class.

  Args:
    images: images in [-1, 1].
    labels: their ground truth.
    pasted: second image of each of them.
    chosen: classes that are pasted in the images of each group.
  """
  chosen = jnp.repeat(chosen, len(labels) // len(chosen), axis=0)
  classes = jnp.arange(chosen.shape[1])
  of_class = pasted.labels[..., None] == classes
  mask = jnp.any(of_class & chosen[:, None, None], axis=-1)
  mask &= pasted.used[:, None, None]
  return (
    jnp.where(mask[..., None], pasted.images, images),
    jnp.where(mask, pasted.labels, labels),
  )


def class_box_masks(
  of_class: Bool[Array, 'B H W'],
  uniforms: Float[Array, 'B 4'],
  min_share: float,
) -> tuple[Bool[Array, 'B H W'], Bool[Array, 'B']]:
  """Computes the boxes whose pixels are pasted in adaptive CutMix.

  The box of an image is the bounding box of one of the components of the class;
  where none is large enough, a random box of half the area.

  Args:
    of_class: pixels predicted as the class of each image.
    uniforms: uniform numbers in [0, 1) for the component, and for height, top
      and left edge of the random box.
    min_share: share of the image's area that a component must exceed.

  Returns:
    Masks of the boxes, and which are those of a component.
  """
  height, width = of_class.shape[1:]
  boxes, exist = jax.vmap(
    functools.partial(_component_box, min_area=min_share * height * width)
  )(of_class, uniforms[:, 0])
  # The first of its numbers is that of the area, which is fixed.
  random = box_masks.xor_box_masks(
    uniforms[:, None], height, width, areas=(0.5, 0.5)
  )
  masks = mixing.cutmix_box_mask(boxes, height, width)
  return jnp.where(exist[:, None, None], masks, random), exist


def _component_box(
  mask: Bool[Array, 'H W'], uniform: Float[Array, ''], min_area: float
) -> tuple[Int[Array, '4'], Bool[Array, '']]:
  """Chooses one of the components that exceed an area.

  The n of them are equally probable, in the order of their first pixels.

  Args:
    mask: pixels of the class.
    uniform: uniform number in [0, 1).
    min_area: number of pixels.

  Returns:
    Top, left, height and width in pixels; whether there is one.
  """
  roots = connected_components.label_components(mask)
  # By root; pixels without a component have one outside of the array.
  areas = jnp.zeros(roots.size, jnp.int32)
  areas = areas.at[roots.ravel()].add(1, mode='drop')
  running = jnp.cumsum(areas > min_area, dtype=jnp.int32)
  rank = order_statistics.ranks_from_uniforms(uniform, running[-1])
  root = jnp.argmax(running > rank)
  extent = connected_components.component_boxes(roots)
  top, bottom, left, right = (
    x[root] for x in (extent.top, extent.bottom, extent.left, extent.right)
  )
  box = jnp.stack([top, left, bottom - top + 1, right - left + 1])
  return box, running[-1] > 0


def predicted_classes(
  labels: Int[Array, 'B H W'], num_classes: int, min_share: float
) -> Bool[Array, 'B C']:
  """Returns which classes have at least a share of an image's pixels.

  Args:
    labels: predicted classes; negative where ignored.
    num_classes: number C of classes.
    min_share: least share of all pixels.
  """
  of_class = labels[..., None] == jnp.arange(num_classes)
  counts = jnp.sum(of_class, axis=(1, 2), dtype=jnp.int32)
  return counts >= min_share * labels[0].size


def update_shown_classes(
  shown: Bool[Array, 'C N'], index: Int[Array, 'B'], present: Bool[Array, 'B C']
) -> Bool[Array, 'C N']:
  """Replaces the classes of the images of a batch.

  An image that the batch has several times shows the classes of all its crops:
  the result must not depend on the order of rows.

  Args:
    shown: whether each of N images shows a class.
    index: positions of the images of the batch.
    present: classes that they show.
  """
  new = jnp.zeros_like(shown).at[:, index].max(present.T, mode='drop')
  seen = jnp.zeros(shown.shape[1], bool).at[index].set(True, mode='drop')
  return jnp.where(seen, new, shown)
