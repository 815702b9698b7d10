"""Connected components of masks, in arrays of fixed shape.

  labels = label_components(mask)
  roots, exist = choose_large_components(labels, min_area, uniforms)
  boxes = component_boxes(labels, roots)

A component has the label of its last pixel, in the order of rows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.ops import order_statistics


def label_components(mask: Bool[Array, 'B H W']) -> Int[Array, 'B H W']:
  """Labels the pixels of each component, which neighbors at corners join.

  Args:
    mask: pixels to label.

  Returns:
    Largest index y·W + x of a pixel of the component; -1 outside of the mask.
  """
  return jax.vmap(_label_image)(mask)


def _label_image(mask: Bool[Array, 'H W']) -> Int[Array, 'H W']:
  # Hooking and pointer jumping (Shiloach and Vishkin 1982): labels are indices
  # of pixels, so that a pixel learns in one step what that of its label knows.
  # The number of steps grows with the logarithm of a component's length.
  start = jnp.arange(mask.size, dtype=jnp.int32).reshape(mask.shape)
  start = jnp.where(mask, start, -1)

  def spread(carry):
    labels, _ = carry
    largest = jax.lax.reduce_window(
      labels, jnp.int32(-1), jax.lax.max, (3, 3), (1, 1), 'SAME'
    )
    largest = jnp.where(mask, largest, -1).ravel()
    # -1 is sent out of bounds, where the scatter drops it.
    at = jnp.where(labels < 0, labels.size, labels).ravel()
    largest = largest.at[at].max(largest, mode='drop')
    jumped = largest[jnp.maximum(largest, 0)]
    new = jnp.where(mask, jumped.reshape(mask.shape), -1)
    return new, jnp.any(new != labels)

  labels, _ = jax.lax.while_loop(
    lambda carry: carry[1], spread, (start, jnp.any(mask))
  )
  return labels


def choose_large_components(
  labels: Int[Array, 'B H W'], min_area: float, uniforms: Float[Array, 'B']
) -> tuple[Int[Array, 'B'], Bool[Array, 'B']]:
  """Chooses one of the components of each image that exceed an area.

  Args:
    labels: labels of `label_components`.
    min_area: number of pixels that a component must exceed.
    uniforms: uniform numbers in [0, 1); the n components are equally probable,
      in the order of their labels.

  Returns:
    Labels of the chosen components, and whether there are any.
  """

  def choose(labels, uniform):
    at = jnp.where(labels < 0, labels.size, labels).ravel()
    areas = jnp.zeros(labels.size, jnp.int32).at[at].add(1, mode='drop')
    is_large = areas > min_area
    running = jnp.cumsum(is_large, dtype=jnp.int32)
    rank = order_statistics.ranks_from_uniforms(uniform, running[-1])
    return jnp.argmax(running > rank).astype(jnp.int32), running[-1] > 0

  return jax.vmap(choose)(labels, uniforms)


def component_boxes(
  labels: Int[Array, 'B H W'], roots: Int[Array, 'B']
) -> Int[Array, 'B 4']:
  """Computes the bounding box of one component of each image.

  Args:
    labels: labels of `label_components`.
    roots: label of the component.

  Returns:
    Top, left, height and width in pixels.
  """
  inside = labels == roots[:, None, None]
  starts, lengths = [], []
  for axis in (2, 1):
    line = jnp.any(inside, axis=axis)
    first = jnp.argmax(line, axis=1)
    last = line.shape[1] - 1 - jnp.argmax(line[:, ::-1], axis=1)
    starts.append(first)
    lengths.append(last - first + 1)
  return jnp.stack([*starts, *lengths], axis=1).astype(jnp.int32)
