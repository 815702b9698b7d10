"""Views applied to pixels: sparse maps, upsampling of scores by blocks of rows.

`protocol_views` computes the maps of a view on the host; here they are packed
into arrays, sent with a batch, and applied on the devices.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16, Shaped, UInt8

from input_pipeline import batch as batch_lib
from segcore.eval import protocols
from segcore.models.layers import resize

# Scores upsampled at once: 2**22 float32 are 16 MB. With 2**24 XLA took
# 3.4 GB for 919 classes on a CPU; with 2**22 it takes 0.5 GB in the same time.
_BLOCK_SIZE = 2**22


class Packed(NamedTuple):
  """Nonzeros of the linear maps of an axis, by image.

  Attributes:
    index: int32 [B, n, K], columns of the nonzeros of each row.
    weight: float32 [B, n, K]; 0 where a row has fewer than K nonzeros.
  """

  index: Any
  weight: Any


class ImageSizes(NamedTuple):
  """View of the whole image, whose scores are upsampled to it in one step.

  Attributes:
    sizes: int32 [B, 2], height and width of each image.
  """

  sizes: Any


def pack_view_maps(maps: Sequence[Any], length: int, taps: int) -> Packed:
  """Packs sparse maps to `length` rows of `taps` nonzeros each.

  The maps of a batch travel to the devices; dense ones would be larger than the
  images.
  """
  index = np.zeros((len(maps), length, taps), np.int32)
  weight = np.zeros(index.shape, np.float32)
  for i, matrix in enumerate(maps):
    if matrix is not None:
      counts = np.diff(matrix.indptr)
      rows = np.repeat(np.arange(len(counts)), counts)
      positions = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts)
      index[i, rows, positions] = matrix.indices
      weight[i, rows, positions] = matrix.data
  return Packed(index, weight)


def dense_view_maps(packed: Packed, width: int) -> Array:
  """Builds the dense matrices [B, n, width], on the device."""
  rows = jnp.zeros((*packed.index.shape[:2], width), jnp.float32)
  add = jax.vmap(jax.vmap(lambda row, i, w: row.at[i].add(w)))
  return add(rows, packed.index, packed.weight)


def view_network_input(
  images: UInt8[Array | np.ndarray, 'B H W 3'],
  view: Mapping[str, Packed] | None,
  fill: tuple[int, int, int] | None,
) -> Float[Array, 'B h w 3']:
  """Resamples images to a view, and scales them to [-1, 1] for the network.

  Args:
    images: the images.
    view: packed maps with the weights of the rows and columns of the image in
      those of the view; None for the images themselves.
    fill: RGB color of the view's pixels outside of the image; None for the
      color of value 0 in [-1, 1].

  Returns:
    The view, in [-1, 1].
  """
  if view is None:
    return _resample(images, None, fill)
  # The maps of writing have other shapes, which would need other programs.
  return _resample(images, (view['read_rows'], view['read_columns']), fill)


@functools.partial(jax.jit, static_argnames='fill')
def _resample(images, maps, fill):
  exact = jax.lax.Precision.HIGHEST
  symmetric = batch_lib.batch_images_to_symmetric(images)
  if maps is None:
    return symmetric
  if fill is not None:
    # Rows of the maps that read nothing yield 0, which is the fill color then.
    fill = batch_lib.batch_images_to_symmetric(jnp.array([[fill]], jnp.uint8))
    symmetric -= fill
  rows, columns = (
    dense_view_maps(packed, length)
    for packed, length in zip(maps, images.shape[1:3], strict=True)
  )
  inputs = jnp.einsum('bih,bhwc->biwc', rows, symmetric, precision=exact)
  inputs = jnp.einsum('bjw,biwc->bijc', columns, inputs, precision=exact)
  return inputs if fill is None else inputs + fill


def score_upsampling_matrices(
  scores: Array,
  view: Mapping[str, Packed] | ImageSizes | None,
  padded_size: tuple[int, int],
  align_corners: bool,
) -> list[Array]:
  """Builds the maps of rows and of columns from the scores to the pixels.

  Args:
    scores: [B, h, w, C].
    view: packed maps of the view; or sizes of the images that the scores cover;
      None for a view that is the padded image.
    padded_size: (H, W).
    align_corners: rule of the bilinear resizing.

  Returns:
    [B, H, h] and [B, W, w].
  """
  matrices = []
  for axis, name in enumerate(('rows', 'columns')):
    grid = scores.shape[1 + axis]
    if view is None:
      matrix = resize.bilinear_resize_matrix(
        grid, padded_size[axis], align_corners
      )
      matrix = jnp.broadcast_to(matrix, (len(scores), *matrix.shape))
    elif isinstance(view, ImageSizes):
      length = jnp.maximum(view.sizes[:, axis], 1)
      start = jnp.zeros_like(length)
      matrix = resize.interval_resize_matrices(
        resize.Intervals(start, jnp.full_like(length, grid), grid),
        resize.Intervals(start, length, padded_size[axis]),
        align_corners,
      )
    else:
      # From the scores to the input, then from the input to the image.
      length = view[f'read_{name}'].index.shape[1]
      matrix = jnp.matmul(
        dense_view_maps(view[f'write_{name}'], length),
        resize.bilinear_resize_matrix(grid, length, align_corners),
        precision=jax.lax.Precision.HIGHEST,
      )
    matrices.append(matrix)
  return matrices


def one_image_upsampling_matrices(
  grid: resize.Size,
  padded_size: resize.Size,
  resized_size: resize.Size,
  size: resize.Size,
  protocol: protocols.ProtocolOptions,
) -> list[Array]:
  """Builds the maps of rows and columns from the scores of an image to it.

  Sides may be symbolic.

  Args:
    grid: (rows, columns) of the scores.
    padded_size: (height, width) of the network's input.
    resized_size: (height, width) of the image in it.
    size: (height, width) of the image before it was resized.
    protocol: protocol of one view of the whole image.
  """
  exact = jax.lax.Precision.HIGHEST
  matrices = []
  for cells, padded, resized, n in zip(
    grid, padded_size, resized_size, size, strict=True
  ):
    matrix = jnp.asarray(
      resize.bilinear_resize_matrix(cells, padded, protocol.align_corners)
    )[:resized]
    if protocol.resizes_images:
      enlarging = resize.bilinear_resize_matrix(
        resized, n, protocol.resizes_by_corners
      )
      matrix = jnp.matmul(enlarging, matrix, precision=exact)
    matrices.append(matrix)
  return matrices


def normalize_view_rows(matrix: Array, weights: Array) -> Array:
  """Divides rows by their sums; rows outside of the view stay 0.

  Args:
    matrix: matrices [B, n, width] of a view.
    weights: sums of their rows, [B, n].
  """
  return matrix / jnp.where(weights > 0, weights, 1.0)[..., None]


def map_pixel_row_blocks(
  function: Callable[[Any], Array],
  arrays: Any,
  shape: tuple[int, int, int, int],
) -> Shaped[Array, 'B H ...']:
  """Applies a function to blocks of rows, one after the other.

  Limits memory where the function computes scores [B, n, W, C] for n rows.

  Args:
    function: function from arrays of n rows, [B, n, …], to an array [B, n, …].
    arrays: tree of arrays [B, H, …].
    shape: (B, H, W, C) of all scores, which decides the number of rows n of a
      block.

  Returns:
    The concatenated results, [B, H, …].
  """
  batch, height, width, classes = shape
  cells = max(1, batch // jax.device_count()) * width * classes
  rows = min(height, max(1, _BLOCK_SIZE // cells))
  count = -(-height // rows)

  def blocks(array: Array) -> Array:
    missing = [(0, 0), (0, count * rows - height)]
    padded = jnp.pad(array, missing + [(0, 0)] * (array.ndim - 2))
    split = padded.reshape(batch, count, rows, *array.shape[2:])
    return jnp.moveaxis(split, 1, 0)

  outputs = jax.lax.map(function, jax.tree.map(blocks, arrays))
  outputs = jnp.moveaxis(outputs, 0, 1)
  return outputs.reshape(batch, count * rows, *outputs.shape[3:])[:, :height]


def argmax_scores_by_rows(
  scores: Float[Array, '1 h w C'],
  rows: Float[Array, 'H h'],
  columns: Float[Array, 'W w'],
) -> Int16[Array, '1 H W']:
  """Upsamples scores and takes the argmax, one row of pixels at a time.

  Unlike `map_pixel_row_blocks`, this function needs no number of rows, so sides
  may be symbolic.

  Args:
    scores: scores of the cells of one image.
    rows: weights of the cells' rows for each row of pixels.
    columns: weights of the cells' columns for each column of pixels.
  """
  exact = jax.lax.Precision.HIGHEST
  widened = jnp.einsum('jw,hwc->hjc', columns, scores[0], precision=exact)

  def argmax(weights: Array) -> Array:
    votes = jnp.einsum('h,hjc->jc', weights, widened, precision=exact)
    return jnp.argmax(votes, axis=-1).astype(jnp.int16)

  return jax.lax.map(argmax, rows)[None]
