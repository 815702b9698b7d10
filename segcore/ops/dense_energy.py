"""Energy of a dense random field between all pairs of pixels, as a loss.

Near pixels of similar color pay for probabilities of different classes. All
pairs are computed, in blocks of rows: no lattice approximates the kernel.
Source: Tang et al. 2018, with the gate of Ru et al. 2022 (AFA), Eq. 13.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segcore.ops import losses
from segcore.types import CellLabels, CellMask, Scalar

# Values of the kernel that are computed at once: 2**24 float32 are 64 MB.
_BLOCK_SIZE = 2**24


@dataclasses.dataclass(frozen=True)
class DenseEnergyOptions:
  """Options of the energy.

  Attributes:
    weight: weight of the energy in the loss.
    distance: standard deviation of the positions, in cells.
    color: standard deviation of the colors, of 0 to 255.
  """

  weight: float = 1e-9
  distance: float = 50.0
  color: float = 15.0

  def __post_init__(self):
    for name in ('weight', 'distance', 'color'):
      if getattr(self, name) <= 0:
        raise ValueError(f'{name}: expected above 0, got {getattr(self, name)}')


def dense_energy(
  probs: Float[Array, 'B h w C'],
  images: Float[Array, 'B h w 3'],
  inside: CellMask,
  labels: CellLabels,
  options: DenseEnergyOptions,
) -> Scalar:
  """Computes E = -(1/B)·Σ S·g·(W·S), without the weight.

  S are probabilities inside of the box, g is 1 - max S there, or 1 where the
  label is unknown, and W the Gaussian kernel of positions and colors. The
  gradient to S is -2·g·(W·S)/B: the gate counts as a constant.

  Args:
    probs: probabilities of the classes; the only argument with a gradient.
    images: images, 0 to 255.
    inside: cells that are no padding.
    labels: labels of the cells; negative where unknown.
    options: standard deviations of the kernel.
  """
  box = inside[..., None].astype(probs.dtype)
  masked = probs * box
  constant = jax.lax.stop_gradient(masked)
  gate = box - jnp.max(constant, axis=-1, keepdims=True)
  gate = jnp.where(labels[..., None] < 0, 1.0, jnp.maximum(gate, 0.0))
  filtered = jax.vmap(lambda image, x: _filter(image, x, options))(
    jax.lax.stop_gradient(images), constant
  )
  pull = gate * filtered / len(probs)
  energy = -jnp.sum(constant * pull)
  # Of value 0: it has the gradient.
  slope = -2.0 * jnp.sum((masked - constant) * pull)
  return energy + slope


def _filter(
  image: Float[Array, 'h w 3'],
  values: Float[Array, 'h w C'],
  options: DenseEnergyOptions,
) -> Float[Array, 'h w C']:
  """Computes the sum over all cells of kernel times value, for each cell."""
  height, width, num_classes = values.shape
  rows, columns = jnp.meshgrid(
    jnp.arange(height), jnp.arange(width), indexing='ij'
  )
  positions = jnp.stack([rows, columns], axis=-1) / options.distance
  colors = losses.at_least_float32(image) / options.color
  points = jnp.concatenate([positions, colors], axis=-1).reshape(-1, 5)
  points = points.astype(values.dtype)
  flat = values.reshape(-1, num_classes)

  def filter_cell(point):
    kernel = jnp.exp(-jnp.sum(jnp.square(points - point), axis=-1) / 2)
    return jnp.matmul(kernel, flat, precision=jax.lax.Precision.HIGHEST)

  block = max(1, _BLOCK_SIZE // len(points))
  return jax.lax.map(filter_cell, points, batch_size=block).reshape(
    values.shape
  )
