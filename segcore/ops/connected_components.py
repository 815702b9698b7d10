"""Connected components of masks, on the device.

roots = label_components(mask)
boxes = component_boxes(roots)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class ComponentBoxes(NamedTuple):
  """Extent of each component; the one with root i is in place i.

  Other places have no meaning.

  Attributes:
    top: first row.
    bottom: last row.
    left: first column.
    right: last column.
    perimeter: number of pixels with a neighbor in row or column that is not in
      the mask; outside of the image nothing is. 0 where there is no component.
  """

  top: Int[Array, 'P']
  bottom: Int[Array, 'P']
  left: Int[Array, 'P']
  right: Int[Array, 'P']
  perimeter: Int[Array, 'P']


def label_components(mask: Bool[Array, 'H W']) -> Int[Array, 'H W']:
  """Labels the 8-connected components of a mask by their roots.

  Every pixel points to one of its component, at first to itself, and takes the
  smallest one that it or a neighbor points to, directly or in two steps, until
  nothing changes; the number of rounds grows as the logarithm of the length of
  a component. Source: Zhang et al. 2020, "FastSV".

  Args:
    mask: pixels that are in some component.

  Returns:
    The root of each pixel's component, its first pixel in reading order, as
    row · W + column; H · W where the mask is false.
  """
  height, width = mask.shape
  none = height * width
  inside = mask.reshape(-1)
  pixels = jnp.where(inside, jnp.arange(none, dtype=jnp.int32), none)

  def follow(parents: Int[Array, 'P']) -> Int[Array, 'P']:
    return jnp.where(inside, parents[jnp.minimum(parents, none - 1)], none)

  def round_(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    parents, _ = carry
    grandparents = follow(parents)
    near = _smallest_neighbors(grandparents.reshape(height, width), none)
    near = jnp.where(inside, near.reshape(-1), none)
    # A parent is hooked to the smallest neighbor of any of its children.
    hooked = grandparents.at[parents].min(near, mode='drop')
    after = jnp.minimum(jnp.minimum(hooked, near), grandparents)
    return after, jnp.any(after != parents)

  # The first round always runs; outside of the mask pixels point nowhere.
  roots, _ = jax.lax.while_loop(
    lambda carry: carry[1], round_, (pixels, jnp.any(inside))
  )
  return roots.reshape(height, width)


def component_boxes(roots: Int[Array, 'H W']) -> ComponentBoxes:
  """Computes the extent and the perimeter of each component.

  Args:
    roots: roots as `label_components` returns them.
  """
  height, width = roots.shape
  size = height * width
  inside = roots < size
  framed = jnp.pad(inside, 1)
  surrounded = (
    framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
  )
  rows = jnp.broadcast_to(
    jnp.arange(height, dtype=jnp.int32)[:, None], roots.shape
  )
  columns = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), roots.shape)
  to = roots.reshape(-1)
  # Roots outside of the array, of pixels without a component, are dropped.
  least = jnp.full(size, size, jnp.int32)
  most = jnp.zeros(size, jnp.int32)
  border = (inside & ~surrounded).astype(jnp.int32).reshape(-1)
  rows, columns = rows.reshape(-1), columns.reshape(-1)
  return ComponentBoxes(
    least.at[to].min(rows, mode='drop'),
    most.at[to].max(rows, mode='drop'),
    least.at[to].min(columns, mode='drop'),
    most.at[to].max(columns, mode='drop'),
    most.at[to].add(border, mode='drop'),
  )


def _smallest_neighbors(
  values: Int[Array, 'H W'], border: int
) -> Int[Array, 'H W']:
  """Computes the smallest value of the 3x3 cells around each cell."""
  for axis in range(2):
    length = values.shape[axis]
    framed = jnp.pad(
      values,
      [(1, 1) if i == axis else (0, 0) for i in range(2)],
      constant_values=border,
    )
    values = jnp.minimum(
      values,
      jnp.minimum(
        jax.lax.slice_in_dim(framed, 0, length, axis=axis),
        jax.lax.slice_in_dim(framed, 2, length + 2, axis=axis),
      ),
    )
  return values
