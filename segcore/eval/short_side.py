"""Inference on whole images that are resized to a given short side.

`FeatureMaps` applies a function of the network to each image, at the resolution
of the network's feature grid; `LabelMaps` predicts the class of each pixel of
the image itself.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Float, Int, Int16, Shaped, UInt8

from input_pipeline import batch as batch_lib
from input_pipeline import resampling
from segcore.eval import inference, view_maps
from segcore.models.layers import resize
from segcore.train import method as method_lib
from segcore.train import train_state

# (state, images in [-1, 1], [B, h, w, 3]) -> arrays [B, …].
ForwardFn = Callable[[train_state.TrainState, Array], Array]


def short_side_size(
  size: tuple[int, int], short_side: int, multiple: int = 1
) -> tuple[int, int]:
  """Computes (height, width) for a short side; the long side is rounded down.

  With a multiple, the short side is the multiple nearest to `short_side`, and
  the long side the one nearest to the same aspect ratio.

  >>> short_side_size((375, 500), 256)
  (256, 341)
  >>> short_side_size((375, 500), 256, multiple=14)
  (252, 336)
  """
  height, width = size
  if multiple > 1:
    short = max((2 * short_side + multiple) // (2 * multiple), 1) * multiple
    least = min(size)
    # Nearest multiples in integers; halves are rounded up.
    height, width = (
      (2 * n * short + least * multiple) // (2 * least * multiple) * multiple
      for n in size
    )
    return height, width
  if height <= width:
    return short_side, short_side * width // height
  return short_side * height // width, short_side


def resize_and_center_crop(
  image: UInt8[np.ndarray, 'H W 3'],
  short_side: int,
  crop: int = 0,
  multiple: int = 1,
) -> UInt8[np.ndarray, 'h w 3']:
  """Resizes an image to a short side, then takes a center crop.

  Args:
    image: image of any size.
    short_side: length of the short side; antialiased bilinear, as by Pillow.
    crop: side of the square center crop; 0 for no crop.
    multiple: number of pixels to whose multiples the sides are rounded.
  """
  size = short_side_size(image.shape[:2], short_side, multiple)
  if image.shape[:2] != size:
    image = resampling.resize_image_antialiased(image, size)
  if crop:
    # As torchvision: halves are rounded to even.
    top, left = (round((n - crop) / 2) for n in image.shape[:2])
    image = image[top : top + crop, left : left + crop]
  return image


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureMaps:
  """Predictor that applies a function to each image resized to a short side.

  The result has the resolution of the network's feature grid, or is one row per
  image. Images of one input size share a program; they are not padded, since
  padding would change features near the border.

  Attributes:
    function: the function of a state and images.
    short_side: length of the short side of its input, in pixels.
    crop: side of the center crop of its input; 0 for no crop.
    input_multiple: number of pixels to whose multiples the sides of the input
      are rounded.
  """

  function: ForwardFn
  short_side: int
  crop: int = 0
  input_multiple: int = 1

  def group(self, size: tuple[int, int]) -> inference.Group:
    """Returns the group of images of this size; outputs are never cropped."""
    if self.crop:
      return inference.Group((0, 0), ((self.crop, self.crop),))
    inputs = short_side_size(size, self.short_side, self.input_multiple)
    return inference.Group((0, 0), (inputs,))

  def prepare(
    self, images: Sequence[np.ndarray | None], group: inference.Group
  ) -> dict[str, Any]:
    """Stacks the resized and cropped images."""
    rows = _stack_resized(
      images, group, self.short_side, self.crop, self.input_multiple
    )
    return {'images': rows}

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Array:
    """Applies the function to the images of a batch."""
    return self._function(state, inputs['images'])

  @functools.cached_property
  def _function(self):
    return jax.jit(
      lambda state, images: self.function(
        state, batch_lib.batch_images_to_symmetric(images)
      )
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMaps:
  """Predictor of the class of each pixel, from images of a given short side.

  Scores are upsampled before the argmax (PASS, spec §5.1). For an image of more
  than `max_side` squared pixels the label map has `max_side` rows, and is then
  resized by nearest neighbor.

  Attributes:
    method: model whose `predict` returns scores at the network's output
      resolution.
    short_side: length of the short side of the network's input, in pixels.
    size_multiple: number of pixels to whose multiples label maps are padded, to
      share programs.
    max_side: number of rows of the largest label map.
    output: 'labels', or 'probs' for the probability of each class.
    input_multiple: number of pixels to whose multiples the sides of the
      network's input are rounded; 1 for `label`.
  """

  method: method_lib.ScoreModel
  short_side: int
  size_multiple: int = 64
  max_side: int = 1000
  output: Literal['labels', 'probs'] = 'labels'
  input_multiple: int = 1

  def group(self, size: tuple[int, int]) -> inference.Group:
    """Returns the group of images of this size."""
    height, width = (
      -(-n // self.size_multiple) * self.size_multiple for n in size
    )
    inputs = short_side_size(size, self.short_side, self.input_multiple)
    return inference.Group((height, width), (inputs,))

  def prepare(
    self, images: Sequence[np.ndarray | None], group: inference.Group
  ) -> dict[str, Any]:
    """Stacks the resized images, with the positions of their pixels."""
    positions = [
      np.full((len(images), length), 0.5, np.float32)
      for length in group.padded_size
    ]
    for i, image in enumerate(images):
      if image is not None:
        for batch, axis in zip(
          positions, _positions(image.shape[:2], self.max_side), strict=True
        ):
          batch[i, : len(axis)] = axis
    return {
      'images': _stack_resized(
        images, group, self.short_side, multiple=self.input_multiple
      ),
      'rows': positions[0],
      'columns': positions[1],
    }

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Int16[Array, 'B H W'] | Float[Array, 'B H W C']:
    """Predicts a label map, or probabilities, for each image."""
    scores = self._scores(state, inputs['images'])
    return self._labels(scores, inputs['rows'], inputs['columns'])

  def label(
    self, state: train_state.TrainState, images: UInt8[Array, '1 H W 3']
  ) -> Int16[Array, '1 H W']:
    """Predicts the label map of one image in [0, 255]; traceable, for exports.

    The sides of the image may be symbolic.

    Raises:
      ValueError: `input_multiple` is not 1.
    """
    if self.input_multiple != 1:
      raise ValueError(
        f'input_multiple: expected 1 for export, got {self.input_multiple}'
      )
    height, width = size = images.shape[1:3]
    shorter = core.min_dim(height, width)
    # jax cannot infer that a symbolic long side is not below the short side.
    resized_size = tuple(
      core.max_dim(self.short_side * n // shorter, self.short_side)
      for n in size
    )
    scores = self._scores(
      state, resize.resize_antialiased_uint8(images, resized_size)
    )
    is_large = jnp.asarray(height) * jnp.asarray(width) > self.max_side**2
    reduced_size = (self.max_side, self.max_side * width // height)
    matrices = []
    for n, m, cells in zip(size, reduced_size, scores.shape[1:3], strict=True):
      count = jnp.where(is_large, m, n)
      position = (jnp.arange(n) * count // n + 0.5) / count
      matrices.append(_bilinear_weights(position[None], cells)[0])
    return view_maps.argmax_scores_by_rows(scores, *matrices)

  @functools.cached_property
  def _scores(self):
    return jax.jit(
      lambda state, images: self.method.predict(
        state, batch_lib.batch_images_to_symmetric(images)
      ).astype(jnp.float32)
    )

  @functools.cached_property
  def _labels(self):
    function = {
      'labels': lambda votes: jnp.argmax(votes, axis=-1).astype(jnp.int16),
      'probs': jax.nn.softmax,
    }[self.output]
    return jax.jit(
      functools.partial(map_interpolated_scores, function=function)
    )


def map_interpolated_scores(
  scores: Float[Array, 'B h w C'],
  rows: Float[Array, 'B H'],
  columns: Float[Array, 'B W'],
  function: Callable[[Array], Array],
) -> Shaped[Array, 'B H W ...']:
  """Applies a function to scores interpolated bilinearly at given positions.

  Works in blocks of rows, so that the scores of all classes at all pixels need
  not fit in memory.

  Args:
    scores: class scores on the feature grid.
    rows: vertical positions, from 0 at the upper edge of the map to 1 at the
      lower edge.
    columns: horizontal positions, from 0 at the left edge to 1 at the right.
    function: function from the scores of n rows, [B, n, W, C], to [B, n, W, …].
  """
  exact = jax.lax.Precision.HIGHEST
  batch, height, width, classes = scores.shape
  widened = jnp.einsum(
    'bjw,bhwc->bhjc',
    _bilinear_weights(columns, width),
    scores,
    precision=exact,
  )

  def block(matrix: Array) -> Array:
    votes = jnp.einsum('bih,bhjc->bijc', matrix, widened, precision=exact)
    return function(votes)

  shape = (batch, rows.shape[1], columns.shape[1], classes)
  return view_maps.map_pixel_row_blocks(
    block, _bilinear_weights(rows, height), shape
  )


def resize_predicted_labels(
  labels: Int[np.ndarray, 'h w'], size: tuple[int, int]
) -> Int[np.ndarray, 'H W']:
  """Resizes labels by the floor rule: pixel i takes cell ⌊i·h/H⌋.

  As PASS does, between the cells of a feature grid and pixels (spec PASS §3.3,
  §5.1, §5.3). A label that belongs to an image is resized by `resampling`.
  """
  return resampling.resize_label_by_floor(labels, size)


def _bilinear_weights(
  positions: Float[Array, 'B N'], cells: Any
) -> Float[Array, 'B N n']:
  """Computes bilinear weights of an axis's n cells at positions in [0, 1].

  Cell centers are at half pixels; edge cells are repeated. The number of cells
  may be symbolic.
  """
  index = jnp.clip(positions * cells - 0.5, 0.0, cells - 1)
  distance = jnp.abs(index[..., None] - jnp.arange(cells))
  return jnp.maximum(0.0, 1.0 - distance)


def _positions(
  size: tuple[int, int], max_side: int
) -> list[Float[np.ndarray, 'N']]:
  """Computes positions in [0, 1] of the rows and of the columns of an image.

  Pixels of a large image share the position of their nearest pixel in a map of
  `max_side` rows.
  """
  height, width = size
  reduced_size = size
  if height * width > max_side**2:
    reduced_size = (max_side, max_side * width // height)
  return [
    (np.arange(n) * m // n + 0.5) / m
    for n, m in zip(size, reduced_size, strict=True)
  ]


def _stack_resized(
  images: Sequence[np.ndarray | None],
  group: inference.Group,
  short_side: int,
  crop: int = 0,
  multiple: int = 1,
) -> UInt8[np.ndarray, 'B h w 3']:
  """Stacks resized images of one input size; None becomes zeros."""
  rows = np.zeros((len(images), *group.input_sizes[0], 3), np.uint8)
  for row, image in zip(rows, images, strict=True):
    if image is not None:
      row[:] = resize_and_center_crop(image, short_side, crop, multiple)
  return rows
