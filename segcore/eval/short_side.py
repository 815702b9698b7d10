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
from input_pipeline import transforms
from segcore.eval import inference
from segcore.models.layers import resize
from segcore.train import method as method_lib
from segcore.train import train_state

# From a state and images in [-1, 1], [B, h, w, 3], to rows [B, …].
ForwardFn = Callable[[train_state.TrainState, Array], Array]


def resized_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
  """Height and width with the short side at a length; the long one rounds down.

  >>> resized_size((375, 500), 256)
  (256, 341)
  """
  height, width = size
  if height <= width:
    return short_side, short_side * width // height
  return short_side * height // width, short_side


def resize_and_crop(
  image: UInt8[np.ndarray, 'H W 3'], short_side: int, crop: int = 0
) -> UInt8[np.ndarray, 'h w 3']:
  """What the network is shown of an image.

  Args:
    image: of any size.
    short_side: to which it is resized, as by Pillow.
    crop: side of a square that is cut out of the middle then; 0 for none.
  """
  size = resized_size(image.shape[:2], short_side)
  if image.shape[:2] != size:
    image = transforms.resize_antialiased(image, size)
  if crop:
    # As torchvision: halves are rounded to even.
    top, left = (round((n - crop) / 2) for n in image.shape[:2])
    image = image[top : top + crop, left : left + crop]
  return image


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureMaps:
  """What a function finds in each image, at the network's own grid.

  Images of one input size share a program: padding would change what is found
  near the border.

  Attributes:
    function: from state and images to rows.
    short_side: of the images that it is shown.
    crop: side of the middle that it is shown of them; 0 for all.
  """

  function: ForwardFn
  short_side: int
  crop: int = 0

  def group(self, size: tuple[int, int]) -> inference.Group:
    """See `inference.Predictor`; there is no canvas."""
    inputs = (self.crop, self.crop) if self.crop else None
    return inference.Group(
      (0, 0), (inputs or resized_size(size, self.short_side),)
    )

  def prepare(
    self, images: Sequence[np.ndarray | None], group: inference.Group
  ) -> dict[str, Any]:
    """See `inference.Predictor`."""
    return {'images': _stacked(images, group, self.short_side, self.crop)}

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Array:
    """See `inference.Predictor`."""
    return self._look(state, inputs['images'])

  @functools.cached_property
  def _look(self):
    return jax.jit(
      lambda state, images: self.function(state, batch_lib.to_symmetric(images))
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMaps:
  """The best class of each pixel: scores are enlarged first (spec §5.1).

  An image of more than `max_side` squared pixels is decided at `max_side` rows,
  and its labels are enlarged.

  Attributes:
    method: its `predict` gives scores at the network's own grid.
    short_side: of the images that it is shown.
    size_multiple: sides of label maps are multiples of it, to share programs.
    max_side: see above.
    output: 'labels', or 'probs' for the probability of each class.
  """

  method: method_lib.ScoreModel
  short_side: int
  size_multiple: int = 64
  max_side: int = 1000
  output: Literal['labels', 'probs'] = 'labels'

  def group(self, size: tuple[int, int]) -> inference.Group:
    """See `inference.Predictor`."""
    height, width = (
      -(-n // self.size_multiple) * self.size_multiple for n in size
    )
    return inference.Group(
      (height, width), (resized_size(size, self.short_side),)
    )

  def prepare(
    self, images: Sequence[np.ndarray | None], group: inference.Group
  ) -> dict[str, Any]:
    """See `inference.Predictor`; adds where each pixel is, in [0, 1]."""
    places = [
      np.full((len(images), length), 0.5, np.float32)
      for length in group.padded_size
    ]
    for i, image in enumerate(images):
      if image is not None:
        for place, at in zip(
          places, _places(image.shape[:2], self.max_side), strict=True
        ):
          place[i, : len(at)] = at
    return {
      'images': _stacked(images, group, self.short_side),
      'rows': places[0],
      'columns': places[1],
    }

  def __call__(
    self, state: train_state.TrainState, inputs: Mapping[str, Any]
  ) -> Int16[Array, 'B H W'] | Float[Array, 'B H W C']:
    """See `inference.Predictor`."""
    scores = self._scores(state, inputs['images'])
    return self._labels(scores, inputs['rows'], inputs['columns'])

  def label(
    self, state: train_state.TrainState, images: UInt8[Array, '1 H W 3']
  ) -> Int16[Array, '1 H W']:
    """The same of one image, in one traceable function, for `export`.

    The sides may be symbols.
    """
    height, width = size = images.shape[1:3]
    shorter = core.min_dim(height, width)
    # Of a symbol it has to be said that it is not less.
    shown = tuple(
      core.max_dim(self.short_side * n // shorter, self.short_side)
      for n in size
    )
    seen = resize.antialiased_uint8(images, shown)
    scores = self._scores(state, seen)
    # Above so many pixels fewer rows are decided, and enlarged.
    much = jnp.asarray(height) * jnp.asarray(width) > self.max_side**2
    decided = (self.max_side, self.max_side * width // height)
    matrices = []
    for n, m, cells in zip(size, decided, scores.shape[1:3], strict=True):
      count = jnp.where(much, m, n)
      place = (jnp.arange(n) * count // n + 0.5) / count
      matrices.append(_weights(place[None], cells)[0])
    return inference.argmax_by_rows(scores, *matrices)

  @functools.cached_property
  def _scores(self):
    return jax.jit(
      lambda state, images: self.method.predict(
        state, batch_lib.to_symmetric(images)
      ).astype(jnp.float32)
    )

  @functools.cached_property
  def _labels(self):
    best = functools.partial(jnp.argmax, axis=-1)
    what = {
      'labels': lambda votes: best(votes).astype(jnp.int16),
      'probs': jax.nn.softmax,
    }[self.output]
    return jax.jit(functools.partial(in_blocks, what=what))


def map_scores(
  scores: Float[Array, 'B h w C'],
  rows: Float[Array, 'B H'],
  columns: Float[Array, 'B W'],
  what: Callable[[Array], Array],
) -> Shaped[Array, 'B H W ...']:
  """A function of the scores at places of a map, read bilinearly.

  In blocks of rows, since all classes at all pixels need not fit in memory.

  Args:
    scores: of the cells.
    rows: places, from 0 at the upper edge of the map to 1 at the lower one.
    columns: likewise.
    what: from scores [B, n, W, C] to [B, n, W, …].
  """
  exact = jax.lax.Precision.HIGHEST
  batch, height, width, classes = scores.shape
  wide = jnp.einsum(
    'bjw,bhwc->bhjc', _weights(columns, width), scores, precision=exact
  )

  def block(matrix: Array) -> Array:
    votes = jnp.einsum('bih,bhjc->bijc', matrix, wide, precision=exact)
    return what(votes)

  shape = (batch, rows.shape[1], columns.shape[1], classes)
  return inference.map_row_blocks(block, _weights(rows, height), shape)


def resize_labels(
  labels: Int[np.ndarray, 'h w'], size: tuple[int, int]
) -> Int[np.ndarray, 'H W']:
  """Labels at the image's own size: cell ⌊i·h/H⌋ for pixel i."""
  return transforms.resize_nearest(labels, size)


def _weights(places: Float[Array, 'B N'], cells: Any) -> Float[Array, 'B N n']:
  """Half-pixel bilinear weights of an axis's cells; edges are repeated."""
  index = jnp.clip(places * cells - 0.5, 0.0, cells - 1)
  distance = jnp.abs(index[..., None] - jnp.arange(cells))
  return jnp.maximum(0.0, 1.0 - distance)


def _places(
  size: tuple[int, int], max_side: int
) -> list[Float[np.ndarray, 'N']]:
  """Where the rows and the columns of an image are, in [0, 1]."""
  height, width = size
  decided = size
  if height * width > max_side**2:
    decided = (max_side, max_side * width // height)
  return [
    (np.arange(n) * m // n + 0.5) / m
    for n, m in zip(size, decided, strict=True)
  ]


def _stacked(
  images: Sequence[np.ndarray | None],
  group: inference.Group,
  short_side: int,
  crop: int = 0,
) -> UInt8[np.ndarray, 'B h w 3']:
  """What is shown of images of one input size; zeros for empty rows."""
  rows = np.zeros((len(images), *group.input_sizes[0], 3), np.uint8)
  for row, image in zip(rows, images, strict=True):
    if image is not None:
      row[:] = resize_and_crop(image, short_side, crop)
  return rows
