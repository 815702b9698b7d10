"""How a network is applied to images: what a metric, or a person, gets to see.

  protocol = protocols.ProtocolOptions(flip=True)
  predictor = LabelMaps(method, num_classes, protocol, multiple=16)
  inputs = predictor.prepare(images, predictor.group(images[0].shape[:2]))
  label_maps = predictor(state, inputs)        # int16 [B, H, W] on a canvas

Images of a batch share a canvas; where each of them ends, and what the network
is shown of it, is data of the batch (linear maps, see `protocols`). So images
of many sizes run through few compiled programs, and none sees another's
padding.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16, Shaped, UInt8

from input_pipeline import batch as batch_lib
from input_pipeline import transforms
from runtime import errors
from segcore.eval import protocols
from segcore.models.layers import resize
from segcore.train import method as method_lib
from segcore.train import train_state

# Scores that are enlarged at once: 2**22 float32 are 16 MB. With 2**24 XLA took
# 3.4 GB for 919 classes on a CPU, with this 0.5 GB, and no longer.
_BLOCK_SIZE = 2**22


class Group(NamedTuple):
  """What images must have in common to share a batch.

  Attributes:
    padded_size: height and width to which each of them is padded.
    input_sizes: size of the network's input for each view.
  """

  padded_size: tuple[int, int]
  input_sizes: tuple[tuple[int, int], ...]


@runtime_checkable
class Predictor(Protocol):
  """What `evaluate.Predictions` needs of a way to look at images."""

  def group(self, size: tuple[int, int]) -> Group:
    """The group of an image of this height and width."""
    ...

  def prepare(
    self, images: Sequence[np.ndarray | None], group: Group
  ) -> dict[str, Any]:
    """Arrays with a row for each image; None stands for an empty row."""
    ...

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Array:
    """A prediction for each row; maps are as large as the canvas."""
    ...


@runtime_checkable
class Labeler(Predictor, Protocol):
  """A predictor of label maps that can be exported, too."""

  def label(
    self, state: train_state.TrainState, images: UInt8[Array, '1 H W 3']
  ) -> Int16[Array, '1 H W']:
    """The label map of one image, whose sides may be symbols."""
    ...


def stack_padded(
  images: Sequence[np.ndarray | None], canvas: tuple[int, int]
) -> UInt8[np.ndarray, 'B H W 3']:
  """Stacks images, continued at the bottom and right by reflection."""
  rows = np.zeros((len(images), *canvas, 3), np.uint8)
  for row, image in zip(rows, images, strict=True):
    if image is not None:
      bottom, right = (
        n - m for n, m in zip(canvas, image.shape[:2], strict=True)
      )
      row[:] = cv2.copyMakeBorder(
        image, 0, bottom, 0, right, cv2.BORDER_REFLECT
      )
  return rows


def _continued(images: Array, canvas: resize.Size) -> Array:
  """As `on_canvas`, on the device."""
  for axis, length in enumerate(canvas, 1):
    n = images.shape[axis]
    position = jnp.arange(length) % (2 * n)
    source = jnp.minimum(position, 2 * n - 1 - position)
    images = jnp.take(images, source, axis=axis)
  return images


def map_row_blocks(
  what: Callable[[Any], Array], by_rows: Any, shape: tuple[int, int, int, int]
) -> Shaped[Array, 'B H ...']:
  """Applies a function to blocks of rows, one after the other, and joins them.

  Args:
    what: from arrays of n rows, [B, n, …], to an array [B, n, …].
    by_rows: a tree of arrays [B, H, …].
    shape: B, H, W and C of the scores that it makes on the way, of which no
      more than a block is in memory.
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

  found = jax.lax.map(what, jax.tree.map(blocks, by_rows))
  joined = jnp.moveaxis(found, 0, 1)
  return joined.reshape(batch, count * rows, *joined.shape[3:])[:, :height]


def argmax_by_rows(
  scores: Float[Array, '1 h w C'],
  rows: Float[Array, 'H h'],
  columns: Float[Array, 'W w'],
) -> Int16[Array, '1 H W']:
  """The best class of each pixel, a row at a time: sides may be symbols."""
  exact = jax.lax.Precision.HIGHEST
  wide = jnp.einsum('jw,hwc->hjc', columns, scores[0], precision=exact)

  def best(weights: Array) -> Array:
    votes = jnp.einsum('h,hjc->jc', weights, wide, precision=exact)
    return jnp.argmax(votes, axis=-1).astype(jnp.int16)

  return jax.lax.map(best, rows)[None]


def _multiple_of(size: resize.Size, multiple: int) -> resize.Size:
  height, width = (-(-n // multiple) * multiple for n in size)
  return height, width


@dataclasses.dataclass(frozen=True, eq=False)
class ImageScores:
  """One row of scores or features for each whole image.

  Attributes:
    method: its `predict` gives a row for each image.
    multiple: of the sides of the network's input.
  """

  method: method_lib.ScoreModel
  multiple: int

  def group(self, size: tuple[int, int]) -> Group:
    """See `Predictor`."""
    canvas = _multiple_of(size, self.multiple)
    return Group(canvas, (canvas,))

  def prepare(
    self, images: Sequence[np.ndarray | None], group: Group
  ) -> dict[str, Any]:
    """See `Predictor`."""
    return {'images': stack_padded(images, group.padded_size)}

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Float[Array, 'B ...']:
    """See `Predictor`."""
    return self._scores(state, inputs['images'])

  @functools.cached_property
  def _scores(self):
    return jax.jit(
      lambda state, images: self.method.predict(
        state, batch_lib.to_symmetric(images)
      )
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMaps:
  """The best class of each pixel, at the image's own size, by a protocol.

  Scores of each view are enlarged (bilinear), averaged and compared in blocks
  of rows, so that all classes at all pixels need not fit in memory.

  Attributes:
    method: its `predict` gives scores at the network's own grid.
    num_classes: of the scores.
    protocol: how the network looks at an image.
    multiple: of the sides of the network's input.
    output: 'labels', or 'probs' for the averaged probabilities.
  """

  method: method_lib.ScoreModel
  num_classes: int
  protocol: protocols.ProtocolOptions
  multiple: int
  output: Literal['labels', 'probs'] = 'labels'

  def group(self, size: tuple[int, int]) -> Group:
    """See `Predictor`."""
    canvas = self._canvas(size)
    if self.protocol.is_single_view:
      # The input is the canvas, and nothing has to be moved.
      return Group(canvas, (canvas,))
    views = self._views(size)
    return Group(canvas, tuple(view.input_size for view in views))

  def prepare(
    self, images: Sequence[np.ndarray | None], group: Group
  ) -> dict[str, Any]:
    """See `Predictor`; adds the maps of each view, by row of the batch."""
    inputs = {'images': stack_padded(images, group.padded_size)}
    if self.protocol.is_single_view:
      return {**inputs, 'views': [None]}
    height, width = group.padded_size
    views = [
      None if image is None else self._views(image.shape[:2])
      for image in images
    ]
    packed = []
    for i, (h, w) in enumerate(group.input_sizes):
      lengths = {
        'read_rows': h,
        'read_columns': w,
        'write_rows': height,
        'write_columns': width,
      }
      packed.append(
        {
          name: _packed(
            [v and getattr(v[i], name) for v in views],
            length,
            self.protocol.max_taps[name.startswith('write')],
          )
          for name, length in lengths.items()
        }
      )
    return {**inputs, 'views': packed}

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Int16[Array, 'B H W'] | Float[Array, 'B H W C']:
    """See `Predictor`."""
    images = inputs['images']
    canvas = images.shape[1:3]
    found, total = [], None
    size, limit = 0, canvas[0] * canvas[1] * self.num_classes
    for view in inputs['views']:
      scores = self._scores(state, _look(images, view, self._beyond))
      found.append((scores, view))
      size += math.prod(scores.shape[1:])
      if size > limit:
        # The views' scores need more memory than their sum does.
        total = self._add(found, total, canvas)
        found, size = [], 0
    return self._decide(found, total, canvas)

  def label(
    self, state: train_state.TrainState, images: UInt8[Array, '1 H W 3']
  ) -> Int16[Array, '1 H W']:
    """The same of one image, in one traceable function, for `export`.

    The sides may be symbols if there is a single view of the whole image.

    Raises:
      UserError: they are, and there are more views.
    """
    size = images.shape[1:3]
    if not self.protocol.is_single_view:
      if not all(isinstance(n, int) for n in size):
        raise errors.UserError(f'it is: {self.protocol.describe()}')
      group = self.group(size)
      inputs = self.prepare([np.zeros((*size, 3), np.uint8)], group)
      inputs['images'] = _continued(images, group.padded_size)
      return self(state, inputs)[:, : size[0], : size[1]]
    canvas = self._canvas(size)
    scores = self._scores(
      state, batch_lib.to_symmetric(_continued(images, canvas))
    )
    aligned = self.protocol.align_corners
    rows, columns = (
      jnp.asarray(resize.bilinear_matrix(grid, n, aligned)[:cut])
      for grid, n, cut in zip(scores.shape[1:3], canvas, size, strict=True)
    )
    return argmax_by_rows(scores, rows, columns)

  @functools.cached_property
  def _scores(self):
    return jax.jit(
      lambda state, images: self.method.predict(state, images).astype(
        jnp.float32
      )
    )

  @functools.cached_property
  def _add(self):
    def add(found, total, canvas):
      return self._in_blocks(found, total, canvas, lambda votes: votes)

    return jax.jit(add, static_argnums=2)

  @functools.cached_property
  def _decide(self):
    def best(votes):
      return jnp.argmax(votes, axis=-1).astype(jnp.int16)

    def probs(votes):
      return jax.nn.softmax(votes) if self._averages_logits else votes

    def decide(found, total, canvas):
      what = best if self.output == 'labels' else probs
      return self._in_blocks(found, total, canvas, what)

    return jax.jit(decide, static_argnums=2)

  def _in_blocks(self, found, total, canvas: tuple[int, int], what) -> Array:
    """Applies `what` to the votes of blocks of rows, [B, n, W, C] each."""
    batch = (found[0][0] if found else total).shape[0]
    parts = []
    for scores, view in found:
      if view is None and scores.shape[1:3] == canvas:
        parts.append((scores, lambda rows: rows))
      else:
        matrices, columns = _matrices(
          scores, view, canvas, self.protocol.align_corners
        )
        parts.append((matrices, functools.partial(self._vote, scores, columns)))

    def block(sliced):
      votes, pieces = sliced
      for (_, vote), piece in zip(parts, pieces, strict=True):
        votes = vote(piece) if votes is None else votes + vote(piece)
      return what(votes)

    by_rows = (total, [piece for piece, _ in parts])
    return map_row_blocks(block, by_rows, (batch, *canvas, self.num_classes))

  @property
  def _beyond(self) -> tuple[int, int, int] | None:
    return (
      transforms.MEAN_COLOR if self.protocol.padding_mode == 'mean' else None
    )

  def _canvas(self, size: resize.Size) -> resize.Size:
    canvas = _multiple_of(size, self.protocol.size_multiple or self.multiple)
    if self.protocol.is_single_view:
      canvas = _multiple_of(canvas, self.multiple)
    return canvas

  @property
  def _averages_logits(self) -> bool:
    return self.protocol.average == 'logits' or self.protocol.is_single_view

  def _vote(self, scores, columns, rows):
    """Weighted votes of a view for a block of rows."""
    if self._averages_logits:
      return _enlarge(scores, rows, columns)
    row_weights = jnp.sum(rows, axis=2)
    column_weights = jnp.sum(columns, axis=2)
    probs = jax.nn.softmax(
      _enlarge(scores, _unit(rows, row_weights), _unit(columns, column_weights))
    )
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    return weights[..., None] * probs

  def _views(self, size: tuple[int, int]) -> list[protocols.View]:
    return _cached_views(self.protocol, self.multiple, tuple(size))


@functools.lru_cache(maxsize=64)
def _cached_views(
  protocol: protocols.ProtocolOptions, multiple: int, size: tuple[int, int]
) -> list[protocols.View]:
  return protocol.build(multiple)(size)


class Packed(NamedTuple):
  """Linear maps of an axis, by image: what is not 0 in each row.

  Attributes:
    index: int32 [B, n, K], columns.
    weight: float32 [B, n, K]; 0 where a row has fewer than K.
  """

  index: Any
  weight: Any


def _packed(
  maps: Sequence[protocols.Map | None], length: int, most: int
) -> Packed:
  """Packs maps to `length` rows of `most` entries; dense ones are huge."""
  index = np.zeros((len(maps), length, most), np.int32)
  weight = np.zeros(index.shape, np.float32)
  for i, found in enumerate(maps):
    if found is not None:
      counts = np.diff(found.indptr)
      rows = np.repeat(np.arange(len(counts)), counts)
      places = np.arange(found.nnz) - np.repeat(found.indptr[:-1], counts)
      index[i, rows, places] = found.indices
      weight[i, rows, places] = found.data
  return Packed(index, weight)


def _dense(packed: Packed, width: int) -> Array:
  """The matrices [B, n, width], on the device."""
  rows = jnp.zeros((*packed.index.shape[:2], width), jnp.float32)
  add = jax.vmap(jax.vmap(lambda row, i, w: row.at[i].add(w)))
  return add(rows, packed.index, packed.weight)


@functools.partial(jax.jit, static_argnames='beyond')
def _look(images, view, beyond):
  """What the network is shown, in [-1, 1]; the canvas itself without a view.

  Where a view reads nothing, it shows the color `beyond`, if there is one.
  """
  exact = jax.lax.Precision.HIGHEST
  symmetric = batch_lib.to_symmetric(images)
  if view is None:
    return symmetric
  if beyond is not None:
    beyond = batch_lib.to_symmetric(jnp.array([[beyond]], jnp.uint8))
    symmetric -= beyond
  height, width = images.shape[1:3]
  rows = _dense(view['read_rows'], height)
  columns = _dense(view['read_columns'], width)
  found = jnp.einsum('bih,bhwc->biwc', rows, symmetric, precision=exact)
  found = jnp.einsum('bjw,biwc->bijc', columns, found, precision=exact)
  return found if beyond is None else found + beyond


def _matrices(
  scores: Array,
  view: Mapping[str, Packed] | None,
  canvas: tuple[int, int],
  align_corners: bool,
) -> list[Array]:
  """Rows and columns of the canvas from those of the scores, by image."""
  found = []
  for axis, name in enumerate(('rows', 'columns')):
    grid = scores.shape[1 + axis]
    if view is None:
      enlarging = resize.bilinear_matrix(grid, canvas[axis], align_corners)
      matrix = jnp.broadcast_to(enlarging, (len(scores), *enlarging.shape))
    else:
      # On from the input's axis to the coarser one of its scores.
      seen = view[f'read_{name}'].index.shape[1]
      enlarging = resize.bilinear_matrix(grid, seen, align_corners)
      matrix = jnp.matmul(
        _dense(view[f'write_{name}'], seen),
        enlarging,
        precision=jax.lax.Precision.HIGHEST,
      )
    found.append(matrix)
  return found


def _unit(matrix: Array, weights: Array) -> Array:
  """Rows that sum to 1 where the view counts, and to 0 elsewhere."""
  return matrix / jnp.where(weights > 0, weights, 1.0)[..., None]


def _enlarge(scores: Array, rows: Array, columns: Array) -> Array:
  exact = jax.lax.Precision.HIGHEST
  found = jnp.einsum('bnh,bhwc->bnwc', rows, scores, precision=exact)
  return jnp.einsum('bjw,bnwc->bnjc', columns, found, precision=exact)
