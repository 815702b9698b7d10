"""Overlaps of two views of an image, in the coordinates of either view.

Views come with the box (top, left, height, width) they were cut from, in
pixels of the image, and whether they were flipped, left to right.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Coordinate of points without an overlap: more than a cell outside of [-1, 1]
# for every map of 2 cells or more: `sample_view_maps` reads zeros there.
_OUTSIDE = -2.0


def view_overlap_grids(
  boxes: Float[Array, 'B 2 4'], flips: Bool[Array, 'B 2'], size: int
) -> tuple[Float[Array, 'B 2 n'], Float[Array, 'B 2 n'], Bool[Array, 'B']]:
  """Computes the positions of a grid of overlap points in either view.

  The points span the overlap from edge to edge. The grid is the product of its
  rows and its columns, which are returned apart (spec §2.6, geometry).

  Args:
    boxes: crop boxes of both views.
    flips: horizontal flips of both views.
    size: number n of points on each side of the overlap.

  Returns:
    Rows and columns, from -1 at one edge of the view to 1 at the other, and
    which images have an overlap. Without one, all points are outside.
  """
  starts, lengths = boxes[..., :2], boxes[..., 2:]
  low = jnp.max(starts, axis=1)
  high = jnp.min(starts + lengths, axis=1)
  overlap = jnp.all(high > low, axis=-1)
  fractions = jnp.linspace(0.0, 1.0, size)
  points = low[:, None] + fractions[:, None] * (high - low)[:, None]
  # From the image's pixels to fractions of each view.
  relative = (points[:, None] - starts[:, :, None]) / lengths[:, :, None]
  rows, columns = relative[..., 0], relative[..., 1]
  columns = jnp.where(flips[..., None], 1.0 - columns, columns)

  def to_grid(coordinates: Array) -> Array:
    inside = overlap[:, None, None]
    return jnp.where(inside, 2.0 * coordinates - 1.0, _OUTSIDE)

  return to_grid(rows), to_grid(columns), overlap


def sample_view_maps(
  features: Float[Array, 'B h w D'],
  rows: Float[Array, 'B n'],
  columns: Float[Array, 'B n'],
) -> Float[Array, 'B n n D']:
  """Samples maps bilinearly at a grid of points, with zero padding.

  A cell's center is half a cell from its edge (half-pixel convention), so a
  point on the map's edge is half its first cell and half padding, as in the
  reference: points are not clamped.

  Args:
    features: maps to sample.
    rows: vertical positions of the points, -1 at the upper and 1 at the lower
      edge of the map.
    columns: horizontal positions of the points, -1 at the left and 1 at the
      right edge.
  """
  # Bilinear weights are a product of those of rows and of columns, so two
  # matrix products do; a gather would scatter in the backward pass.
  weights = [
    _linear_weights(points, side)
    for points, side in zip((rows, columns), features.shape[1:3], strict=True)
  ]
  exact = jax.lax.Precision.HIGHEST
  read = jnp.einsum('bih,bhwd->biwd', weights[0], features, precision=exact)
  return jnp.einsum('bjw,biwd->bijd', weights[1], read, precision=exact)


def _linear_weights(
  points: Float[Array, 'B n'], side: int
) -> Float[Array, 'B n side']:
  """Computes the weight of each cell at each point, in one dimension."""
  index = ((points + 1.0) * side - 1.0) / 2.0
  distance = jnp.abs(index[..., None] - jnp.arange(side))
  return jnp.maximum(0.0, 1.0 - distance)


def nearby_view_cells(
  boxes: Float[Array, 'B 2 4'],
  flips: Bool[Array, 'B 2'],
  sizes: Int[Array, 'B 2'],
  grid: tuple[int, int],
  distance: float,
) -> Bool[Array, 'B hw hw']:
  """Finds the pairs of cells of two views that show about the same point.

  PixPro, Eq. 1: their centers are less than `distance` apart, in units of the
  diagonal of the larger cells (spec §2.10).

  Args:
    boxes: crop boxes of both views.
    flips: horizontal flips of both views.
    sizes: height and width of the images.
    grid: cells (h, w) of a view.
    distance: largest distance of a pair, in diagonals of the larger cells.
  """
  # As in the official code, coordinates run from the center of the first pixel
  # to that of the last: hence sides and lengths less 1.
  sides = (sizes - 1).astype(boxes.dtype)
  lengths = boxes[..., 2:] - 1
  boxes = jnp.concatenate([boxes[..., :2], lengths], axis=-1)
  boxes = boxes / jnp.concatenate([sides, sides], axis=-1)[:, None]
  cells = boxes[..., 2:] / jnp.array(grid, boxes.dtype)
  centers = []
  for axis, count in enumerate(grid):
    index = jnp.arange(count) + 0.5
    offset = index * cells[..., axis, None]
    if axis == 1:
      flipped = boxes[..., 3, None] - offset
      offset = jnp.where(flips[..., None], flipped, offset)
    centers.append(boxes[..., axis, None] + offset)
  rows, columns = centers
  shape = (*boxes.shape[:2], *grid)
  points = jnp.stack(
    [
      jnp.broadcast_to(rows[..., :, None], shape),
      jnp.broadcast_to(columns[..., None, :], shape),
    ],
    axis=-1,
  ).reshape(*boxes.shape[:2], -1, 2)
  apart = points[:, 0, :, None] - points[:, 1, None, :]
  # Squares are compared: no roots, and no gradient of a root at 0.
  squares = jnp.sum(jnp.square(apart), axis=-1)
  diagonals = jnp.sum(jnp.square(cells), axis=-1)
  largest = jnp.max(diagonals, axis=1)[:, None, None]
  return squares < distance**2 * largest
