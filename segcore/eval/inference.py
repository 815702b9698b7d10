"""Inference: label maps and scores of images of any size, by a protocol.

  protocol = protocols.ProtocolOptions(flip=True)
  predictor = LabelMaps(method, num_classes, protocol, multiple=16)
  inputs = predictor.prepare(images, predictor.group(images[0].shape[:2]))
  label_maps = predictor(state, inputs)        # int16 [B, H, W], padded

Images of a batch are padded to one size. The size of each image, and its views,
are data of the batch (linear maps, see `protocols`). So images of many sizes
share few compiled programs, and no prediction depends on the other images.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16, UInt8

from input_pipeline import batch as batch_lib
from input_pipeline import transforms
from runtime import errors
from segcore.eval import protocol_resizing, protocols, view_maps
from segcore.models.layers import resize
from segcore.train import method as method_lib
from segcore.train import train_state


class Group(NamedTuple):
  """Sizes that images must have in common to share a batch.

  Attributes:
    padded_size: (height, width) to which each image is padded.
    input_sizes: (height, width) of the network's input for each view; before
      them, where a protocol resizes images before all else, the size to which
      each image is padded after that.
  """

  padded_size: tuple[int, int]
  input_sizes: tuple[tuple[int, int], ...]


@runtime_checkable
class Predictor(Protocol):
  """Interface of inference that `evaluator.Predictions` needs."""

  def group(self, size: tuple[int, int]) -> Group:
    """Returns the group of images of this (height, width)."""
    ...

  def prepare(
    self, images: Sequence[np.ndarray | None], group: Group
  ) -> dict[str, Any]:
    """Builds the inputs of a batch on the host.

    Args:
      images: uint8 [H, W, 3] each, all of the group; None for an empty row.
      group: group of the images.

    Returns:
      Arrays with a row for each image.
    """
    ...

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Array:
    """Predicts each row on the devices; label maps have the padded size."""
    ...


@runtime_checkable
class Labeler(Predictor, Protocol):
  """Interface of a predictor of label maps that can also be exported."""

  def label(
    self, state: train_state.TrainState, images: UInt8[Array, '1 H W 3']
  ) -> Int16[Array, '1 H W']:
    """Predicts the label map of one image in [0, 255]; traceable, for exports.

    The sides of the image may be symbolic.
    """
    ...


def stack_padded_images(
  images: Sequence[np.ndarray | None], size: tuple[int, int]
) -> UInt8[np.ndarray, 'B H W 3']:
  """Stacks images, padded to a size by reflection at the bottom and right.

  Args:
    images: uint8 [h, w, 3] each; None for a row of zeros.
    size: (height, width) to pad to.
  """
  rows = np.zeros((len(images), *size, 3), np.uint8)
  for row, image in zip(rows, images, strict=True):
    if image is not None:
      bottom, right = (
        n - m for n, m in zip(size, image.shape[:2], strict=True)
      )
      row[:] = cv2.copyMakeBorder(
        image, 0, bottom, 0, right, cv2.BORDER_REFLECT
      )
  return rows


def _pad_on_device(images: Array, size: resize.Size) -> Array:
  """Pads as `stack_padded_images` does, in a traceable function."""
  for axis, length in enumerate(size, 1):
    n = images.shape[axis]
    # Reflection has period 2n, edges included, as BORDER_REFLECT. Sides may be
    # symbolic, so the indices are computed in the program.
    position = jnp.arange(length) % (2 * n)
    source = jnp.minimum(position, 2 * n - 1 - position)
    images = jnp.take(images, source, axis=axis)
  return images


def _round_up(size: resize.Size, multiple: int) -> resize.Size:
  height, width = (-(-n // multiple) * multiple for n in size)
  return height, width


@dataclasses.dataclass(frozen=True, eq=False)
class ImageScores:
  """Predictor of one row of scores or features for each image.

  Attributes:
    method: model whose `predict` returns a row for each image.
    multiple: number of pixels that divides the sides of the network's input.
  """

  method: method_lib.ScoreModel
  multiple: int

  def group(self, size: tuple[int, int]) -> Group:
    """Returns the group of images of this size (see `Predictor`)."""
    padded_size = _round_up(size, self.multiple)
    return Group(padded_size, (padded_size,))

  def prepare(
    self, images: Sequence[np.ndarray | None], group: Group
  ) -> dict[str, Any]:
    """Stacks padded images (see `Predictor`)."""
    return {'images': stack_padded_images(images, group.padded_size)}

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Float[Array, 'B ...']:
    """Computes the row of each image."""
    return self._scores(state, inputs['images'])

  @functools.cached_property
  def _scores(self):
    return jax.jit(
      lambda state, images: self.method.predict(
        state, batch_lib.batch_images_to_symmetric(images)
      )
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMaps:
  """Predictor of the class of each pixel, at the size of the image.

  Scores of each view are upsampled (bilinear), averaged and compared in blocks
  of rows, so that the scores of all classes at all pixels need not fit in
  memory.

  Attributes:
    method: model whose `predict` returns scores at the network's output
      resolution.
    num_classes: number of classes C of the scores.
    protocol: the evaluation protocol.
    multiple: number of pixels that divides the sides of the network's input.
    output: 'labels', or 'probs' for the averaged probabilities.
  """

  method: method_lib.ScoreModel
  num_classes: int
  protocol: protocols.ProtocolOptions
  multiple: int
  output: Literal['labels', 'probs'] = 'labels'

  def group(self, size: tuple[int, int]) -> Group:
    """Returns the group of images of this size (see `Predictor`)."""
    padded_size = self._padded_size(size)
    if self.protocol.is_single_view:
      # The input is the padded image itself: no maps are needed.
      return Group(padded_size, (padded_size,))
    input_sizes = tuple(view.input_size for view in self._views(size))
    if not self.protocol.resizes_images:
      return Group(padded_size, input_sizes)
    resized_size = _round_up(self.protocol.resized_size(size), self.multiple)
    return Group(padded_size, (resized_size, *input_sizes))

  def prepare(
    self, images: Sequence[np.ndarray | None], group: Group
  ) -> dict[str, Any]:
    """Stacks padded images and packs the maps of each view."""
    input_sizes = group.input_sizes
    if self.protocol.resizes_images:
      resized_size, *input_sizes = input_sizes
      resized = [
        image
        if image is None
        else protocol_resizing.resize_protocol_image(image, self.protocol)
        for image in images
      ]
      inputs = {'images': stack_padded_images(resized, resized_size)}
    else:
      inputs = {'images': stack_padded_images(images, group.padded_size)}
    if self.protocol.is_single_view:
      return {**inputs, 'views': [None]}
    height, width = group.padded_size
    views = [
      None if image is None else self._views(image.shape[:2])
      for image in images
    ]
    packed = []
    read_taps, write_taps = self.protocol.max_taps
    for i, (h, w) in enumerate(input_sizes):
      of_images = [v and v[i] for v in views]
      packed.append(
        {
          'read_rows': view_maps.pack_view_maps(
            [v and v.read_rows for v in of_images], h, read_taps
          ),
          'read_columns': view_maps.pack_view_maps(
            [v and v.read_columns for v in of_images], w, read_taps
          ),
          'write_rows': view_maps.pack_view_maps(
            [v and v.write_rows for v in of_images], height, write_taps
          ),
          'write_columns': view_maps.pack_view_maps(
            [v and v.write_columns for v in of_images], width, write_taps
          ),
        }
      )
    return {**inputs, 'views': packed}

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Int16[Array, 'B H W'] | Float[Array, 'B H W C']:
    """Predicts a label map, or probabilities, for each image."""
    images = inputs['images']
    padded_size = images.shape[1:3]
    if self.protocol.resizes_images:
      view = inputs['views'][0]
      padded_size = tuple(
        view[f'write_{axis}'].index.shape[1] for axis in ('rows', 'columns')
      )
    pending, total = [], None
    size, limit = 0, padded_size[0] * padded_size[1] * self.num_classes
    for view in inputs['views']:
      network_input = view_maps.view_network_input(images, view, self._fill)
      scores = self._scores(state, network_input)
      pending.append((scores, view))
      size += math.prod(scores.shape[1:])
      if size > limit:
        # Scores of views that take more memory than their sum for the image.
        total = self._add(pending, total, padded_size)
        pending, size = [], 0
    return self._decide(pending, total, padded_size)

  def label(
    self, state: train_state.TrainState, images: UInt8[Array, '1 H W 3']
  ) -> Int16[Array, '1 H W']:
    """Predicts the label map of one image in [0, 255]; traceable, for exports.

    The sides may be symbolic if the protocol is a single view of
    the whole image, resized or not.

    Raises:
      UserError: the sides are symbolic, and there are more views.
    """
    size = images.shape[1:3]
    if not self.protocol.is_whole_image:
      if not all(isinstance(n, int) for n in size):
        raise errors.UserError(
          'protocol: expected a single view of the whole image, got '
          f'{self.protocol.describe()}'
        )
      return _label_by_views(self, state, images)
    resized_size = protocol_resizing.symbolic_protocol_size(size, self.protocol)
    padded_size = self._padded_size(size)
    if self.protocol.resizes_images:
      images = protocol_resizing.resize_protocol_images_on_device(
        images, resized_size, self.protocol
      )
      padded_size = _round_up(resized_size, self.multiple)
    scores = self._scores(
      state,
      batch_lib.batch_images_to_symmetric(_pad_on_device(images, padded_size)),
    )
    matrices = _one_image_matrices(
      scores.shape[1:3], padded_size, resized_size, size, self.protocol
    )
    return view_maps.argmax_scores_by_rows(scores, *matrices)

  @functools.cached_property
  def _scores(self):
    return jax.jit(
      lambda state, images: self.method.predict(state, images).astype(
        jnp.float32
      )
    )

  @functools.cached_property
  def _add(self):
    def add(pending, total, padded_size):
      return self._map_votes(pending, total, padded_size, lambda votes: votes)

    return jax.jit(add, static_argnums=2)

  @functools.cached_property
  def _decide(self):
    def labels(votes):
      return jnp.argmax(votes, axis=-1).astype(jnp.int16)

    def probs(votes):
      return jax.nn.softmax(votes) if self._averages_logits else votes

    function = labels if self.output == 'labels' else probs

    def decide(pending, total, padded_size):
      return self._map_votes(pending, total, padded_size, function)

    return jax.jit(decide, static_argnums=2)

  def _map_votes(
    self, pending, total, padded_size: tuple[int, int], function
  ) -> Array:
    """Applies a function to the votes of blocks of rows, [B, n, W, C] each.

    Args:
      pending: scores and view of each view that is not in the total.
      total: sum of votes [B, H, W, C], or None.
      padded_size: (H, W).
      function: function from votes [B, n, W, C] to [B, n, W, …].
    """
    batch = (pending[0][0] if pending else total).shape[0]
    row_arrays, vote_functions = [], []
    for scores, view in pending:
      # Scores at full resolution need no upsampling matrices.
      if view is None and scores.shape[1:3] == padded_size:
        row_arrays.append(scores)
        vote_functions.append(lambda rows: rows)
      else:
        rows, columns = view_maps.score_upsampling_matrices(
          scores, view, padded_size, self.protocol.align_corners
        )
        row_arrays.append(rows)
        vote_functions.append(functools.partial(self._vote, scores, columns))

    def apply_to_block(block):
      votes, blocks = block
      for vote, rows in zip(vote_functions, blocks, strict=True):
        votes = vote(rows) if votes is None else votes + vote(rows)
      return function(votes)

    return view_maps.map_pixel_row_blocks(
      apply_to_block,
      (total, row_arrays),
      (batch, *padded_size, self.num_classes),
    )

  @property
  def _fill(self) -> tuple[int, int, int] | None:
    """Returns the color of an input where a view reads no pixel."""
    is_mean = self.protocol.padding_mode == 'mean'
    return transforms.MEAN_COLOR if is_mean else None

  def _padded_size(self, size: resize.Size) -> resize.Size:
    padded = _round_up(size, self.protocol.size_multiple or self.multiple)
    if self.protocol.is_single_view:
      padded = _round_up(padded, self.multiple)
    return padded

  @property
  def _averages_logits(self) -> bool:
    return self.protocol.average == 'logits' or self.protocol.is_single_view

  def _vote(self, scores, columns, rows):
    """Computes the weighted logits, or probabilities, of a view.

    Args:
      scores: [B, h, w, C].
      columns: [B, W, w], weights of the scores for each column of pixels.
      rows: [B, n, h], the same for a block of rows.

    Returns:
      [B, n, W, C], times the weight of the view at each pixel.
    """
    if self._averages_logits:
      return view_maps.upsample_view_scores(scores, rows, columns)
    # The maps include the weight of the view at each pixel. The softmax needs
    # plain logits, so weights are divided out before and multiplied in after.
    row_weights = jnp.sum(rows, axis=2)
    column_weights = jnp.sum(columns, axis=2)
    probs = jax.nn.softmax(
      view_maps.upsample_view_scores(
        scores,
        view_maps.normalize_view_rows(rows, row_weights),
        view_maps.normalize_view_rows(columns, column_weights),
      )
    )
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    return weights[..., None] * probs

  def _views(self, size: tuple[int, int]) -> list[protocols.View]:
    return _cached_views(self.protocol, self.multiple, tuple(size))


def _label_by_views(
  label_maps: LabelMaps,
  state: train_state.TrainState,
  images: UInt8[Array, '1 H W 3'],
) -> Int16[Array, '1 H W']:
  """Predicts as `LabelMaps.label`, by all views of the protocol."""
  size = images.shape[1:3]
  protocol = label_maps.protocol
  blank = np.zeros((*size, 3), np.uint8)
  inputs = label_maps.prepare([blank], label_maps.group(size))
  if protocol.resizes_images:
    images = protocol_resizing.resize_protocol_images_on_device(
      images, protocol.resized_size(size), protocol
    )
  stacked_size = inputs['images'].shape[1:3]
  inputs['images'] = _pad_on_device(images, stacked_size)
  return label_maps(state, inputs)[:, : size[0], : size[1]]


def _one_image_matrices(
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
      enlarging = resize.bilinear_resize_matrix(resized, n)
      matrix = jnp.matmul(enlarging, matrix, precision=exact)
    matrices.append(matrix)
  return matrices


@functools.lru_cache(maxsize=64)
def _cached_views(
  protocol: protocols.ProtocolOptions, multiple: int, size: tuple[int, int]
) -> list[protocols.View]:
  views = protocol.build(multiple)
  if not protocol.resizes_images:
    return views(size)
  return protocols.enlarged_views(views, protocol.resized_size(size), size)
