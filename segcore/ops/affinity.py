"""Affinities of pairs of cells: labels, loss, and propagation of scores.

  loss = affinity_loss(affinities, labels, radius=8)
  scores = propagate_by_affinity(scores, affinities, radius=8)

Source: Ahn & Kwak 2018 (AffinityNet); with the constants of Ru et al. 2022
(AFA), Eqs. 3-7.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segcore.ops import losses
from segcore.types import Scalar


def cells_within_radius(
  grid: tuple[int, int], radius: int
) -> Bool[Array, 'P P']:
  """Computes which pairs of cells are near each other, along both axes.

  Args:
    grid: (rows, columns) of the cells, in row-major order.
    radius: largest difference of rows, and of columns.
  """
  index = jnp.arange(grid[0] * grid[1])
  near = [
    jnp.abs(each[:, None] - each) <= radius
    for each in (index // grid[1], index % grid[1])
  ]
  return near[0] & near[1]


def affinity_loss(
  affinities: Float[Array, 'B P P'],
  labels: Int[Array, 'B h w'],
  radius: int,
) -> Scalar:
  """Computes the affinity loss, each half of it over pairs of one kind.

  ½·Σ(1 - A)/(n₊ + 1) over pairs of equal labels + ½·ΣA/(n₋ + 1) over pairs of
  different ones. Counted are pairs within the radius whose labels are known;
  the background is a class like the others, and pairs of a cell with itself
  count. The numbers n₊ and n₋ are those of the whole batch.

  Args:
    affinities: probability that two cells are of one class.
    labels: class of each cell; negative where unknown.
    radius: largest difference of rows, and of columns, of a pair.
  """
  flat = labels.reshape(len(labels), -1)
  known = (flat >= 0)[:, :, None] & (flat >= 0)[:, None, :]
  counted = known & cells_within_radius(labels.shape[1:], radius)
  same = flat[:, :, None] == flat[:, None, :]
  positive, positives = losses.masked_sum_and_count(
    1.0 - affinities, counted & same
  )
  negative, negatives = losses.masked_sum_and_count(affinities, counted & ~same)
  return 0.5 * positive / (positives + 1) + 0.5 * negative / (negatives + 1)


def propagate_by_affinity(
  scores: Float[Array, 'B h w K'],
  affinities: Float[Array, 'B P P'],
  radius: int,
  *,
  power: float = 2.0,
  num_doublings: int = 0,
  epsilon: float = 0.1,
) -> Float[Array, 'B h w K']:
  """Propagates scores by a random walk between cells.

  The step of the walk is T = A^power within the radius, whose columns are
  divided by their sum + `epsilon`; s'ⱼ = Σᵢ sᵢ·Tᵢⱼ.

  Args:
    scores: scores of each cell; channels do not interact.
    affinities: probability that two cells are of one class.
    radius: largest difference of rows, and of columns, of a step.
    power: exponent of the affinities.
    num_doublings: t of 2^t steps, for which T is squared t times.
    epsilon: number that is added to the sums.
  """
  exact = jax.lax.Precision.HIGHEST
  near = cells_within_radius(scores.shape[1:3], radius)
  steps = jnp.where(near, losses.at_least_float32(affinities) ** power, 0.0)
  steps = steps / (jnp.sum(steps, axis=1, keepdims=True) + epsilon)
  for _ in range(num_doublings):
    steps = jnp.matmul(steps, steps, precision=exact)
  flat = scores.reshape(len(scores), -1, scores.shape[-1])
  walked = jnp.einsum('bik,bij->bjk', flat, steps, precision=exact)
  return walked.reshape(scores.shape)
