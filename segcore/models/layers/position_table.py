"""Resizing of position tables, by the rule of each source of weights.

| rule | source | interpolation |
|---|---|---|
| google | the official ViT code | bilinear, corners aligned |
| dino | DINO; DINOv2 without registers | cubic, a = -0.75, sizes plus 0.1 |
| timm | timm; DINOv2 with registers | cubic, a = -0.5, antialiased |
| huggingface | transformers | cubic, a = -0.75 |

a is the parameter of the cubic kernel (Keys 1981). The rules are different
functions of the same table, so that features agree with published ones only by
the rule of the source.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from segcore.models.layers import resize

Rule = Literal['google', 'dino', 'timm', 'huggingface']
# Added to the new sizes by DINO, so that rounding does not lose a cell. It is
# part of the scale, hence of each coordinate.
_DINO_OFFSET = 0.1
_TORCH_A, _KEYS_A = -0.75, -0.5

Matrix = Float[np.ndarray, '_ _'] | Float[Array, '_ _']  # [new, old].


def resize_position_table(
  table: Float[Array, '1 T D'],
  old: tuple[int, int],
  new: resize.Size,
  rule: Rule = 'google',
) -> Float[Array, '1 T_out D']:
  """Resizes position embeddings to another grid.

  The row of a class token is kept, and so is a table that has the new grid.

  Args:
    table: a row for each cell, row-major, after the class token's row if any.
    old: height and width of the table's grid.
    new: height and width of the grid of the result.
    rule: rule of the source of the weights; 'google' has different factors for
      height and width.

  Raises:
    ValueError: the table has not as many rows as the old grid has cells.
  """
  height, width = old
  num_extra = table.shape[1] - height * width
  if num_extra not in (0, 1):
    raise ValueError(
      f'position table: expected {height * width} rows for a grid of '
      f'{height}x{width}, or one more for a class token, got {table.shape[1]}'
    )
  extra, cells = table[:, :num_extra], table[:, num_extra:]
  grid = cells.reshape(1, height, width, -1)
  if rule == 'google':
    grid = resize.resize_bilinear(grid, new, align_corners=True)
  elif tuple(new) != tuple(old):
    rows, columns = cubic_resize_matrices(old, new, rule)
    # At full precision: by default GPUs and TPUs round factors to fewer bits,
    # and features would differ from those of the source.
    grid = jnp.einsum(
      'ih,bhwd,jw->bijd',
      rows,
      grid.astype(jnp.float32),
      columns,
      precision=jax.lax.Precision.HIGHEST,
    ).astype(table.dtype)
  return jnp.concatenate([extra, grid.reshape(1, -1, table.shape[-1])], axis=1)


def cubic_resize_matrices(
  old: tuple[int, int], new: resize.Size, rule: Rule
) -> tuple[Matrix, Matrix]:
  """Computes the weights of the rows and of the columns of a cubic resize.

  Row i of a matrix holds the weights with which cell i of the new axis reads
  the old axis. The new size may be symbolic; weights are then computed inside
  of the exported program.

  Args:
    old: height and width of the grid that is read.
    new: height and width of the result.
    rule: 'dino', 'timm' or 'huggingface'.

  Raises:
    ValueError: the rule is another one.
  """
  if rule == 'timm':
    rows, columns = map(_antialiased_matrix, old, new)
    return rows, columns
  if rule not in ('dino', 'huggingface'):
    raise ValueError(f'rule: expected dino, timm or huggingface, got {rule!r}')
  offset: Any = 0.0
  if rule == 'dino':
    # DINO returns the table itself where the grid is the same.
    xp = _module_of(*new)
    is_same = (xp.asarray(new[0]) == old[0]) & (xp.asarray(new[1]) == old[1])
    offset = xp.where(is_same, 0.0, _DINO_OFFSET)
  rows, columns = (
    _clamped_matrix(a, b, a / (_module_of(b).asarray(b) + offset))
    for a, b in zip(old, new, strict=True)
  )
  return rows, columns


def _clamped_matrix(old: int, new: Any, step: Any) -> Matrix:
  """Computes weights of four taps around (i + ½)·step - ½, edges repeated."""
  # Edges are repeated by moving taps onto the border cell, where the weights of
  # several taps add up.
  xp = _module_of(new)
  source = (xp.arange(new)[:, None] + 0.5) * step - 0.5
  low = xp.floor(source)
  matrix = 0.0
  for tap in range(-1, 3):
    cell = xp.clip(low + tap, 0, old - 1)
    weight = _cubic_kernel(source - (low + tap), _TORCH_A)
    matrix = matrix + (xp.arange(old) == cell) * weight
  return matrix.astype(np.float32)


def _antialiased_matrix(old: int, new: Any) -> Matrix:
  """Computes weights of a kernel as wide as the cells that a new one covers."""
  xp = _module_of(new)
  step = old / xp.asarray(new)
  center = (xp.arange(new)[:, None] + 0.5) * step - 0.5
  # Widened when shrinking only: an enlarged table is interpolated, not blurred.
  distance = (xp.arange(old) - center) / xp.maximum(step, 1.0)
  matrix = _cubic_kernel(distance, _KEYS_A)
  # Taps outside are dropped, and the rest is normalized.
  return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def _cubic_kernel(distance: Any, a: float) -> Any:
  """Computes the weight of a cell at a distance; 0 from a distance of 2 on."""
  x = abs(distance)
  # Both polynomials are evaluated and one is selected: arrays have no branch.
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  return near * (x < 1) + far * ((x >= 1) & (x < 2))


def _module_of(*sizes: Any) -> Any:
  """Returns numpy, or jax.numpy if a size is symbolic."""
  return np if all(isinstance(n, int) for n in sizes) else jnp
