"""Inference: label maps and scores of images of any size, by a protocol.

  protocol = protocols.ProtocolOptions(flip=True)
  predictor = LabelMaps(method, num_classes, protocol, multiple=16)
  inputs = predictor.prepare(images, predictor.group(images[0].shape[:2]))
  label_maps = predictor(state, inputs)        # int16 [B, H, W], padded

Images of a batch are padded to one size. The size of each image, and its views,
are data of the batch (linear maps, see `protocol_views`). So images of many
sizes share few compiled programs, and no prediction depends on the others.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16, Shaped, UInt8

from input_pipeline import batch as batch_lib
from input_pipeline import transforms
from runtime import errors
from segcore.eval import (
  protocol_resizing,
  protocol_views,
  protocols,
  scale_merging,
  view_maps,
  view_votes,
)
from segcore.models.layers import resize
from segcore.ops import dense_crf
from segcore.train import method as method_lib
from segcore.train import train_state


class Group(NamedTuple):
  """Sizes that images must have in common to share a batch.

  Attributes:
    padded_size: (height, width) to which each image is padded, or its label map
      alone where a protocol resizes images before all else.
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


def _smallest_canvas(shape: resize.Size, size: resize.Size) -> resize.Size:
  """Returns the least of the enlargements of a shape that holds a size.

  By 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, … So images of hundreds of sizes
  that are resized to a few shapes have few canvases.
  """
  for exponent in itertools.count():
    for quarters in range(4, 8):
      height, width = (-(-n * quarters * 2**exponent // 4) for n in shape)
      if size[0] <= height and size[1] <= width:
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
class LabelMaps(view_votes.ViewVotes):
  """Predictor of the class of each pixel, at the size of the image.

  Attributes:
    output: 'labels', or 'probs' for the averaged probabilities.
  """

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
    return Group(padded_size, (self._resized_size(size), *input_sizes))

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
    if self.protocol.scale_merge == 'max':
      sizes = [(0, 0) if image is None else image.shape[:2] for image in images]
      inputs['sizes'] = np.array(sizes, np.int32)
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
    if self.protocol.scale_merge == 'max':
      return self._decide([self._maximum(state, inputs)], None, padded_size)
    pending, total = [], None
    size, limit = 0, padded_size[0] * padded_size[1] * self.num_classes
    for view in inputs['views']:
      network_input = view_maps.view_network_input(images, view, self._fill)
      scores = self.scores(state, network_input)
      pending.append((scores, view))
      size += math.prod(scores.shape[1:])
      if size > limit:
        # Scores of views that take more memory than their sum for the image.
        total = self.add(pending, total, padded_size)
        pending, size = [], 0
    return self._decide(pending, total, padded_size)

  def conclude(
    self,
    prediction: Shaped[np.ndarray, 'H W ...'],
    image: UInt8[np.ndarray, 'H W 3'],
  ) -> Shaped[np.ndarray, 'H W ...']:
    """Completes the prediction of one image on the host, by the CRF if any.

    Args:
      prediction: row of a result of this predictor, without padding.
      image: the image.
    """
    if not self.protocol.crf:
      return prediction
    probs = dense_crf.refine_by_crf(
      prediction, image, self.protocol.crf_options
    )
    if self.output == 'probs':
      return probs
    return np.argmax(probs, axis=-1).astype(np.int16)

  def label(
    self, state: train_state.TrainState, images: UInt8[Array, '1 H W 3']
  ) -> Int16[Array, '1 H W']:
    """Predicts the label map of one image in [0, 255]; traceable, for exports.

    The sides may be symbolic if the protocol is a single view of
    the whole image, resized or not.

    Raises:
      UserError: the sides are symbolic, and there are more views; or the
        protocol has a CRF, which no program can contain.
    """
    if self.protocol.crf:
      raise errors.UserError(
        'protocol.crf: expected False for an export, got True: the CRF is no '
        'part of the program; set config.evaluate.protocol.crf to False'
      )
    size = images.shape[1:3]
    if not self.protocol.is_whole_image:
      if not all(isinstance(n, int) for n in size):
        raise errors.UserError(
          'protocol: expected a single view of the whole image, got '
          f'{self.protocol.describe()}'
        )
      return _label_by_views(self, state, images)
    resized_size = protocol_resizing.symbolic_protocol_size(size, self.protocol)
    if self.protocol.resizes_images:
      images = protocol_resizing.resize_protocol_images_on_device(
        images, resized_size, self.protocol
      )
      padded_size = _round_up(resized_size, self.multiple)
    else:
      padded_size = self._padded_size(size)
    scores = self.scores(
      state,
      batch_lib.batch_images_to_symmetric(_pad_on_device(images, padded_size)),
    )
    matrices = view_maps.one_image_upsampling_matrices(
      scores.shape[1:3], padded_size, resized_size, size, self.protocol
    )
    return view_maps.argmax_scores_by_rows(scores, *matrices)

  def _maximum(self, state, inputs) -> tuple[Array, Any]:
    """Computes the maximum of the scales' scores, and what they cover."""
    images, scores = inputs['images'], []
    for view in inputs['views']:
      network_input = view_maps.view_network_input(images, view, self._fill)
      scores.append(self.scores(state, network_input))
    maximum = scale_merging.max_over_scales(scores, self.protocol.flip)
    return maximum, view_maps.ImageSizes(inputs['sizes'])

  @functools.cached_property
  def _decide(self):
    def labels(votes):
      return jnp.argmax(votes, axis=-1).astype(jnp.int16)

    def probs(votes):
      return jax.nn.softmax(votes) if self.averages_logits else votes

    is_final = self.output == 'labels' and not self.protocol.crf
    function = labels if is_final else probs

    def decide(pending, total, padded_size):
      return self.map_votes(pending, total, padded_size, function)

    return jax.jit(decide, static_argnums=2)

  @property
  def _fill(self) -> tuple[int, int, int] | None:
    """Returns the color of an input where a view reads no pixel."""
    is_mean = self.protocol.padding_mode == 'mean'
    return transforms.MEAN_COLOR if is_mean else None

  def _padded_size(self, size: resize.Size) -> resize.Size:
    if self.protocol.resizes_images:
      return _smallest_canvas(self._resized_size(size), size)
    padded = _round_up(size, self.protocol.size_multiple or self.multiple)
    if self.protocol.is_single_view:
      padded = _round_up(padded, self.multiple)
    return padded

  def _resized_size(self, size: resize.Size) -> resize.Size:
    return _round_up(self.protocol.resized_size(size), self.multiple)

  def _views(self, size: tuple[int, int]) -> list[protocol_views.View]:
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


@functools.lru_cache(maxsize=64)
def _cached_views(
  protocol: protocols.ProtocolOptions, multiple: int, size: tuple[int, int]
) -> list[protocol_views.View]:
  views = protocol.build(multiple)
  if not protocol.resizes_images:
    return views(size)
  return protocol_views.enlarged_views(
    views, protocol.resized_size(size), size, protocol.resizes_by_corners
  )
