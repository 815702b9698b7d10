"""Resizing of maps, by the rules of torch and Pillow.

`jax.image.resize` antialiases where it shrinks and reads the nearest neighbor
of half-pixel centers; the networks and protocols of the papers do neither.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped, UInt8

# Height and width. In a program that is exported for images of any size, either
# may be symbolic (jax.export) instead of an int.
Size = tuple[Any, Any]


@jax.custom_vjp
def upsample2x(x: Float[Array, 'B h w D']) -> Float[Array, 'B 2*h 2*w D']:
  """Upsamples by 2: bilinear, half-pixel centers, edges repeated.

  Equal to `jax.image.resize` and to torch's align_corners=False. Every new
  cell is ¾ of its nearest old cell and ¼ of the next; the gradient is written
  in the same form, since the one that jax derives from slices and paddings is
  several times slower on a CPU.

  >>> upsample2x(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)).reshape(2, 4)
  Array([[0., 1., 3., 4.],
         [0., 1., 3., 4.]], dtype=float32)
  """
  doubled = _in_memory_on_cpu(_double(x.astype(jnp.float32), axis=1))
  return _double(doubled, axis=2).astype(x.dtype)


def _upsample2x_forward(
  x: Float[Array, 'B h w D'],
) -> tuple[Float[Array, 'B 2*h 2*w D'], None]:
  return upsample2x(x), None


def _upsample2x_backward(
  _: None, gradient: Float[Array, 'B h_out w_out D']
) -> tuple[Float[Array, 'B h w D']]:
  halved = _in_memory_on_cpu(_halve(gradient.astype(jnp.float32), axis=2))
  return (_halve(halved, axis=1).astype(gradient.dtype),)


upsample2x.defvjp(_upsample2x_forward, _upsample2x_backward)


def _in_memory_on_cpu(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Keeps XLA on a CPU from fusing the two axes.

  A fused loop computes each value of the first axis again for every value of
  the second one that reads it, which takes twice as long in the gradient.
  """
  return jax.lax.platform_dependent(
    x, cpu=jax.lax.optimization_barrier, default=lambda x: x
  )


def _double(x: Float[Array, '...'], axis: int) -> Float[Array, '...']:
  """Upsamples one axis by 2."""
  before = _shift(x, x, axis, ahead=False)
  after = _shift(x, x, axis, ahead=True)
  pairs = jnp.stack(
    [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1
  )
  return pairs.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _halve(x: Float[Array, '...'], axis: int) -> Float[Array, '...']:
  """Applies the transpose of `_double`."""
  pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
  even = jax.lax.index_in_dim(pairs, 0, axis + 1, keepdims=False)
  odd = jax.lax.index_in_dim(pairs, 1, axis + 1, keepdims=False)
  # An even cell took ¼ from the cell before it, an odd one from the cell after.
  # Where there was none, it took it from the edge cell itself, to which the
  # gradient of that share returns.
  from_after = _shift(even, odd, axis, ahead=True)
  from_before = _shift(odd, even, axis, ahead=False)
  return 0.75 * (even + odd) + 0.25 * (from_after + from_before)


def _shift(
  x: Float[Array, '*shape'],
  edge: Float[Array, '*shape'],
  axis: int,
  *,
  ahead: bool,
) -> Float[Array, '*shape']:
  """Shifts x by one cell: cell i becomes x[i + 1] if `ahead`, else x[i - 1].

  `edge` supplies the cell that x lacks at its end.
  """
  n = x.shape[axis]
  if ahead:
    parts = [(x, 1, n), (edge, n - 1, n)]
  else:
    parts = [(edge, 0, 1), (x, 0, n - 1)]
  return jnp.concatenate(
    [jax.lax.slice_in_dim(part, i, j, axis=axis) for part, i, j in parts],
    axis=axis,
  )


def resize_bilinear(
  x: Float[Array, 'B h w D'],
  size: Size,
  align_corners: bool = False,
) -> Float[Array, 'B H W D']:
  """Resizes maps to another grid bilinearly, without antialiasing.

  Follows torch's `interpolate`. With `align_corners`, cell i of n reads the
  coordinate i·(h-1)/(n-1), else (i+½)·h/n - ½ clamped to the map. Products are
  computed in float32 at least.

  >>> x = jnp.arange(4.0).reshape(1, 1, 4, 1)
  >>> resize_bilinear(x, (1, 3), align_corners=True).ravel()
  Array([0. , 1.5, 3. ], dtype=float32)
  """
  result = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  # The default precision of a TPU or GPU rounds float32 factors to fewer bits.
  exact = jax.lax.Precision.HIGHEST
  if size[0] != x.shape[1]:
    rows = bilinear_resize_matrix(
      x.shape[1], size[0], align_corners, dtype=result.dtype
    )
    result = jnp.einsum('ih,bhwd->biwd', rows, result, precision=exact)
  if size[1] != x.shape[2]:
    columns = bilinear_resize_matrix(
      x.shape[2], size[1], align_corners, dtype=result.dtype
    )
    result = jnp.einsum('jw,biwd->bijd', columns, result, precision=exact)
  return result.astype(x.dtype)


def bilinear_resize_matrix(
  old: Any,
  new: Any,
  align_corners: bool = False,
  antialias: bool = False,
  dtype: DTypeLike = np.float32,
) -> Float[np.ndarray, 'rows columns'] | Float[Array, 'rows columns']:
  """Computes the weights of bilinear resizing of one axis, as a matrix.

  Row i holds the weights with which cell i of the new axis reads the old one.

  Args:
    old: number of cells of the axis that is read.
    new: number of cells of the result. Either may be symbolic; the weights are
      then computed inside of the exported program.
    align_corners: whether the corner cells of both grids coincide, as in
      `resize_bilinear`.
    antialias: whether, where the axis shrinks, the triangle of weights widens
      to the old cells that a new one covers, as in `jax.image.resize` and
      Pillow.
    dtype: dtype of the result.
  """
  if not isinstance(old, int) or not isinstance(new, int):
    return _symbolic_matrix(old, new, align_corners, antialias, dtype)
  if antialias and new < old:
    # Weights outside of the map are cut off and the rest is normalized: edges
    # are not repeated, as in Pillow.
    center = (np.arange(new)[:, None] + 0.5) * (old / new) - 0.5
    distance = np.abs(np.arange(old) - center) * (new / old)
    triangle = np.maximum(0.0, 1.0 - distance)
    return (triangle / triangle.sum(axis=1, keepdims=True)).astype(dtype)
  i = np.arange(new)
  if align_corners:
    source = i * ((old - 1) / max(new - 1, 1))
  else:
    source = np.clip((i + 0.5) * (old / new) - 0.5, 0, old - 1)
  low = np.minimum(source.astype(int), max(old - 2, 0))
  high = np.minimum(low + 1, old - 1)
  # With one old cell, low and high are equal: add.at sums both weights.
  matrix = np.zeros((new, old), dtype)
  np.add.at(matrix, (i, low), 1.0 - (source - low))
  np.add.at(matrix, (i, high), source - low)
  return matrix


class Intervals(NamedTuple):
  """A part of an axis in each image of a batch.

  Attributes:
    start: int [B], first cell.
    length: int [B], number of cells, 1 at least.
    size: number of cells of the whole axis.
  """

  start: Int[Array, 'B']
  length: Int[Array, 'B']
  size: int


def interval_resize_matrices(
  old: Intervals, new: Intervals, align_corners: bool = False
) -> Float[Array, 'B rows columns']:
  """Computes the weights of bilinear resizing from intervals to intervals.

  Within an interval they are those of `bilinear_resize_matrix` for axes of its
  length; rows outside of the new interval, and columns outside of the old one,
  are 0. So boxes that differ from image to image are cropped, resized and
  placed by products of static shapes.

  Args:
    old: intervals that are read.
    new: intervals of the result.
    align_corners: whether the corner cells of both grids coincide.
  """
  n, m = (each.length[:, None, None] for each in (old, new))
  row = jnp.arange(new.size)[:, None] - new.start[:, None, None]
  i = jnp.clip(row, 0, m - 1)
  low, high, share = _bilinear_neighbors(i, n, m, align_corners)
  column = jnp.arange(old.size) - old.start[:, None, None]
  weights = (column == low) * (1 - share) + (column == high) * share
  return jnp.where(row == i, weights, 0.0)


def resize_by_matrices(
  x: Float[Array, 'B h w D'],
  rows: Float[Array, 'B H h'],
  columns: Float[Array, 'B W w'],
) -> Float[Array, 'B H W D']:
  """Applies the weights of rows and of columns of each image to its map."""
  exact = jax.lax.Precision.HIGHEST
  x = jnp.einsum('bih,bhwd->biwd', rows, x, precision=exact)
  return jnp.einsum('bjw,biwd->bijd', columns, x, precision=exact)


def _symbolic_matrix(
  old: Any, new: Any, align_corners: bool, antialias: bool, dtype: DTypeLike
) -> Float[Array, 'rows columns']:
  """Computes `bilinear_resize_matrix` for symbolic numbers of cells."""
  cells, n, m = jnp.arange(old), jnp.asarray(old), jnp.asarray(new)
  i = jnp.arange(new)[:, None]
  if antialias:
    factor = jnp.maximum(n / m, 1.0)
    center = (i + 0.5) * (n / m) - 0.5
    triangle = jnp.maximum(0.0, 1.0 - jnp.abs(cells - center) / factor)
    return (triangle / triangle.sum(axis=1, keepdims=True)).astype(dtype)
  low, high, share = _bilinear_neighbors(i, n, m, align_corners)
  share = share.astype(dtype)
  return (cells == low) * (1 - share) + (cells == high) * share


def _bilinear_neighbors(
  i: Int[Array, '*rows'],
  n: Int[Array, '...'],
  m: Int[Array, '...'],
  align_corners: bool,
) -> tuple[Int[Array, '*rows'], Int[Array, '*rows'], Float[Array, '*rows']]:
  """Returns the two cells, of n, that cell i of m reads; weight of the second.

  Coordinates are fractions of integers: if both sizes are equal, weights are
  exactly 0 and 1, and the map is unchanged.
  """
  if align_corners:
    numerator, denominator = i * (n - 1), jnp.maximum(m - 1, 1)
  else:
    numerator = jnp.clip((2 * i + 1) * n - m, 0, 2 * m * (n - 1))
    denominator = 2 * m
  low = jnp.minimum(numerator // denominator, jnp.maximum(n - 2, 0))
  high = jnp.minimum(low + 1, n - 1)
  return low, high, (numerator - low * denominator) / denominator


def depth_to_space(
  x: Shaped[Array, 'B h w D'], factor: int
) -> Shaped[Array, 'B H W C']:
  """Rearranges the channels of each cell to a square of pixels.

  Pixel (i, j) of a cell has the C channels from (i · factor + j) · C on. The
  inverse is `space_to_depth`.

  >>> depth_to_space(jnp.arange(8).reshape(1, 1, 2, 4), 2).reshape(2, 4)
  Array([[0, 1, 4, 5],
         [2, 3, 6, 7]], dtype=int32)

  Args:
    x: map whose channels are a multiple of factor².
    factor: pixels of a side of a cell.
  """
  if factor == 1:
    return x
  batch, height, width, _ = x.shape
  squares = x.reshape(batch, height, width, factor, factor, -1)
  return squares.swapaxes(2, 3).reshape(
    batch, height * factor, width * factor, -1
  )


def space_to_depth(
  x: Shaped[Array, 'B H W C'], factor: int
) -> Shaped[Array, 'B h w D']:
  """Rearranges each square of pixels to the channels of a cell.

  Args:
    x: map whose sides are multiples of the factor.
    factor: pixels of a side of a cell; see `depth_to_space`.
  """
  batch, height, width, _ = x.shape
  squares = x.reshape(
    batch, height // factor, factor, width // factor, factor, -1
  )
  return squares.swapaxes(2, 3).reshape(
    batch, height // factor, width // factor, -1
  )


def resize_antialiased_uint8(
  images: UInt8[Array, 'B H W 3'], size: Size
) -> UInt8[Array, 'B h w 3']:
  """Resizes images as Pillow's bilinear filter: columns, rounding, then rows.

  Sides may be symbolic. Pillow's weights are rounded to 22 bits, so that a few
  values differ by 1 from its results.
  """
  exact = jax.lax.Precision.HIGHEST
  x = images.astype(jnp.float32)
  # Columns first: rounding between the passes makes the order matter.
  for axis, cells in ((2, size[1]), (1, size[0])):
    weights = bilinear_resize_matrix(images.shape[axis], cells, antialias=True)
    equation = 'jw,bhwc->bhjc' if axis == 2 else 'ih,bhwc->biwc'
    # Pillow rounds halves up, jnp.round to even.
    x = jnp.floor(jnp.einsum(equation, weights, x, precision=exact) + 0.5)
  return jnp.clip(x, 0, 255).astype(jnp.uint8)


def resize_nearest_floor(
  x: Shaped[Array, 'B h w *D'], size: tuple[int, int]
) -> Shaped[Array, 'B H W *D']:
  """Resizes labels or masks: cell i reads cell ⌊i·h/H⌋, as torch's 'nearest'.

  >>> resize_nearest_floor(jnp.arange(4).reshape(1, 1, 4), (1, 3)).ravel()
  Array([0, 1, 2], dtype=int32)
  """
  # Integer arithmetic: i * (old / new) in floats may round below an integer.
  for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), 1):
    if old != new:
      x = jnp.take(x, np.arange(new) * old // new, axis=axis)
  return x
