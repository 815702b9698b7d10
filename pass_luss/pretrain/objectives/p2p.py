"""P2P: pixels of two views that show the same point get the same embedding.

Views remember where they were cut from the image and whether they were
mirrored, so the points of their overlap are known in both (spec §2.6).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pass_luss.pretrain import embedding_ops, sinkhorn
from pass_luss.pretrain.objectives import swav
from segcore.ops import losses
from segcore.types import Scalar

# Far outside of every map: what is read there is 0.
_NOWHERE = -2.0


@dataclasses.dataclass(frozen=True)
class P2POptions:
  """Which loss aligns the pixels.

  Attributes:
    kind: 'regression' of the one view's embedding from the other's, without
      negatives; 'clustering', by the swapped assignments of the pixels to the
      prototypes; 'contrastive', against all other points of the other view.
    grid: points a side of the overlap.
    project: whether pixels are projected before; else the deepest map itself
      is aligned.
    temperature: of 'contrastive'.
  """

  kind: Literal['regression', 'clustering', 'contrastive'] = 'regression'
  grid: int = 7
  project: bool = True
  temperature: float = 0.2

  def __post_init__(self):
    if self.grid < 2:
      raise ValueError(f'grid: found {self.grid}, expected 2 or more')
    if self.temperature <= 0:
      raise ValueError(
        f'temperature: found {self.temperature}, expected more than 0'
      )
    if self.kind == 'clustering' and not self.project:
      raise ValueError(
        "kind='clustering' compares with prototypes, so pixels need to be "
        'projected: expected project=True'
      )


def overlap_grids(
  boxes: Float[Array, 'B 2 4'], flips: Bool[Array, 'B 2'], size: int
) -> tuple[Float[Array, 'B 2 n'], Float[Array, 'B 2 n'], Bool[Array, 'B']]:
  """Where the points of the overlap are in either view.

  They span the overlap from edge to edge. A grid of points is the product of
  its rows and its columns, which are returned apart.

  Args:
    boxes: (top, left, height, width) of both views in the image.
    flips: which of them are mirrored, left to right.
    size: n, points a side.

  Returns:
    Rows and columns, -1 to 1 from edge to edge of the view, and which images
    have an overlap; in the others, all points are outside.
  """
  starts, lengths = boxes[..., :2], boxes[..., 2:]
  low = jnp.max(starts, axis=1)
  high = jnp.min(starts + lengths, axis=1)
  overlap = jnp.all(high > low, axis=-1)
  share = jnp.linspace(0.0, 1.0, size)
  points = low[:, None] + share[:, None] * (high - low)[:, None]
  unit = (points[:, None] - starts[:, :, None]) / lengths[:, :, None]
  rows, columns = unit[..., 0], unit[..., 1]
  columns = jnp.where(flips[..., None], 1.0 - columns, columns)

  def placed(coordinates: Array) -> Array:
    inside = overlap[:, None, None]
    return jnp.where(inside, 2.0 * coordinates - 1.0, _NOWHERE)

  return placed(rows), placed(columns), overlap


def sample(
  features: Float[Array, 'B h w D'],
  rows: Float[Array, 'B n'],
  columns: Float[Array, 'B n'],
) -> Float[Array, 'B n n D']:
  """Reads maps at a grid of points, bilinearly; around them they are 0.

  A cell's center is half a cell from its edge, so a point on the border of the
  map is half of its first cell and half nothing. Two matrix products, since
  the weights of rows and of columns are apart.
  """
  weights = [
    _weights(points, side)
    for points, side in zip((rows, columns), features.shape[1:3], strict=True)
  ]
  exact = jax.lax.Precision.HIGHEST
  read = jnp.einsum('bih,bhwd->biwd', weights[0], features, precision=exact)
  return jnp.einsum('bjw,biwd->bijd', weights[1], read, precision=exact)


def _weights(
  points: Float[Array, 'B n'], side: int
) -> Float[Array, 'B n side']:
  """How much of each cell there is at each point."""
  index = ((points + 1.0) * side - 1.0) / 2.0
  distance = jnp.abs(index[..., None] - jnp.arange(side))
  return jnp.maximum(0.0, 1.0 - distance)


def regression_loss(
  predicted: Float[Array, 'B 2 n m D'], projected: Float[Array, 'B 2 n m D']
) -> Scalar:
  """-1/2 [mean cos(p_a, z_b) + mean cos(p_b, z_a)]; z has no gradient.

  Over all images and points: those without an overlap count as 0.
  """
  other = jax.lax.stop_gradient(projected[:, ::-1])
  return -jnp.mean(_cosine(predicted, other))


def contrastive_loss(
  projected: Float[Array, 'B 2 n m D'],
  overlap: Bool[Array, 'B'],
  temperature: float,
) -> Scalar:
  """The same point of the other view against its other points.

  -log exp(cos(a_i, b_i) / τ) / Σ_j exp(cos(a_i, b_j) / τ), both ways, mean over
  all images and points; images without an overlap count as 0. The released
  code has no such loss: negatives are those of the same image, as the paper's
  'all other positions' is read here.
  """
  batch, _, *grid, size = projected.shape
  points = embedding_ops.l2_normalize(projected).reshape(
    batch, 2, grid[0] * grid[1], size
  )
  products = jnp.einsum(
    'bid,bjd->bij', points[:, 0], points[:, 1], precision=embedding_ops.EXACT
  )
  scores = products / temperature
  same = jnp.arange(scores.shape[-1])
  both = jnp.stack(
    [-jax.nn.log_softmax(scores, axis=axis)[:, same, same] for axis in (1, 2)]
  )
  return jnp.mean(jnp.where(overlap[:, None], both, 0.0))


def clustering_loss(
  projected: Float[Array, 'B 2 n m D'],
  prototypes: Float[Array, 'D K'],
  overlap: Bool[Array, 'B'],
  options: swav.SwavOptions,
) -> Scalar:
  """The swapped loss of points in place of images, without a queue.

  The released code has no such loss. Prototypes are constants here; images
  without an overlap have no part in the assignments, and count as 0.
  """
  _, _, *grid, size = projected.shape
  points = jnp.moveaxis(embedding_ops.l2_normalize(projected), 1, 3).reshape(
    -1, 2, size
  )
  scores = embedding_ops.similarities(points, jax.lax.stop_gradient(prototypes))
  used = jnp.repeat(overlap, grid[0] * grid[1])
  found = jnp.stack(
    [
      sinkhorn.assign(
        jax.lax.stop_gradient(scores[:, view]),
        options.epsilon,
        options.sinkhorn_iterations,
        used,
      )
      for view in (0, 1)
    ],
    axis=1,
  )
  # Targets of points that take no part are 0, so their cross entropy is, too.
  return swav.swapped_loss(scores, found, options.temperature)


def _cosine(
  a: Float[Array, '*shape D'], b: Float[Array, '*shape D']
) -> Float[Array, '*shape']:
  """a·b / max(|a|·|b|, 1e-8), and 0 with a gradient of 0 where one is 0."""
  a, b = losses.at_least_float32(a), losses.at_least_float32(b)
  squares = jnp.sum(jnp.square(a), axis=-1) * jnp.sum(jnp.square(b), axis=-1)
  return jnp.sum(a * b, axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))
