"""Resizing of maps, without antialiasing, by each rule the sources use.

`jax.image.resize` blurs before it shrinks and takes the nearest neighbor at
half pixels; the networks and protocols rebuilt here do neither.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped, UInt8

# Height and width. While a program is exported for images of any size, either
# may be a symbol instead of an int.
Size = tuple[Any, Any]


@jax.custom_vjp
def upsample2x(x: Float[Array, 'B h w D']) -> Float[Array, 'B h*2 w*2 D']:
  """Doubles both sides: bilinear, half-pixel centers, edges repeated.

  Equal to `jax.image.resize` and to torch's align_corners=False. Written as
  the fixed 3:1 mix of neighbors that it is, and so is its gradient: the one
  derived from slices and paddings is several times slower on a CPU.

  >>> upsample2x(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)).reshape(2, 4)
  Array([[0., 1., 3., 4.],
         [0., 1., 3., 4.]], dtype=float32)
  """
  doubled = _double(_double(x.astype(jnp.float32), axis=1), axis=2)
  return doubled.astype(x.dtype)


def _upsample2x_forward(x: Array) -> tuple[Array, None]:
  return upsample2x(x), None


def _upsample2x_backward(_: None, gradient: Array) -> tuple[Array]:
  halved = _halve(_halve(gradient.astype(jnp.float32), axis=2), axis=1)
  return (halved.astype(gradient.dtype),)


upsample2x.defvjp(_upsample2x_forward, _upsample2x_backward)


def _double(x: Array, axis: int) -> Array:
  before = _join(x, x, axis, ahead=False)
  after = _join(x, x, axis, ahead=True)
  pairs = jnp.stack(
    [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1
  )
  return pairs.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _halve(x: Array, axis: int) -> Array:
  """The transpose of `_double`."""
  pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
  even = jax.lax.index_in_dim(pairs, 0, axis + 1, keepdims=False)
  odd = jax.lax.index_in_dim(pairs, 1, axis + 1, keepdims=False)
  # What reached out over an edge when doubling comes back to the edge itself.
  from_after = _join(even, odd, axis, ahead=True)
  from_before = _join(odd, even, axis, ahead=False)
  return 0.75 * (even + odd) + 0.25 * (from_after + from_before)


def _join(x: Array, edge: Array, axis: int, *, ahead: bool) -> Array:
  """x shifted by one cell; the cell that falls free is taken from `edge`."""
  n = x.shape[axis]
  if ahead:
    parts = [(x, 1, n), (edge, n - 1, n)]
  else:
    parts = [(edge, 0, 1), (x, 0, n - 1)]
  return jnp.concatenate(
    [jax.lax.slice_in_dim(part, i, j, axis=axis) for part, i, j in parts],
    axis=axis,
  )


def bilinear(
  x: Float[Array, 'B h w D'],
  size: Size,
  align_corners: bool = False,
) -> Float[Array, 'B H W D']:
  """Reads maps at the cells of another grid, larger or smaller, bilinearly.

  Never antialiased, as torch's `interpolate`. With `align_corners` cell i of n
  reads coordinate i·(h-1)/(n-1), without it (i+½)·h/n - ½, clamped to the map.
  Computed in float32 at least, whatever the platform's default.

  >>> x = jnp.arange(4.0).reshape(1, 1, 4, 1)
  >>> bilinear(x, (1, 3), align_corners=True).ravel()
  Array([0. , 1.5, 3. ], dtype=float32)
  """
  result = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  exact = jax.lax.Precision.HIGHEST
  if size[0] != x.shape[1]:
    rows = bilinear_matrix(
      x.shape[1], size[0], align_corners, dtype=result.dtype
    )
    result = jnp.einsum('ih,bhwd->biwd', rows, result, precision=exact)
  if size[1] != x.shape[2]:
    columns = bilinear_matrix(
      x.shape[2], size[1], align_corners, dtype=result.dtype
    )
    result = jnp.einsum('jw,biwd->bijd', columns, result, precision=exact)
  return result.astype(x.dtype)


def bilinear_matrix(
  old: Any,
  new: Any,
  align_corners: bool = False,
  antialias: bool = False,
  dtype: DTypeLike = np.float32,
) -> Float[np.ndarray, 'rows columns'] | Float[Array, 'rows columns']:
  """Row i holds the weights with which cell i of the new axis reads the old.

  Args:
    old: cells of the axis that is read.
    new: cells of the result. While a program is exported for images of any
      size, either may be a symbol; then the weights are computed inside of it.
    align_corners: as in `bilinear`.
    antialias: where the axis shrinks, widen the triangle of each cell to the
      cells it stands for, as `jax.image.resize` and Pillow do.
    dtype: of the result.
  """
  if not isinstance(old, int) or not isinstance(new, int):
    return _matrix_of_symbols(old, new, align_corners, antialias, dtype)
  if antialias and new < old:
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
  matrix = np.zeros((new, old), dtype)
  np.add.at(matrix, (i, low), 1.0 - (source - low))
  np.add.at(matrix, (i, high), source - low)
  return matrix


def _matrix_of_symbols(
  old: Any, new: Any, align_corners: bool, antialias: bool, dtype: DTypeLike
) -> Float[Array, 'rows columns']:
  """The same where the numbers of cells are not known yet."""
  cells, n, m = jnp.arange(old), jnp.asarray(old), jnp.asarray(new)
  i = jnp.arange(new)[:, None]
  if antialias:
    factor = jnp.maximum(n / m, 1.0)
    center = (i + 0.5) * (n / m) - 0.5
    triangle = jnp.maximum(0.0, 1.0 - jnp.abs(cells - center) / factor)
    return (triangle / triangle.sum(axis=1, keepdims=True)).astype(dtype)
  # Fractions of integers, so that where sizes are equal they are exactly 0.
  if align_corners:
    above, below = i * (n - 1), jnp.maximum(m - 1, 1)
  else:
    above, below = jnp.clip((2 * i + 1) * n - m, 0, 2 * m * (n - 1)), 2 * m
  low = jnp.minimum(above // below, jnp.maximum(n - 2, 0))
  high = jnp.minimum(low + 1, n - 1)
  share = ((above - low * below) / below).astype(dtype)
  return (cells == low) * (1 - share) + (cells == high) * share


def antialiased_uint8(
  images: UInt8[Array, 'B H W 3'], size: Size
) -> UInt8[Array, 'B h w 3']:
  """Resizes as Pillow's bilinear does: columns first, rounded in between.

  Sides may be symbols, as in `bilinear_matrix`. Pillow's weights have 22 bits
  of fraction, so now and then a value differs by 1.
  """
  exact = jax.lax.Precision.HIGHEST
  x = images.astype(jnp.float32)
  for axis, cells in ((2, size[1]), (1, size[0])):
    matrix = bilinear_matrix(images.shape[axis], cells, antialias=True)
    equation = 'jw,bhwc->bhjc' if axis == 2 else 'ih,bhwc->biwc'
    # Halves are rounded up.
    x = jnp.floor(jnp.einsum(equation, matrix, x, precision=exact) + 0.5)
  return jnp.clip(x, 0, 255).astype(jnp.uint8)


def nearest_floor(
  x: Shaped[Array, 'B h w *D'], size: tuple[int, int]
) -> Shaped[Array, 'B H W *D']:
  """Reads cell ⌊i·h/H⌋ for cell i: torch's 'nearest', for labels and masks.

  >>> nearest_floor(jnp.arange(4).reshape(1, 1, 4), (1, 3)).ravel()
  Array([0, 1, 2], dtype=int32)
  """
  for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), 1):
    if old != new:
      x = jnp.take(x, np.arange(new) * old // new, axis=axis)
  return x


def resize_position_table(
  table: Float[Array, '1 T D'],
  old: tuple[int, int],
  new: Size,
) -> Float[Array, '1 S D']:
  """Fits the position embeddings of a grid to another grid.

  Bilinear with aligned corners, the rule of the official ViT code, with a
  factor of its own for each side. A row more than the grid has cells is the
  class token's; it comes first and is kept as it is.

  Args:
    table: one row a cell, row-major, after the class token's row if any.
    old: height and width of the grid of the table.
    new: height and width of the grid wanted.
  """
  height, width = old
  num_extra = table.shape[1] - height * width
  if num_extra not in (0, 1):
    raise ValueError(
      f'a position table of {table.shape[1]} rows does not fit a grid of '
      f'{height}x{width}, with or without a class token'
    )
  extra, cells = table[:, :num_extra], table[:, num_extra:]
  grid = cells.reshape(1, height, width, -1)
  grid = bilinear(grid, new, align_corners=True)
  return jnp.concatenate([extra, grid.reshape(1, -1, table.shape[-1])], axis=1)
