"""PixelPro: pixels agree with the propagated pixels of another view (§2.10)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pass_luss.pretrain import embedding_ops
from segcore.ops import losses
from segcore.types import Scalar


@dataclasses.dataclass(frozen=True)
class PixproOptions:
  """The PixelPro branch.

  Attributes:
    hidden: width of the projector.
    size: channels of a pixel's embedding.
    power: of the similarity in the propagation.
    distance: cells closer than this, in diagonals of a cell, show the same.
    decay: of the momentum encoder, at the first step; it rises to 1.
  """

  hidden: int = 4096
  size: int = 256
  power: float = 2.0
  distance: float = 0.7
  decay: float = 0.99

  def __post_init__(self):
    if not 0 <= self.decay <= 1:
      raise ValueError(f'decay: found {self.decay}, expected 0 to 1')
    for name in ('hidden', 'size', 'power', 'distance'):
      if getattr(self, name) <= 0:
        raise ValueError(
          f'{name}: found {getattr(self, name)}, expected more than 0'
        )


def propagated(
  pixels: Float[Array, 'B h w D'],
  transformed: Float[Array, 'B h w D'],
  power: float,
) -> Float[Array, 'B h w D']:
  """y_i = Σ_j max(cos(x_i, x_j), 0)^power v_j, of unit length.

  Args:
    pixels: x, projected.
    transformed: v before its normalization.
    power: the larger, the more only alike pixels count.
  """
  batch, height, width, size = pixels.shape
  flat = embedding_ops.l2_normalize(pixels).reshape(batch, height * width, size)
  values = embedding_ops.l2_normalize(transformed).reshape(
    batch, height * width, size
  )
  alike = (
    jnp.maximum(
      jnp.einsum('bid,bjd->bij', flat, flat, precision=embedding_ops.EXACT), 0.0
    )
    ** power
  )
  found = jnp.einsum(
    'bij,bjd->bid', alike, values, precision=embedding_ops.EXACT
  )
  return embedding_ops.l2_normalize(found).reshape(pixels.shape)


def positives(
  boxes: Float[Array, 'B 2 4'],
  flips: Bool[Array, 'B 2'],
  sizes: Int[Array, 'B 2'],
  grid: tuple[int, int],
  distance: float,
) -> Bool[Array, 'B hw hw']:
  """Which cells of the two views show about the same point.

  The centers of cells are less than `distance` diagonals of the larger cells
  apart. A view reaches from the center of its first pixel to that of its last,
  in parts of the image's sides from center to center, as in the official code.

  Args:
    boxes: (top, left, height, width) of both views.
    flips: which of them are mirrored.
    sizes: height and width of the images that the views are of.
    grid: cells (h, w) of a view.
    distance: in diagonals.
  """
  sides = (sizes - 1).astype(boxes.dtype)
  lengths = boxes[..., 2:] - 1
  boxes = jnp.concatenate([boxes[..., :2], lengths], axis=-1)
  boxes = boxes / jnp.concatenate([sides, sides], axis=-1)[:, None]
  cells = boxes[..., 2:] / jnp.array(grid, boxes.dtype)
  places = []
  for axis, count in enumerate(grid):
    index = jnp.arange(count) + 0.5
    offset = index * cells[..., axis, None]
    if axis == 1:
      mirrored = boxes[..., 3, None] - offset
      offset = jnp.where(flips[..., None], mirrored, offset)
    places.append(boxes[..., axis, None] + offset)
  rows, columns = places
  shape = (*boxes.shape[:2], *grid)
  points = jnp.stack(
    [
      jnp.broadcast_to(rows[..., :, None], shape),
      jnp.broadcast_to(columns[..., None, :], shape),
    ],
    axis=-1,
  ).reshape(*boxes.shape[:2], -1, 2)
  apart = points[:, 0, :, None] - points[:, 1, None, :]
  squares = jnp.sum(jnp.square(apart), axis=-1)
  diagonals = jnp.sum(jnp.square(cells), axis=-1)
  largest = jnp.max(diagonals, axis=1)[:, None, None]
  return squares < distance**2 * largest


def loss(
  propagated: Float[Array, 'B hw D'],
  keys: Float[Array, 'B hw D'],
  positive: Bool[Array, 'B hw hw'],
) -> Scalar:
  """-2 mean_b(Σ_pos y_i·k_j / (number of positives + 1e-6)).

  Args:
    propagated: y of the one view, of unit length.
    keys: k of the other view by the momentum encoder, of unit length.
    positive: pairs (i, j).
  """
  scores = jnp.einsum(
    'bid,bjd->bij',
    losses.at_least_float32(propagated),
    losses.at_least_float32(keys),
    precision=embedding_ops.EXACT,
  )
  count = jnp.sum(positive, axis=(1, 2))
  total = jnp.sum(jnp.where(positive, scores, 0.0), axis=(1, 2))
  return -2.0 * jnp.mean(total / (count + 1e-6))


def momentum(step: Array, num_steps: int, decay: float) -> Scalar:
  """1 - (1 - decay) (cos(π k / K) + 1) / 2: from `decay` at step 0 to 1."""
  share = (jnp.cos(jnp.pi * step / num_steps) + 1.0) / 2.0
  return 1.0 - (1.0 - decay) * share
